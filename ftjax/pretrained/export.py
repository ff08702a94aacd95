"""From a network back to a Hugging Face folder: what loading does, backwards."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from ftjax.files import new_folder
from ftjax.models import family_of
from ftjax.models.family import Family
from ftjax.models.layers import Compute, Network
from ftjax.pretrained.checkpoint import Checkpoint
from ftjax.pretrained.compare import Outputs, outputs_on_example, refuse_difference
from ftjax.pretrained.load import dotted, load_model, with_dropout

LARGEST_SHARD_BYTES = 5 * 10**9

# What a tokenizer, and the terms of use, may consist of.
COPIED = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "chat_template*", "generation_config.json", "preprocessor_config.json"),
    *("LICENSE*", "NOTICE*", "README*"),
)


def export(
    model: Network,
    name: str,
    base: str | Path,
    folder: str | Path,
    *,
    fields: dict | None = None,
    expected: Outputs | None = None,
    accept_fields: tuple[str, ...] = (),
) -> None:
    """Writes a network as a checkpoint that transformers loads; whole or not at all.

    What was written is loaded again: it must have the same parameters under the same config, and so
    be the same network.

    Args:
        model: a network of a family, its parameters perhaps changed.
        name: which of the family's networks it is ("backbone", "causal_lm", ...).
        base: the checkpoint folder it came from: for config.json, tokenizer and licence.
        folder: to be made.
        fields: of config.json, but for what the parameters say; the base's by default.
        expected: `outputs_on_example` of the network before its adapters were merged; what is
            loaded again must give the same.
        accept_fields: unknown fields of config.json to ignore.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: reloaded, the export is not the same network (it is then not kept).
    """
    base = Path(base)
    with new_folder(folder, "The export") as new:
        write_checkpoint(model, base, new, fields or Checkpoint(base).fields)
        again = load_model(new, name, compute_of(model), accept_fields=accept_fields)
        refuse_another(model, again)
        if expected is not None:
            found = outputs_on_example(again, new)
            refuse_difference(expected, found, model.compute.dtype, "Written and loaded again")


def write_checkpoint(model: Network, base: Path, folder: Path, fields: dict) -> None:
    """Writes config.json, tokenizer, terms of use and weights.

    Args:
        model: a network of a family.
        base: the checkpoint folder it came from.
        folder: to write in.
        fields: of config.json, but for what the parameters say.
    """
    for pattern in COPIED:
        for file in base.glob(pattern):
            shutil.copy(file, folder / file.name)
    content = json.dumps(_fields_of(fields, model), indent=2)
    (folder / "config.json").write_text(content + "\n")
    write_shards(folder, published_tensors(model, family_of(fields["model_type"])))


def published_tensors(model: Network, family: Family) -> Iterator[tuple[str, np.ndarray]]:
    """A network's parameters by their published names, in their published layout."""
    leaves = [(dotted(path), leaf) for path, leaf in nnx.to_flat_state(nnx.state(model))]
    with_prefix = any(path.startswith("backbone.") for path, _ in leaves)
    for path, leaf in leaves:
        name = family.published_name(path, with_prefix=with_prefix)
        yield name, family.to_published(path, np.asarray(leaf[...]))


def write_shards(folder: Path, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    """model.safetensors, or shards of 5 GB with an index; holds one shard in memory."""
    shard: dict[str, np.ndarray] = {}
    shards: list[list[str]] = []
    total = 0

    def write() -> None:
        save_file(shard, folder / f"{len(shards)}.partial", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > LARGEST_SHARD_BYTES:
            write()
        shard[name] = np.asarray(tensor, order="C")
        total += tensor.nbytes
    write()
    if len(shards) == 1:
        os.replace(folder / "0.partial", folder / "model.safetensors")
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        os.replace(folder / f"{number}.partial", folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _fields_of(fields: dict, model: Network) -> dict:
    """config.json of the base, with what the parameters are now: their type, the head's own."""
    kinds = {str(leaf[...].dtype) for _, leaf in nnx.to_flat_state(nnx.state(model))}
    names = [name for name in ("dtype", "torch_dtype") if name in fields] or ["dtype"]
    fields = fields | dict.fromkeys(names, kinds.pop() if len(kinds) == 1 else "float32")
    if "vocab_size" in fields:
        fields["vocab_size"] = model.config.vocab_size
    untied = getattr(model.config, "tie_word_embeddings", True) is False
    # T5's field says whether outputs are scaled before the head; that the head is there and another
    # than the table says that they are not tied.
    if untied and not getattr(model.config, "scale_decoder_outputs", False):
        fields["tie_word_embeddings"] = False
    return fields


def refuse_another(model: Network, reloaded: Network) -> None:
    """Refuses what was loaded again unless it has the same parameters under the same config.

    Raises:
        ValueError: names what differs.
    """
    leaves, again = (dict(nnx.to_flat_state(nnx.state(network))) for network in (model, reloaded))
    different = [
        dotted(path)
        for path, leaf in leaves.items()
        if path not in again or not np.array_equal(np.asarray(again[path][...]), leaf[...])
    ]
    configs = [with_dropout(network.config, 0.0) for network in (model, reloaded)]
    different += [
        f"config.{field.name}"
        for field in dataclasses.fields(model.config)
        if len({getattr(config, field.name) for config in configs}) > 1
    ]
    if different or len(again) != len(leaves):
        raise ValueError(
            "The export does not load as the same network; it differs in "
            f"{', '.join(different[:10])}. It was not kept."
        )


def compute_of(model: Network) -> Compute:
    """How a network is computed, its parameters of the type they have now."""
    kinds = {leaf[...].dtype for _, leaf in nnx.to_flat_state(nnx.state(model))}
    kind = kinds.pop() if len(kinds) == 1 else jnp.float32
    return dataclasses.replace(model.compute, param_dtype=kind)
