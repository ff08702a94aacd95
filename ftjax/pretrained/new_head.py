"""A published head where the checkpoint has none, or one for another number of classes."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from transformers import AutoConfig

from ftjax.models import family_of
from ftjax.models.family import Family
from ftjax.models.layers import Network
from ftjax.pretrained.checkpoint import Checkpoint
from ftjax.pretrained.load import dotted

# The pooler comes with a head: some checkpoints have one, and some heads want one.
POOLER = "backbone.pooler."


class HeadedCheckpoint(Checkpoint):
    """A checkpoint as if it had been published with a head for these classes.

    What of the head is there and fits is kept: ModernBERT's prediction head, BERT's pooler, the
    whole of a published classifier of as many classes. The rest is new, initialised as transformers
    initialises it. `load_model` loads it as any other.

    Attributes:
        new: published name -> tensor that the file does not have, in its published layout.
    """

    def __init__(
        self,
        folder: str | Path,
        network: str,
        classes: Sequence[str],
        key: jax.Array,
        *,
        accept_fields: tuple[str, ...] = (),
    ):
        """Opens a checkpoint folder and draws what its head lacks.

        Args:
            folder: config.json and safetensors.
            network: which of the family's networks ("sequence_classification", ...).
            classes: their names, in the order of the logits.
            key: random key.
            accept_fields: unknown fields of config.json to ignore.

        Raises:
            FileNotFoundError, ValueError: as of `Checkpoint` and `load_model`.
        """
        super().__init__(folder)
        self.fields = with_classes(self.fields, classes)
        family = family_of(self.fields.get("model_type", ""))
        config = family.parse_config(self.fields, accept=accept_fields)
        if network not in family.networks:
            raise ValueError(
                f"{self.folder}: the family {family.model_type} has no network {network!r}; "
                f"it has {', '.join(sorted(family.networks))}."
            )
        build = functools.partial(family.networks[network], config)
        self.new: dict[str, np.ndarray] = {}
        missing = lacking_of_head(self, family, nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
        draw = jax.jit(lambda key: _chosen(build(rngs=nnx.Rngs(params=key)), frozenset(missing)))
        for path, value in draw(key).items():
            self.new[missing[path]] = family.to_published(path, np.asarray(value))
        self.files |= dict.fromkeys(self.new, self.folder)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, new or of the file."""
        return self.new[name].shape if name in self.new else super().shape(name)

    def read(self, name: str) -> np.ndarray:
        """One tensor, new or of the file."""
        return self.new[name] if name in self.new else super().read(name)


def lacking_of_head(checkpoint: Checkpoint, family: Family, network: Network) -> dict[str, str]:
    """What of a network's head a checkpoint does not have, or has in another shape.

    Args:
        checkpoint: opened.
        family: its family.
        network: with a published head, perhaps abstract.

    Returns:
        Parameter path -> published name.
    """
    with_prefix = any(name.startswith(family.prefix) for name in checkpoint.files)
    lacking = {}
    for path, leaf in _leaves(network).items():
        if path.startswith("backbone.") and not path.startswith(POOLER):
            continue
        name = family.published_name(path, with_prefix=with_prefix)
        shape = family.to_published(path, np.broadcast_to(np.False_, leaf.shape)).shape
        if name not in checkpoint.files or checkpoint.shape(name) != shape:
            lacking[path] = name
    return lacking


def with_classes(fields: dict, classes: Sequence[str]) -> dict:
    """config.json for a head of these classes, spelled as transformers writes it."""
    kept = {name: value for name, value in fields.items() if name != "num_labels"}
    return kept | {
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
    }


def architecture(model_type: str, head: str) -> str:
    """What transformers calls a family's network, such as BertForTokenClassification."""
    return type(AutoConfig.for_model(model_type)).__name__.removesuffix("Config") + head


def _leaves(network: Network) -> dict[str, nnx.Variable]:
    return {dotted(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(network))}


def _chosen(network: Network, paths: frozenset[str]) -> dict[str, jax.Array]:
    return {path: leaf[...] for path, leaf in _leaves(network).items() if path in paths}
