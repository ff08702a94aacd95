"""From a checkpoint folder to a module: built abstractly, then filled tensor by tensor."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from ftjax.models import family_of
from ftjax.models.family import Family
from ftjax.models.layers import Compute

Placement = Callable[[str, np.ndarray], jax.Array]


class Checkpoint:
    """The tensors of a folder's safetensors file or files, read one at a time.

    Attributes:
        folder: where config.json stands.
        fields: the content of config.json.
        files: tensor name -> file that holds it.
    """

    def __init__(self, folder: str | Path):
        """Opens a checkpoint folder without reading tensors.

        Raises:
            FileNotFoundError: no config.json, no weights, or a missing shard.
            ValueError: only pickled weights, or a damaged file.
        """
        self.folder = Path(folder)
        self.fields = read_config(self.folder)
        self.files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in _weight_files(self.folder):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if name in self.files:
                        raise ValueError(
                            f"{self.folder}: {name} is in {self.files[name].name} and {path.name}."
                        )
                    self.files[name] = path
                    self._shapes[name] = tuple(file.get_slice(name).get_shape())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        """One tensor; bfloat16 comes as ml_dtypes.bfloat16."""
        # Opened anew: a file that stays mapped keeps all its pages in this process's memory.
        with _opened(self.files[name]) as file:
            return file.get_tensor(name)


def load_model(
    folder: str | Path,
    network: str = "backbone",
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    *,
    accept_fields: tuple[str, ...] = (),
    dropout: float | None = None,
    place: Placement | None = None,
) -> nnx.Module:
    """A published network, filled with its published weights.

    Args:
        folder: config.json and safetensors (one file, or shards with an index).
        network: which of the family's networks ("backbone", "masked_lm", "causal_lm", ...).
        compute: dtypes, rematerialisation; parameters are cast to `compute.param_dtype`.
        accept_fields: unknown fields of config.json to ignore.
        dropout: all dropout rates inside the network; the published ones if None.
        place: (path, tensor) -> array on the devices it shall live on; default device by default.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: unknown model_type or config field, pickled weights, NaN or Inf in a tensor; or
            tensors missing, surplus or of another shape, all of them in one list.
    """
    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.fields.get("model_type"))
    build = _builder(checkpoint, family, network, compute, accept_fields, dropout)
    model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    fill(model, checkpoint, family, compute.param_dtype, place)
    return model


def random_model(
    folder: str | Path,
    network: str,
    compute: Compute,
    key: jax.Array,
    *,
    accept_fields: tuple[str, ...] = (),
    dropout: float | None = None,
) -> nnx.Module:
    """The network that `load_model` gives, newly initialised; see there."""
    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.fields.get("model_type"))
    build = _builder(checkpoint, family, network, compute, accept_fields, dropout)
    return build(rngs=nnx.Rngs(params=key))


def _builder(
    checkpoint: Checkpoint,
    family: Family,
    network: str,
    compute: Compute,
    accept_fields: tuple[str, ...],
    dropout: float | None,
) -> Callable[..., nnx.Module]:
    """What makes the network when called with `rngs`."""
    config = family.parse_config(checkpoint.fields, accept=accept_fields)
    if hasattr(config, "tie_word_embeddings") and _has_untied_copy(checkpoint, family):
        config = dataclasses.replace(config, tie_word_embeddings=False)
    if dropout is not None:
        config = with_dropout(config, dropout)
    if network not in family.networks:
        raise ValueError(
            f"{checkpoint.folder}: the family {family.model_type} has no network {network!r}; "
            f"it has {', '.join(sorted(family.networks))}."
        )
    return functools.partial(family.networks[network], config, compute)


def with_dropout(config: Any, rate: float) -> Any:
    """A family's config, and the configs inside it, with all dropout rates set to one."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_dropout(value, rate)
        elif re.search(r"dropout|_pdrop$", field.name) and isinstance(field.default, float):
            changes[field.name] = rate
    return dataclasses.replace(config, **changes)


def fill(
    model: nnx.Module,
    checkpoint: Checkpoint,
    family: Family,
    param_dtype: Any = jnp.float32,
    place: Placement | None = None,
) -> None:
    """Replaces the abstract parameters of `model` by the checkpoint's, leaf by leaf.

    Raises:
        ValueError: as for `load_model`.
    """
    place = place or (lambda path, tensor: jnp.asarray(tensor))
    state = nnx.state(model)
    leaves = dict(nnx.to_flat_state(state))
    names = match_names(
        {dotted(path): leaf.shape for path, leaf in leaves.items()}, checkpoint, family
    )
    damaged = []
    for path, leaf in leaves.items():
        name = names[dotted(path)]
        if name not in checkpoint.files:
            zeros = np.zeros(leaf.shape, jnp.dtype(param_dtype))
            leaf.set_value(place(dotted(path), zeros))
            continue
        tensor = checkpoint.read(name)
        if not np.isfinite(tensor.astype(np.float32, copy=False)).all():
            damaged.append(name)
        if damaged:
            # There will be no network: the rest is only looked at, to name all that is damaged.
            continue
        tensor = family.to_ours(dotted(path), tensor).astype(param_dtype, copy=False)
        leaf.set_value(place(dotted(path), tensor))
    if damaged:
        shown = ", ".join(damaged[:5]) + (" ..." if len(damaged) > 5 else "")
        raise ValueError(
            f"{checkpoint.folder}: {len(damaged)} of {len(leaves)} tensors hold NaN or Inf "
            f"({shown}); the file is damaged or was saved from a diverged run."
        )
    nnx.update(model, state)


def match_names(
    shapes: dict[str, tuple[int, ...]], checkpoint: Checkpoint, family: Family
) -> dict[str, str]:
    """Which published tensor fills which parameter.

    Args:
        shapes: parameter path -> shape of the network to fill.
        checkpoint: the opened checkpoint.
        family: its family.

    Raises:
        ValueError: lists every tensor that is missing, surplus or of another shape.
    """
    with_prefix = bool(family.prefix) and any(
        name.startswith(family.prefix) for name in checkpoint.files
    )
    inside = any(path.startswith("backbone.") for path in shapes)
    names, problems = {}, []
    for path, shape in shapes.items():
        full = path if inside else f"backbone.{path}"
        name = family.published_name(full, with_prefix=with_prefix)
        name = names[path] = _stored_name(checkpoint, family, name)
        if name not in checkpoint.files:
            if any(re.fullmatch(pattern, name) for pattern in family.zeros):
                continue
            problems.append(f"  missing: {name} (for {path} {list(shape)})")
            continue
        found = checkpoint.shape(name)
        expected = family.to_published(path, np.broadcast_to(np.False_, shape)).shape
        if tuple(found) != tuple(expected):
            problems.append(f"  shape: {name} is {list(found)}, expected {list(expected)}")

    def bare(name: str) -> str:
        return name.removeprefix(family.prefix) if with_prefix else name

    # A head may be left behind whole, but not in part.
    taken = [bare(name) for name in names.values()]
    heads = [p for p in family.heads if not any(re.fullmatch(p, name) for name in taken)]
    excused = (*heads, *family.buffers)
    for name in sorted(set(checkpoint.files) - set(names.values())):
        if _is_equal_copy(checkpoint, family, name):
            continue
        if not any(re.fullmatch(pattern, bare(name)) for pattern in excused):
            problems.append(f"  surplus: {name} {list(checkpoint.shape(name))}")
    if problems:
        raise ValueError(
            f"{checkpoint.folder} does not fit the {family.model_type} network that its "
            f"config.json describes ({len(problems)} tensors):\n" + "\n".join(problems)
        )
    return names


def _stored_name(checkpoint: Checkpoint, family: Family, name: str) -> str:
    """A tensor's name in the file, or that of one it is tied to: of these a file may have any."""
    original = family.tied.get(name, name)
    copies = [copy for copy, of in family.tied.items() if of == original]
    # As BERT's first checkpoints have it, and their files still do.
    older = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    older = older.replace("LayerNorm.bias", "LayerNorm.beta")
    names = (name, original, *copies, older)
    return next((other for other in names if other in checkpoint.files), name)


def _has_untied_copy(checkpoint: Checkpoint, family: Family) -> bool:
    """Whether tensors that the config ties are both there and differ: then they are not tied."""
    return any(
        {name, original} <= checkpoint.files.keys() and not _is_equal_copy(checkpoint, family, name)
        for name, original in family.tied.items()
    )


def _is_equal_copy(checkpoint: Checkpoint, family: Family, name: str) -> bool:
    """Whether a tensor is there although it only repeats the one that the config ties it to."""
    if name not in family.tied:
        return False
    original = _stored_name(checkpoint, family, family.tied[name])
    return checkpoint.shape(name) == checkpoint.shape(original) and np.array_equal(
        checkpoint.read(name), checkpoint.read(original)
    )


def dotted(path: tuple) -> str:
    """An NNX path as one string: ('layers', 0, 'kernel') -> 'layers.0.kernel'."""
    return ".".join(str(part) for part in path)


def read_config(folder: str | Path) -> dict:
    """The content of a checkpoint's config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json; a checkpoint folder has config.json and *.safetensors."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / Path(shard).name for shard in shards]
        for path in files:
            if not path.is_file():
                raise FileNotFoundError(f"{index} names the shard {path.name}, which is missing.")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(
        path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)
    )
    if pickles:
        raise ValueError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which can run code when "
            "read. Convert them once where torch is installed and you trust the file: python -c "
            '"import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in '
            f"torch.load('{pickles[0]}', weights_only=True).items()}}, 'model.safetensors')\""
        )
    raise FileNotFoundError(
        f"{folder} holds no model.safetensors and no model.safetensors.index.json."
    )


def _opened(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}); download it again."
        ) from error
