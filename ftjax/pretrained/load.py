"""From a checkpoint folder to a module: built abstractly, then filled tensor by tensor."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models import family_of
from ftjax.models.family import Family
from ftjax.models.layers import Compute, Network
from ftjax.models.schema import depth
from ftjax.pretrained.checkpoint import Checkpoint

Placement = Callable[[str, np.ndarray], jax.Array]


def load_model(
    folder: str | Path | Checkpoint,
    network: str = "backbone",
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    *,
    accept_fields: tuple[str, ...] = (),
    dropout: float | None = None,
    rows: int | None = None,
    place: Placement | None = None,
    say: Callable[[str], None] | None = None,
) -> Network:
    """A published network, filled with its published weights.

    Args:
        folder: config.json and safetensors (one file, or shards with an index), or those opened.
        network: which of the family's networks ("backbone", "masked_lm", "causal_lm", ...).
        compute: dtypes, rematerialisation; parameters are cast to `compute.param_dtype`.
        accept_fields: unknown fields of config.json to ignore.
        dropout: all dropout rates inside the network; the published ones if None.
        rows: what the token table grows to, where it has fewer; new rows, also of the head, are
            the mean of those there are, as transformers' `resize_token_embeddings` has it.
        place: (path, tensor) -> array on the devices it shall live on; default device by default.
        say: called with sentences for a person: fields that were passed over, a head that is not
            used, parts that see images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: unknown model_type or config field, pickled weights, NaN or Inf in a tensor; or
            tensors missing, surplus or of another shape, all of them in one list.
    """
    checkpoint = folder if isinstance(folder, Checkpoint) else Checkpoint(folder)
    family = family_of(checkpoint.fields["model_type"])
    build = _builder(checkpoint, family, network, compute, accept_fields, dropout, say)
    model: Network = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    fill(model, checkpoint, family, compute.param_dtype, place)
    if say is not None:
        for sentence in _left(checkpoint):
            say(sentence)
    if rows is not None and rows > model.config.vocab_size:
        config = dataclasses.replace(model.config, vocab_size=rows)
        grown = functools.partial(family.networks[network], config, compute)
        return _grown(model, nnx.eval_shape(lambda: grown(rngs=nnx.Rngs(0))))
    return model


def _left(checkpoint: Checkpoint) -> Iterator[str]:
    """Sentences on what of a checkpoint was not loaded."""
    if checkpoint.wrapper is not None:
        parts = {name.removeprefix("model.").split(".")[0] for name in checkpoint.other_parts}
        yield (
            f"{checkpoint.folder}: of this {checkpoint.wrapper} its language model "
            f"({checkpoint.fields['model_type']}) is loaded; its other parts were left behind: "
            f"{', '.join(sorted(parts)) or 'none'}."
        )
    if names := checkpoint.left_behind:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield f"{checkpoint.folder}: a head that is not used was left behind: {shown}."


def random_model(
    folder: str | Path,
    network: str,
    compute: Compute,
    key: jax.Array,
    *,
    accept_fields: tuple[str, ...] = (),
    dropout: float | None = None,
) -> Network:
    """The network that `load_model` gives, newly initialised; see there."""
    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.fields["model_type"])
    build = _builder(checkpoint, family, network, compute, accept_fields, dropout)
    return build(rngs=nnx.Rngs(params=key))


def _grown(small: Network, large: Network) -> Network:
    """The abstract larger network, filled from the smaller one."""
    values, state = dict(nnx.to_flat_state(nnx.state(small))), nnx.state(large)
    for path, leaf in nnx.to_flat_state(state):
        value = values[path][...]
        for axis, (old, new) in enumerate(zip(value.shape, leaf.shape, strict=True)):
            if new > old:
                mean = jnp.mean(value.astype(jnp.float32), axis, keepdims=True)
                more = jnp.repeat(mean.astype(value.dtype), new - old, axis)
                value = jnp.concatenate([value, more], axis)
        leaf.set_value(value)
    nnx.update(large, state)
    return large


def _builder(
    checkpoint: Checkpoint,
    family: Family,
    network: str,
    compute: Compute,
    accept_fields: tuple[str, ...],
    dropout: float | None,
    say: Callable[[str], None] | None = None,
) -> Callable[..., Network]:
    """What makes the network when called with `rngs`."""
    config = family.parse_config(checkpoint.fields, accept=accept_fields, say=say)
    if depth(config) > len(checkpoint.files):
        raise ValueError(
            f"{checkpoint.folder}: config.json announces {depth(config)} layers, but there are "
            f"only {len(checkpoint.files)} tensors; one of the two is damaged."
        )
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
    model: Network,
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
    published = {
        path: family.published_name(path if inside else f"backbone.{path}", with_prefix=with_prefix)
        for path in shapes
    }
    wanted = frozenset(published.values())
    names, problems = {}, []
    for path, shape in shapes.items():
        name = names[path] = _stored_name(checkpoint, family, published[path], wanted)
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
        if any(re.fullmatch(pattern, bare(name)) for pattern in heads):
            checkpoint.left_behind.append(name)
        if not any(re.fullmatch(pattern, bare(name)) for pattern in excused):
            problems.append(f"  surplus: {name} {list(checkpoint.shape(name))}")
        for pattern, formula in family.derived.items():
            if re.fullmatch(pattern, bare(name)) and not _holds(checkpoint, name, formula):
                problems.append(f"  other numbers: {name} holds not what {formula.__name__} gives")
    if problems:
        raise ValueError(
            f"{checkpoint.folder} does not fit the {family.model_type} network that its "
            f"config.json describes ({len(problems)} tensors):\n" + "\n".join(problems)
        )
    return names


def _stored_name(
    checkpoint: Checkpoint, family: Family, name: str, wanted: frozenset[str] = frozenset()
) -> str:
    """A tensor's name in the file, or that of one it is tied to: of these a file may have any.

    Not of one that is wanted for another parameter, nor of its copies: the two are then not tied.
    Of a bias the copy comes first: beside a tied table it is what transformers adds.
    """
    original = family.tied.get(name, name)
    copies = [copy for copy, of in family.tied.items() if of == original]
    if name != original and original in wanted:
        copies = []
    # As BERT's first checkpoints have it, and their files still do.
    older = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    older = older.replace("LayerNorm.bias", "LayerNorm.beta")
    others = [other for other in (original, *copies) if other not in wanted]
    copies_first = name == original and _is_vector(checkpoint, name)
    names = [*others, name, older] if copies_first else [name, *others, older]
    return next((other for other in names if other in checkpoint.files), name)


def _has_untied_copy(checkpoint: Checkpoint, family: Family) -> bool:
    """Whether a table that the config ties is there and no copy: then it is not tied.

    A head is compared with whichever of its copies the file has; the tables of an encoder and a
    decoder with two vocabularies are no copies of each other.
    """
    for name in family.tied.keys() & checkpoint.files.keys():
        if _is_vector(checkpoint, name):
            continue
        original = family.tied[name]
        others = [original]
        if any(re.fullmatch(pattern, name) for pattern in family.heads):
            others += [copy for copy, of in family.tied.items() if of == original and copy != name]
        others = [other for other in others if other in checkpoint.files]
        if others and not any(_are_equal(checkpoint, name, other) for other in others):
            return True
    return False


def _is_equal_copy(checkpoint: Checkpoint, family: Family, name: str) -> bool:
    """Whether a tensor is there although it only repeats the one that the config ties it to."""
    if name not in family.tied:
        return False
    original = _stored_name(checkpoint, family, family.tied[name])
    return _are_equal(checkpoint, name, original)


def _is_vector(checkpoint: Checkpoint, name: str) -> bool:
    return name in checkpoint.files and len(checkpoint.shape(name)) == 1


def _holds(checkpoint: Checkpoint, name: str, formula: Callable[..., np.ndarray]) -> bool:
    """Whether a tensor is what a formula gives, up to half precision."""
    tensor = checkpoint.read(name).astype(np.float32)
    return np.allclose(tensor, formula(*tensor.shape), atol=5e-3)


def _are_equal(checkpoint: Checkpoint, name: str, other: str) -> bool:
    return checkpoint.shape(name) == checkpoint.shape(other) and np.array_equal(
        checkpoint.read(name), checkpoint.read(other)
    )


def dotted(path: tuple) -> str:
    """An NNX path as one string: ('layers', 0, 'kernel') -> 'layers.0.kernel'."""
    return ".".join(str(part) for part in path)
