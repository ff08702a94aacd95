"""What two or more families share: how a network is computed, activations, the stack of blocks."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from ftjax.models.dropout import split_key
from ftjax.models.schema import OneOf


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network is computed; none of it changes what is computed beyond rounding.

    Attributes:
        dtype: of activations and matrix products.
        param_dtype: of the stored parameters.
        remat: what the backward pass recomputes instead of keeping: "none", every "block" (keeps
            block inputs only), or "dots" (keeps the results of matrix products only). On a CPU it
            saves memory with `scan_layers` alone: XLA's CPU compiler merges what unrolled blocks
            recompute with what they computed before.
        scan_layers: compile one block and scan it over the stacked parameters of equal blocks: the
            compile time of a deep network falls to that of one block, for a copy of the blocks'
            parameters at each call.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Literal["none", "block", "dots"] = "none"
    scan_layers: bool = False


# A network, or a part of one. nnx declares no attributes, and a family has its published ones.
Network = Any


class Output(NamedTuple):
    """What a backbone returns. Under jit, what is not used costs nothing.

    Attributes:
        last_hidden_state: [batch, length, hidden], after the final norm if the family has one.
        hidden_states: one [batch, length, hidden] per block plus the embeddings, in the order and
            with the contents of transformers' `output_hidden_states`.
        pooled: [batch, hidden] where the network has a pooler, else None.
        logits: [batch, length, vocabulary] or [batch, classes] where the network has a head.
        cache: updated key/value cache when one was passed, else None.
    """

    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] = ()
    pooled: Any = None
    logits: Any = None
    cache: Any = None


# Names as config.json has them. "gelu" is the exact one; the others say how they approximate it.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_python": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_fast": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_10": lambda x: jnp.clip(jax.nn.gelu(x, approximate=False), -10, 10),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "hardswish": jax.nn.hard_swish,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
Activation = Annotated[str, OneOf(ACTIVATIONS)]


def require(field: str, value: Any, allowed: Sequence) -> None:
    """Refuses a config value that is not implemented.

    Raises:
        ValueError: names the field, the value and what is allowed.
    """
    if value not in allowed:
        choices = ", ".join(repr(item) for item in allowed)
        raise ValueError(f"config.json: {field} = {value!r} is not implemented; known: {choices}.")


def require_heads_divide(size_field: str, size: int, heads_field: str, heads: int) -> None:
    """Refuses a width that the attention heads cannot share equally.

    Raises:
        ValueError: names both fields and values.
    """
    if heads < 1 or size % heads:
        raise ValueError(
            f"config.json: {size_field} = {size} is no multiple of {heads_field} = {heads}."
        )


def embed(
    table: Callable[[jax.Array], jax.Array],
    input_ids: jax.Array | None,
    inputs_embeds: jax.Array | None,
) -> jax.Array:
    """The embeddings that a network reads: those given, or the table's.

    Args:
        table: int [batch, length] -> [batch, length, hidden].
        input_ids: int [batch, length], or None.
        inputs_embeds: [batch, length, hidden], or None.

    Raises:
        ValueError: both are None.
    """
    if inputs_embeds is not None:
        return inputs_embeds
    if input_ids is None:
        raise ValueError("Give the network input_ids, or inputs_embeds in their place.")
    return table(input_ids)


def require_positions(
    length: int, positions: int | None, position_ids: jax.Array | None = None
) -> None:
    """Refuses a row that has no positions for its tokens: beyond a table of them, it would be NaN.

    Args:
        length: tokens of the row.
        positions: how many there are, None for any number.
        position_ids: int [batch, length], if they are given; of no more use while tracing, when
            they are not known.

    Raises:
        ValueError: names both lengths, or the position.
    """
    if positions is None:
        return
    if length > positions:
        raise ValueError(
            f"A row of {length} tokens does not fit the {positions} positions of this network; "
            "shorten the texts (config.data.buckets or max_length) or use fewer virtual tokens."
        )
    if position_ids is not None and not isinstance(position_ids, Tracer):
        least, most = int(np.min(position_ids, initial=0)), int(np.max(position_ids, initial=0))
        if least < 0 or most >= positions:
            raise ValueError(
                f"position_ids has {least if least < 0 else most}; this network has the positions "
                f"0 to {positions - 1}."
            )


def matmul_2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., in] @ [in, out] -> [..., out], the product taken in two dimensions.

    The gradient of a product in three or more is written by JAX with the long side last, and XLA on
    CPU computes the activation before it a second time while copying it transposed.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Linear(nnx.Linear):
    """A linear layer whose product is taken in two dimensions (`matmul_2d`)."""

    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[..., in] -> [..., out]."""
        y = matmul_2d(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Embed(nnx.Embed):
    """A table of embeddings; the product of a head tied to it is taken in two dimensions, too."""

    def attend(self, query: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[..., features] -> the scores of all rows, [..., rows]."""
        return matmul_2d(query.astype(self.dtype), self.embedding[...].astype(self.dtype).T)


def linear(
    inputs: int,
    outputs: int,
    compute: Compute,
    *,
    rngs: nnx.Rngs,
    bias: bool = True,
    kernel_init: nnx.Initializer = nnx.initializers.normal(0.02),  # noqa: B008 (a pure function)
):
    """A dense layer: kernel [inputs, outputs], normal(0, 0.02) as BERT and GPT-2 initialise."""
    return Linear(
        inputs,
        outputs,
        use_bias=bias,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        kernel_init=kernel_init,
        rngs=rngs,
    )


def published_init(config: Any) -> nnx.Initializer:
    """How transformers initialises a kernel: normal(0, `initializer_range`), 0.02 if unsaid."""
    return nnx.initializers.normal(config.initializer_range or 0.02)


def embedding(rows: int, features: int, compute: Compute, *, rngs: nnx.Rngs):
    """A table [rows, features], normal(0, 0.02)."""
    return Embed(
        rows,
        features,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        embedding_init=nnx.initializers.normal(0.02),
        rngs=rngs,
    )


def layer_norm(
    features: int, epsilon: float, compute: Compute, *, rngs: nnx.Rngs, bias: bool = True
):
    """LayerNorm (Ba et al. 2016); mean and variance in float32, in two passes as torch has them."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_bias=bias,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        use_fast_variance=False,
        rngs=rngs,
    )


def rms_norm(features: int, epsilon: float, compute: Compute, *, rngs: nnx.Rngs):
    """RMSNorm (Zhang & Sennrich 2019): no mean, no bias; mean square in float32."""
    return nnx.RMSNorm(
        features,
        epsilon=epsilon,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        rngs=rngs,
    )


class Constant(nnx.Variable):
    """A published tensor that is loaded and saved but never trained (torch's buffers)."""


def apply_blocks(
    blocks: Sequence[nnx.Module],
    hidden: jax.Array,
    call: Callable[[Network, jax.Array, jax.Array | None], jax.Array],
    *,
    key: jax.Array | None,
    compute: Compute,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Runs `hidden = call(block, hidden, key)` over all blocks.

    Args:
        blocks: the blocks in order; with `compute.scan_layers` neighbours of equal structure are
            scanned together.
        hidden: [batch, length, hidden].
        call: applies one block; may close over masks and positions.
        key: random key for dropout, split over the blocks; None for evaluation.
        compute: says what is rematerialised and whether blocks are scanned.

    Returns:
        The last hidden state, and the hidden state before each block and after the last.
    """
    keys = split_key(key, len(blocks))
    states = [hidden]
    for group in _groups(blocks) if compute.scan_layers else _repeats(blocks):
        graphdef, _ = nnx.split(blocks[group[0]])

        def body(state, hidden, key, graphdef=graphdef):
            return call(nnx.merge(graphdef, state), hidden, key)

        body = _rematerialised(body, compute.remat)
        parameters = [nnx.split(blocks[i])[1] for i in group]
        if len(group) == 1:
            hidden = body(parameters[0], hidden, keys[group[0]])
            states.append(hidden)
            continue
        # One block applied again and again, as in ALBERT, needs no copies of itself.
        is_one = all(blocks[i] is blocks[group[0]] for i in group)
        stacked = None if is_one else jax.tree.map(lambda *leaves: jnp.stack(leaves), *parameters)
        group_keys = None if key is None else jnp.stack([keys[i] for i in group])

        def step(hidden, inputs, body=body, only=parameters[0]):
            state, key = inputs
            hidden = body(only if state is None else state, hidden, key)
            return hidden, hidden

        hidden, outputs = jax.lax.scan(step, hidden, (stacked, group_keys), length=len(group))
        states.extend(outputs)
    return hidden, tuple(states)


def _rematerialised(body: Callable, remat: str) -> Callable:
    if remat == "none":
        return body
    policies = {
        "block": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    return jax.checkpoint(body, policy=policies[remat])


def _repeats(blocks: Sequence[nnx.Module]) -> list[list[int]]:
    """Runs of one block applied again and again (ALBERT).

    They are always scanned: XLA compiles the gradient of a block that is unrolled so in a time that
    grows far faster than their number, minutes for twelve.
    """
    runs = itertools.groupby(range(len(blocks)), key=lambda index: id(blocks[index]))
    return [list(run) for _, run in runs]


def _groups(blocks: Sequence[nnx.Module]) -> list[list[int]]:
    """Runs of neighbouring blocks of one structure and one set of shapes."""
    groups: list[list[int]] = []
    previous = None
    for index, block in enumerate(blocks):
        graphdef, state = nnx.split(block)
        structure = (graphdef, jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state))
        if structure == previous:
            groups[-1].append(index)
        else:
            groups.append([index])
        previous = structure
    return groups
