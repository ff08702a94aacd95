"""From a network back to a Hugging Face folder: what loading does, backwards."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from ftjax.models import family_of
from ftjax.models.family import Family
from ftjax.pretrained.compare import Outputs, outputs_on_example, refuse_difference
from ftjax.pretrained.load import Checkpoint, dotted, load_model, with_dropout

LARGEST_SHARD_BYTES = 5 * 10**9

# What a tokenizer, and the terms of use, may consist of.
COPIED = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "chat_template*", "generation_config.json", "preprocessor_config.json"),
    *("LICENSE*", "NOTICE*", "README*"),
)


def export(
    model: nnx.Module,
    name: str,
    base: str | Path,
    folder: str | Path,
    *,
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
        expected: `outputs_on_example` of the network before its adapters were merged; what is
            loaded again must give the same.
        accept_fields: unknown fields of config.json to ignore.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: reloaded, the export is not the same network (it is then not kept).
    """
    base, folder = Path(base), Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another or delete it.")
    fields = Checkpoint(base).fields
    family = family_of(fields["model_type"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / "content"
        new.mkdir()
        for pattern in COPIED:
            for file in base.glob(pattern):
                shutil.copy(file, new / file.name)
        (new / "config.json").write_text(json.dumps(_fields_of(fields, model), indent=2) + "\n")
        write_shards(new, published_tensors(model, family))
        again = _reloaded(model, name, new, accept_fields)
        if expected is not None:
            found = outputs_on_example(again, new)
            refuse_difference(expected, found, model.compute.dtype, "Written and loaded again")
        os.replace(new, folder)


def published_tensors(model: nnx.Module, family: Family) -> Iterator[tuple[str, np.ndarray]]:
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


def _fields_of(fields: dict, model: nnx.Module) -> dict:
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


def _reloaded(
    model: nnx.Module, name: str, folder: Path, accept_fields: tuple[str, ...]
) -> nnx.Module:
    leaves = dict(nnx.to_flat_state(nnx.state(model)))
    kinds = {leaf[...].dtype for leaf in leaves.values()}
    compute = dataclasses.replace(
        model.compute, param_dtype=kinds.pop() if len(kinds) == 1 else jnp.float32
    )
    reloaded = load_model(folder, name, compute, accept_fields=accept_fields)
    again = dict(nnx.to_flat_state(nnx.state(reloaded)))
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
    return reloaded
