"""The one place for tiny checkpoints, configs, batches and networks of every family."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers
from flax import nnx
from rich.console import Console
from safetensors.numpy import save_file
from test_decoder import FIELDS as DECODERS
from test_encoders import CONFIGS as ENCODERS
from test_families import CONFIGS as OTHERS

from ftjax.losses import classes, tokens
from ftjax.models import FAMILIES
from ftjax.models.heads import LanguageModel, TextClassifier
from ftjax.models.layers import linear
from ftjax.pretrained.load import with_dropout
from ftjax.tuning.partition import partition

WORDS = [f"word{number}" for number in range(60)]


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_checkpoint(folder, family, fields, network):
    """config.json and model.safetensors of a random network."""
    fields = fields | {"model_type": family.model_type}
    # What sees images knows no words.
    if "image_size" not in fields:
        fields["vocab_size"] = len(SPECIAL) + len(WORDS)
    (folder / "config.json").write_text(json.dumps(fields))
    build = family.networks[network]
    model = build(family.parse_config(fields), rngs=nnx.Rngs(0))
    _, parameters, _ = partition(model, lambda path: True)
    inside = any(path.startswith("backbone.") for path in parameters)
    tensors = {
        family.published_name(path, with_prefix=inside): np.ascontiguousarray(
            family.to_published(path, np.asarray(value))
        )
        for path, value in parameters.items()
    }
    save_file(tensors, folder / "model.safetensors")


def write_tokenizer(folder, *, with_end: bool):
    """A word-level tokenizer: [CLS] text [SEP], or plain text with [SEP] as its end token."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if with_end:
        names |= {"eos_token": "[SEP]"}
    else:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        pair = (("[SEP]", 3), ("[CLS]", 2))
        tokenizer.post_processor = tokenizers.processors.BertProcessing(*pair)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def end_texts(folder):
    """Lets a tokenizer end each text with [SEP], as T5's does."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = tokenizers.processors.TemplateProcessing("$A [SEP]", None, [("[SEP]", 3)])
    tokenizer.post_processor = ends
    tokenizer.save(str(folder / "tokenizer.json"))


def write_splits(folder, record, **counts):
    """Records as JSON lines, `record(index)` each; what config.data.source says of them.

    Args:
        folder: where the files go.
        record: index within the split -> a dict.
        counts: split -> how many.
    """
    for split, count in counts.items():
        lines = [json.dumps(record(index)) for index in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder / "{split}.jsonl"


def dotted(fields):
    """Fields of a config, from arguments that name them with __ in the place of the dot."""
    return {name.replace("__", "."): value for name, value in fields.items()}


def quiet():
    """A console that nobody sees."""
    return Console(file=io.StringIO(), width=200, soft_wrap=True)


# Settings of a run that takes seconds; every length to pad to is one more program to compile.
TINY = {
    "name": "tiny",
    "data.buckets": (16,),
    "data.batch_size": 8,
    "evaluation.batch_size": 8,
    "optimizer.learning_rate": 1e-2,
}


SEQ2SEQ = ("bart", "mbart", "marian", "t5", "mt5")
VISION = ("vit", "deit", "dinov2", "clip_vision_model", "siglip_vision_model")
TEXT_TOWERS = ("clip_text_model", "siglip_text_model")
FAMILY_NAMES = (*ENCODERS, *DECODERS, *SEQ2SEQ, *VISION, *TEXT_TOWERS)
ROWS, LENGTH, CLASSES = 4, 6, 3


class Seq2Seq(nnx.Module):
    """An encoder-decoder, called with a batch."""

    def __init__(self, backbone):
        self.backbone = backbone

    def __call__(self, batch, *, key=None):
        ids = batch["input_ids"]
        return self.backbone(ids, decoder_input_ids=ids, key=key).logits[:, -1]


class ImageClassifier(nnx.Module):
    """A vision tower and a new linear layer on what it pools, else on its mean."""

    def __init__(self, backbone, rngs):
        self.backbone = backbone
        size = backbone.config.hidden_size
        self.classifier = linear(size, CLASSES, backbone.compute, rngs=rngs)

    def __call__(self, batch, *, key=None):
        output = self.backbone(batch["pixel_values"], key=key)
        pooled = output.last_hidden_state.mean(1) if output.pooled is None else output.pooled
        return self.classifier(pooled)


def make_case(model_type, seed=0):
    """(network, batch, loss) of a family; the same each time."""
    fields = {**OTHERS, **ENCODERS, **DECODERS}[model_type]
    if "max_position_embeddings" in fields:
        # Room for virtual tokens.
        fields = fields | {"max_position_embeddings": 32}
    family = FAMILIES[model_type]
    config = with_dropout(family.parse_config(fields), 0.0)

    def build(name):
        model = family.networks[name](config, rngs=nnx.Rngs(seed))
        random = np.random.default_rng(seed)

        def noisy(leaf):
            return leaf + jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype)

        nnx.update(model, jax.tree.map(noisy, nnx.state(model, nnx.Param)))
        return model

    random = np.random.default_rng(1)
    ids = random.integers(4, 30, (ROWS, LENGTH)).astype(np.int32)
    batch = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "labels": random.integers(0, CLASSES, ROWS).astype(np.int32),
        "weights": np.ones(ROWS, np.float32),
    }
    if model_type in DECODERS:
        rows = np.ones((ROWS, LENGTH))
        packed = {
            "input_ids": ids,
            "segment_ids": rows.astype(np.int32),
            "position_ids": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
            "labels": np.roll(ids, -1, 1),
            "weights": rows.astype(np.float32),
        }
        return LanguageModel(build("causal_lm")), packed, tokens.loss
    if model_type in SEQ2SEQ:
        return Seq2Seq(build("seq2seq_lm")), batch, classes.loss
    if model_type in VISION:
        images = random.normal(size=(ROWS, 8, 8, 3)).astype(np.float32)
        network = ImageClassifier(build("backbone"), nnx.Rngs(2))
        return network, batch | {"pixel_values": images}, classes.loss
    network = TextClassifier(
        build("backbone"), CLASSES, pooling="mean", dropout_rate=0.0, rngs=nnx.Rngs(2)
    )
    return network, batch, classes.loss


def contents(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def leftovers(cache):
    return [path for path in cache.rglob("*") if path.name.startswith("unfinished-")]


def write_subword_tokenizer(folder):
    """A WordPiece tokenizer with a mask token, for which word12 is word ##1 ##2."""
    pieces = ["word", *(f"##{digit}" for digit in range(10)), *map(str, range(10))]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, "[MASK]", *pieces])}
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32}
    settings |= {f"{name}_token": token for name, token in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_tokenizer(*special, merges=(), **names):
    """A byte-level tokenizer: a token for each byte, those that are merged, the special ones."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *map("".join, merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, list(merges)))
    options = {"add_prefix_space": False, "use_regex": False}
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(**options)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **names}
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    found.add_special_tokens({"additional_special_tokens": list(special)})
    found.table_rows = len(found)
    return found
