"""A tiny network of every family with something to learn, for tests of what moves."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from test_decoder import FIELDS as DECODERS
from test_encoders import CONFIGS as ENCODERS
from test_families import CONFIGS as OTHERS

from ftjax.losses import classes, tokens
from ftjax.models import FAMILIES
from ftjax.models.heads import LanguageModel, TextClassifier
from ftjax.models.layers import linear
from ftjax.pretrained.load import with_dropout

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
