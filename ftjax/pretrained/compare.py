"""Whether two networks compute the same: all their outputs, on real tokens."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

from ftjax.models.heads import PublishedClassifier, TextClassifier
from ftjax.models.layers import Network
from ftjax.tuning.tune import merge

TEXTS = (
    "The quick brown fox jumps over the lazy dog; 1, 2, 3.",
    "Who answers first? She said: no one did.",
)
LENGTH = 16
Outputs = Mapping[str, np.ndarray]


def outputs_on_example(network: Network, folder: str | Path) -> Outputs:
    """What a network gives for two short texts (or two random images).

    Args:
        network: one of a family's, or a classifier that takes a batch; perhaps with adapters.
        folder: its checkpoint, for the tokenizer.

    Returns:
        "last_hidden_state", "logits", "pooled" and what else the network has, in float32.
    """
    batch = _example(network, Path(folder))
    graphdef, state = nnx.split(network)
    if isinstance(network, TextClassifier | PublishedClassifier):
        batch["attention_mask"] = jnp.ones_like(batch["input_ids"])
        run = jax.jit(lambda state: {"logits": nnx.merge(graphdef, state)(batch)})
    else:
        run = jax.jit(lambda state: _named(nnx.merge(graphdef, state)(**batch)))
    return {name: np.asarray(value, np.float32) for name, value in run(state).items()}


def refuse_difference(expected: Outputs, found: Outputs, dtype: jnp.dtype, what: str) -> None:
    """Refuses outputs that differ by more than rounding.

    Args:
        expected: of the network as it was.
        found: of the one that should be the same.
        dtype: of the computation.
        what: the beginning of a sentence: what was done to the network.

    Raises:
        ValueError: names the output and by how much it differs.
    """
    most = 1e-4 if jnp.dtype(dtype) == jnp.float32 else 5e-2
    for name, value in expected.items():
        scale = max(float(np.abs(value).max()), 1e-30)
        apart = np.abs(found[name] - value).max() / scale if name in found else np.inf
        if not apart <= most:
            raise ValueError(
                f"{what}, the network's {name} differs by {apart:.1e} of its largest value (at "
                f"most {most:.0e} is rounding)."
            )


def merged_and_compared(network: Network, folder: str | Path) -> tuple[Network, Outputs]:
    """A pretrained network with its adapters merged into plain layers, in float32.

    Args:
        network: a task's, with the pretrained network in `backbone`; changed in place.
        folder: the checkpoint it came from.

    Returns:
        The pretrained network, and its outputs before, for `export` to compare with.

    Raises:
        ValueError: merged, the network computes something else, or what was learned is no change of
            weights.
    """
    before = outputs_on_example(network.backbone, folder)
    merged: Network = merge(network).backbone  # pyright: ignore[reportAttributeAccessIssue]
    found = outputs_on_example(merged, folder)
    refuse_difference(before, found, merged.compute.dtype, "With its adapters merged")
    return merged, before


def _named(output) -> dict[str, jax.Array]:
    return {name: x for name, x in output._asdict().items() if isinstance(x, jax.Array)}


def _example(network: Network, folder: Path) -> dict[str, jax.Array]:
    inside = network
    while hasattr(inside, "backbone"):
        inside = inside.backbone
    takes = inspect.signature(type(inside).__call__).parameters
    batch = {}
    if "pixel_values" in takes:
        batch["pixel_values"] = jnp.asarray(_images(inside.config))
    if "input_ids" in takes:
        batch["input_ids"] = jnp.asarray(_tokens(inside.config, folder))
    if "decoder_input_ids" in takes:
        batch["decoder_input_ids"] = batch["input_ids"][:, : LENGTH // 2]
    return batch


def _images(config) -> np.ndarray:
    config = getattr(config, "vision_config", config)
    sizes = config.image_size if isinstance(config.image_size, tuple) else (config.image_size,) * 2
    shape = (2, *sizes, getattr(config, "num_channels", 3))
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _tokens(config, folder: Path) -> np.ndarray:
    """Int [2, LENGTH], of the tokenizer if it is in one file, else spread over the table."""
    config = getattr(config, "text_config", config)
    rows = min(config.vocab_size, getattr(config, "target_vocab_size", config.vocab_size))
    ids = np.random.default_rng(0).integers(0, rows, (len(TEXTS), LENGTH))
    if (folder / "tokenizer.json").is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:
            return ids
        for row, text in zip(ids, TEXTS, strict=True):
            real = [token for token in tokenizer.encode(text).ids if token < rows][:LENGTH]
            row[: len(real)] = real
    most = getattr(config, "longest_row", None) or getattr(config, "max_position_embeddings", None)
    return ids[:, : most or LENGTH]
