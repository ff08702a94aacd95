"""Four forced host devices for every test, and tiny checkpoints and data that need no network."""

import csv
import json
import os
import random

# Before jax is imported anywhere. Most of a test's time is compiling; unoptimised code is faster.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)

import numpy as np
import pytest
import tokenizers
from flax import nnx
from safetensors.numpy import save_file

from ftjax.models import FAMILIES
from ftjax.tuning import partition

WORDS = [f"word{number}" for number in range(60)]


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_checkpoint(folder, family, fields, network):
    """config.json and model.safetensors of a random network."""
    fields = fields | {"model_type": family.model_type, "vocab_size": len(SPECIAL) + len(WORDS)}
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


@pytest.fixture
def tiny_checkpoint(tmp_path):
    """(model_type, fields, network) -> the folder of a random checkpoint with a tokenizer."""

    def make(model_type, fields, network):
        folder = tmp_path / model_type
        folder.mkdir()
        write_checkpoint(folder, FAMILIES[model_type], fields, network)
        write_tokenizer(folder, with_end=network == "causal_lm")
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """The folder of a tiny random BERT checkpoint with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    fields = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    write_checkpoint(folder, FAMILIES["bert"], fields, "backbone")
    write_tokenizer(folder, with_end=False)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """The folder of a tiny random Llama checkpoint with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    fields = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    write_checkpoint(folder, FAMILIES["llama"], fields, "causal_lm")
    write_tokenizer(folder, with_end=True)
    return folder


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory):
    """A pattern for CSV files: three classes, each with words of its own; uneven lengths."""
    folder = tmp_path_factory.mktemp("tiny_texts")
    generator = random.Random(0)
    for split, count in (("train", 45), ("validation", 13), ("test", 14)):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for index in range(count):
                label = index % 3
                own = [WORDS[20 * label + generator.randrange(20)] for _ in range(3)]
                other = generator.choices(WORDS, k=generator.randrange(12))
                writer.writerow([" ".join(own + other), "abc"[label]])
    return folder / "{split}.csv"


@pytest.fixture
def tiny_config(tiny_bert, tiny_texts):
    """A valid config over the two, which trains in seconds."""
    from ftjax.config import base_config

    config = base_config()
    config.name = "tiny"
    config.model.reference = str(tiny_bert)
    config.data.source = str(tiny_texts)
    config.data.buckets = (8, 16)
    config.data.batch_size = 8
    config.evaluation.batch_size = 8
    config.optimizer.learning_rate = 1e-2
    config.retention.source = str(tiny_texts)
    config.retention.max_length = 16
    return config
