"""Low-rank adaptation and its relatives: a frozen kernel, and two thin matrices beside it.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685), rank-stabilised LoRA (Kalajdzievski 2023,
2312.03732), LoRA+ (Hayou et al. 2024, 2402.12354), DoRA (Liu et al. 2024, 2402.09353), PiSSA (Meng
et al. 2024, 2404.02948) and QLoRA (Dettmers et al. 2023, 2305.14314). Reference: peft.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.fields import Field, Fields
from ftjax.models.dropout import dropout
from ftjax.models.layers import Constant, matmul_2d
from ftjax.tuning.adapted import AdaptedEmbed, AdaptedLinear, QuantizedLinear
from ftjax.tuning.masks import is_new
from ftjax.tuning.method import IN_NETWORK, TARGETS, Method
from ftjax.tuning.targets import ROLES, find_targets, modules_of, replace_module

ROLES_OF_LORA = ("query", "value", "query_key_value")
ROLES_OF_QLORA = tuple(ROLES)
LEAVES = ("lora_a", "lora_b", "magnitude")

RANK: Fields = {
    "tuning.rank": Field(8, "Of the adapters.", minimum=1),
    "tuning.dropout": Field(0.0, "Of the adapters' inputs.", minimum=0.0, below=1.0),
}
FIELDS: Fields = {
    **IN_NETWORK,
    **TARGETS,
    **RANK,
    "tuning.alpha": Field(
        16.0, "Adapters are scaled by alpha / rank (rslora: by its root).", above=0.0
    ),
    "tuning.rank_pattern": Field((), "Ranks of some layers, as 'regex=rank'.", items=str),
    "tuning.alpha_pattern": Field((), "Alphas of some layers, as 'regex=alpha'.", items=str),
}
LORA_PLUS: Fields = {
    "tuning.learning_rate_ratio": Field(16.0, "B's learning rate relative to A's.", above=0.0)
}
QLORA: Fields = {
    "tuning.quantization": Field(
        "nf4", "Bits of the frozen weights.", choices=("int8", "int4", "nf4")
    )
}


@dataclasses.dataclass(frozen=True)
class LowRank:
    """How one layer is adapted.

    Attributes:
        rank: columns of A.
        scale: what A B is multiplied by.
        dropout_rate: of the inputs of A.
    """

    rank: int
    scale: float
    dropout_rate: float


class LoraLinear(AdaptedLinear):
    """x W + b + scale * dropout(x) A B, B zero at first.

    Attributes:
        lora_a: [in, rank].
        lora_b: [rank, out].
    """

    def __init__(
        self, layer: nnx.Linear, how: LowRank, key: jax.Array, quantization: str | None = None
    ):
        super().__init__(layer, quantization)
        self.how = how
        # torch's default for linear layers, and so peft's: uniform, variance 1 / (3 in).
        bound = self.in_features**-0.5
        shape = (self.in_features, how.rank)
        self.lora_a = nnx.Param(jax.random.uniform(key, shape, minval=-bound, maxval=bound))
        self.lora_b = nnx.Param(jnp.zeros((how.rank, self.out_features)))

    def low_rank(self, x: jax.Array) -> jax.Array:
        """scale * dropout(x) A B."""
        x = dropout(x.astype(self.dtype), self.how.dropout_rate, self.key())
        thin = matmul_2d(x, self.lora_a[...].astype(self.dtype))
        wide = matmul_2d(thin, self.lora_b[...].astype(self.dtype))
        return wide * jnp.asarray(self.how.scale, self.dtype)

    def delta(self) -> jax.Array:
        """scale * A B, float32 [in, out]."""
        a, b = (leaf[...].astype(jnp.float32) for leaf in (self.lora_a, self.lora_b))
        return self.how.scale * jnp.matmul(a, b, precision="highest")

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        return self.base(x) + self.low_rank(x)

    def merged_kernel(self) -> jax.Array:
        """W + scale * A B."""
        return self.base_kernel() + self.delta()


class DoraLinear(LoraLinear):
    """Each output's weights as a direction, W + scale * A B, and a magnitude of its own.

    Attributes:
        magnitude: [out], at first the norms of W's columns.
    """

    def __init__(
        self, layer: nnx.Linear, how: LowRank, key: jax.Array, quantization: str | None = None
    ):
        super().__init__(layer, how, key, quantization)
        self.magnitude = nnx.Param(jnp.linalg.norm(self.base_kernel(), axis=0))

    def stretch(self) -> jax.Array:
        """Magnitude over norm, float32 [out]; the norm has no gradient (section 4.3)."""
        norm = jnp.linalg.norm(jax.lax.stop_gradient(self.base_kernel() + self.delta()), axis=0)
        return self.magnitude[...].astype(jnp.float32) / norm

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        x = x.astype(self.dtype)
        dropped = dropout(x, self.how.dropout_rate, self.key())
        y = matmul_2d(dropped, self.base_kernel(self.dtype))
        return self.with_bias((y + self.low_rank(x)) * self.stretch().astype(self.dtype))

    def merged_kernel(self) -> jax.Array:
        """(W + scale * A B) * magnitude / norm."""
        return (self.base_kernel() + self.delta()) * self.stretch()


class PissaLinear(LoraLinear):
    """LoRA that begins with the kernel's principal part, and a kernel without it.

    The sum is the kernel that was; what moves are its largest singular directions.

    Attributes:
        start_a: A at the start: with `start_b`, what the published kernel has more than this one.
        start_b: B at the start.
    """

    def __init__(
        self, layer: nnx.Linear, how: LowRank, key: jax.Array, quantization: str | None = None
    ):
        super().__init__(layer, how, key)
        kernel = layer.kernel[...].astype(jnp.float32)
        left, values, right = jnp.linalg.svd(kernel, full_matrices=False)
        root = jnp.sqrt(values[: how.rank] / how.scale)
        self.lora_a = nnx.Param(left[:, : how.rank] * root)
        self.lora_b = nnx.Param(root[:, None] * right[: how.rank])
        self.start_a, self.start_b = Constant(self.lora_a[...]), Constant(self.lora_b[...])
        self.kernel = nnx.Param((kernel - self.delta()).astype(layer.kernel.dtype))


class LoraEmbed(AdaptedEmbed):
    """An embedding table and two thin matrices beside it; a head tied to the table stays as it is.

    Attributes:
        lora_a: [rows, rank], zero at first, as in peft.
        lora_b: [rank, features].
    """

    def __init__(self, layer: nnx.Embed, how: LowRank, key: jax.Array):
        super().__init__(layer)
        self.how = how
        self.lora_a = nnx.Param(jnp.zeros((self.num_embeddings, how.rank)))
        self.lora_b = nnx.Param(jax.random.normal(key, (how.rank, self.features)))

    def look_up(self, ids: jax.Array) -> jax.Array:
        """Int [...] -> [..., features]."""
        thin = self.lora_a[...][ids].astype(self.dtype)
        wide = matmul_2d(thin, self.lora_b[...].astype(self.dtype))
        return super().look_up(ids) + wide * jnp.asarray(self.how.scale, self.dtype)

    def head_table(self) -> jax.Array:
        """The published table, without A B: so it is in peft."""
        return self.embedding[...]

    def merged_table(self) -> jax.Array:
        """table + scale * A B."""
        return super().merged_table() + self.how.scale * self.lora_a[...] @ self.lora_b[...]


def lora(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Low-rank adapters on queries and values, or where `settings.targets` says.

    Raises:
        ValueError: no target, or a rank above a layer's dimensions.
    """
    return _add(network, settings, key, LoraLinear, embeddings=True)


def rslora(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """LoRA scaled by alpha / sqrt(rank), so that a high rank does not learn more slowly."""
    return _add(network, settings, key, LoraLinear, embeddings=True, root=True)


def lora_plus(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """LoRA whose B learns faster than A (Hayou et al. 2024, https://arxiv.org/abs/2402.12354)."""
    return lora(network, settings, key)


def lora_plus_rate(path: str, settings: Any) -> float:
    """`learning_rate_ratio` for B."""
    return settings.learning_rate_ratio if path.rpartition(".")[2] == "lora_b" else 1.0


def dora(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Weights as magnitude and direction, the direction adapted by LoRA."""
    return _add(network, settings, key, DoraLinear)


def pissa(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """LoRA on the principal singular directions; the output at the start is unchanged."""
    return _add(network, settings, key, PissaLinear)


def qlora(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """All linear layers of the blocks in few bits, LoRA on all of them or on `settings.targets`.

    A step of SmolLM2-135M (4x128 tokens, blocks recomputed in a loop) needs 574 MB, of which 202 MB
    are arguments; LoRA on the same layers 1,251 MB, full fine-tuning 2,819 MB
    (`python scripts/benchmark.py --parts=memory`, AMD EPYC, jax 0.10.2, 2026-11-23). Without
    `model.scan_layers`, XLA for CPU keeps all dequantised kernels at once, and it saves little.
    """
    predicate = _add(
        network,
        settings,
        key,
        LoraLinear,
        roles=ROLES_OF_QLORA,
        quantization=settings.quantization,
    )
    blocks = "|".join(f"({ROLES[role]})" for role in ROLES)
    for path, layer in modules_of(network, nnx.Linear).items():
        if re.fullmatch(blocks, path):
            replace_module(network, path, QuantizedLinear(layer, settings.quantization))
    return predicate


def _add(
    network: nnx.Module,
    settings: Any,
    key: jax.Array,
    adapter: type[LoraLinear],
    *,
    roles: Sequence[str] = ROLES_OF_LORA,
    embeddings: bool = False,
    root: bool = False,
    quantization: str | None = None,
) -> Callable[[str], bool]:
    kinds = (nnx.Linear, nnx.Embed) if embeddings else nnx.Linear
    targets = find_targets(network, settings.targets, roles, kinds)
    ranks = _by_pattern(targets, settings.rank_pattern, settings.rank, "rank_pattern")
    alphas = _by_pattern(targets, settings.alpha_pattern, settings.alpha, "alpha_pattern")
    for index, (path, layer) in enumerate(targets.items()):
        rank = int(ranks[path])
        shape = (layer.kernel if isinstance(layer, nnx.Linear) else layer.embedding).shape
        if rank > min(shape):
            raise ValueError(
                f"config.tuning.rank = {rank} is above the smaller dimension of {path}, which is "
                f"{shape[0]} x {shape[1]}. Lower it, or use rank_pattern for this layer."
            )
        how = LowRank(rank, alphas[path] / (rank**0.5 if root else rank), settings.dropout)
        layer_key = jax.random.fold_in(key, index)
        if isinstance(layer, nnx.Embed):
            replace_module(network, path, LoraEmbed(layer, how, layer_key))
        else:
            replace_module(network, path, adapter(layer, how, layer_key, quantization))
    return lambda path: is_new(path) or path.rpartition(".")[2] in LEAVES


def _by_pattern(
    targets: dict[str, Any], patterns: Sequence[str], default: float, field: str
) -> dict[str, float]:
    """Path -> the number of the first pattern (`regex=number`) that fits it, or the default.

    Raises:
        ValueError: a pattern without a number, or one that fits no target.
    """
    values = dict.fromkeys(targets, default)
    for pattern in reversed(patterns):
        expression, _, number = pattern.rpartition("=")
        fits = [path for path in targets if expression and re.fullmatch(expression, path)]
        if not fits or not re.fullmatch(r"\d+(\.\d+)?", number) or float(number) <= 0:
            raise ValueError(
                f"config.tuning.{field}: {pattern!r} must be a regular expression that matches "
                f"whole paths of targets, '=', and a number above 0. The targets: "
                f"{', '.join(list(targets)[:4])}, ..."
            )
        values |= dict.fromkeys(fits, float(number))
    return values


METHODS = {
    "lora": Method(lora, FIELDS),
    "rslora": Method(rslora, FIELDS),
    "lora_plus": Method(lora_plus, {**FIELDS, **LORA_PLUS}, lora_plus_rate),
    "dora": Method(dora, FIELDS),
    "pissa": Method(pissa, FIELDS),
    "qlora": Method(qlora, {**FIELDS, **QLORA}),
}
