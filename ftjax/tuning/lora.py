"""Low-rank adaptation and its relatives: a frozen kernel, and two thin matrices beside it.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685), rank-stabilised LoRA (Kalajdzievski 2023,
2312.03732), LoRA+ (Hayou et al. 2024, 2402.12354), DoRA (Liu et al. 2024, 2402.09353), PiSSA (Meng
et al. 2024, 2404.02948) and QLoRA (Dettmers et al. 2023, 2305.14314). Reference: peft.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.fields import Field, Fields
from ftjax.models.dropout import dropout
from ftjax.models.layers import Constant, Network, matmul_2d
from ftjax.tuning.adapted import AdaptedEmbed, AdaptedLinear, QuantizedLinear
from ftjax.tuning.adapter_form import LayerForm, Shared, Tensors, require_shape, require_tensors
from ftjax.tuning.masks import is_new
from ftjax.tuning.method import IN_NETWORK, TARGETS, Method
from ftjax.tuning.peft_settings import (
    HARMLESS,
    NOT_IMPLEMENTED,
    TARGETED,
    Setting,
    above_zero,
    by_expression,
    flag,
    of_expression,
    only,
    rate,
    token_rows,
    whole,
)
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


def lora(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Low-rank adapters on queries and values, or where `settings.targets` says.

    Raises:
        ValueError: no target, or a rank above a layer's dimensions.
    """
    return _add(network, settings, key, LoraLinear, embeddings=True)


def rslora(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """LoRA scaled by alpha / sqrt(rank), so that a high rank does not learn more slowly."""
    return _add(network, settings, key, LoraLinear, embeddings=True, root=True)


def lora_plus(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """LoRA whose B learns faster than A (Hayou et al. 2024, https://arxiv.org/abs/2402.12354)."""
    return lora(network, settings, key)


def lora_plus_rate(path: str, settings: Any) -> float:
    """`learning_rate_ratio` for B."""
    return settings.learning_rate_ratio if path.rpartition(".")[2] == "lora_b" else 1.0


def dora(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Weights as magnitude and direction, the direction adapted by LoRA."""
    return _add(network, settings, key, DoraLinear)


def pissa(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """LoRA on the principal singular directions; the output at the start is unchanged."""
    return _add(network, settings, key, PissaLinear)


def qlora(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
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
    network: Network,
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


# How A and B begin. With the first, peft takes their start away from the base weights, once more
# when it loads the adapter; the others leave these as published.
OF_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga")
OF_PUBLISHED_BASE = ("gaussian", "eva", "orthogonal", "mica")


def _start(value: Any) -> str | None:
    name = value.lower() if isinstance(value, str) else value
    if name is None or isinstance(name, bool) or name in OF_PUBLISHED_BASE:
        return None
    if name == "loftq":
        return (
            "means that the adapter belongs to base weights that LoftQ made; save these as a "
            "checkpoint, use it as the base, and set init_lora_weights to true"
        )
    if not isinstance(name, str) or not name.startswith(OF_CHANGED_BASE):
        return "is not known"
    return (
        "means that the adapter belongs to base weights that peft changed when training began. "
        "Convert it with peft to one of the published weights: save_pretrained(START) the adapter "
        "before it is trained, and save_pretrained(FOLDER, "
        "path_initial_model_for_weight_conversion=START) afterwards"
    )


PEFT_SETTINGS: Mapping[str, Setting] = {
    **TARGETED,
    "r": Setting(8, whole),
    "lora_alpha": Setting(8, above_zero),
    "lora_dropout": Setting(0.0, rate),
    "rank_pattern": Setting(None, by_expression(whole)),
    "alpha_pattern": Setting(None, by_expression(above_zero)),
    "use_rslora": Setting(False, flag),
    "use_dora": Setting(False, flag),
    "lora_bias": Setting(False, flag),
    "bias": Setting("none", only("none", "all", "lora_only")),
    "init_lora_weights": Setting(True, _start),
    "trainable_token_indices": Setting(None, token_rows),
    # With it the file has the tensors of both layers.
    "ensure_weight_tying": Setting(False, flag),
    "alora_invocation_tokens": Setting(
        None,
        only(None, [], because="(adapters that begin behind these tokens) is not implemented"),
    ),
    **dict.fromkeys(
        [
            *("arrow_config", "kasa_config", "layer_replication", "megatron_config"),
            *("monteclora_config", "target_parameters", "use_bdlora", "use_qalora"),
            "velora_config",
        ],
        NOT_IMPLEMENTED,
    ),
    # Of what is refused above, and of how A and B begin.
    **dict.fromkeys(
        [
            *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_core"),
            "qalora_group_size",
        ],
        HARMLESS,
    ),
}


class LoraForm(LayerForm):
    """peft's LORA, of linear layers and tables; with magnitudes where it is DoRA."""

    peft_types = ("LORA",)
    settings = PEFT_SETTINGS
    layers = (LoraLinear, LoraEmbed)
    adaptable = (nnx.Linear, nnx.Embed)
    leaves = frozenset(
        [
            *("lora_A", "lora_B", "lora_B.bias", "lora_embedding_A", "lora_embedding_B"),
            "lora_magnitude_vector",
        ]
    )

    def fields_of(self, layers: Mapping[str, Any]) -> dict[str, Any]:
        """Ranks, and alphas: peft scales by alpha / rank, whatever our scale came from."""
        ranks = {
            name: layer.lora_a.shape[1] * (2 if isinstance(layer, PissaLinear) else 1)
            for name, layer in layers.items()
        }
        alphas = {name: layer.how.scale * ranks[name] for name, layer in layers.items()}
        first = next(iter(ranks))
        return {
            "r": ranks[first],
            "lora_alpha": alphas[first],
            "lora_dropout": 0.0,
            "rank_pattern": {n: rank for n, rank in ranks.items() if rank != ranks[first]},
            "alpha_pattern": {n: alpha for n, alpha in alphas.items() if alpha != alphas[first]},
            "use_rslora": False,
            "use_dora": any(isinstance(layer, DoraLinear) for layer in layers.values()),
            "bias": "none",
        }

    def tensors_of(self, layer: LoraLinear | LoraEmbed) -> dict[str, jax.Array]:
        """A, B and magnitudes; PiSSA's as what they add to the published weights."""
        a, b = layer.lora_a[...], layer.lora_b[...]
        if isinstance(layer, LoraEmbed):
            return {"lora_embedding_A": a.T, "lora_embedding_B": b.T}
        if isinstance(layer, PissaLinear):
            a = jnp.concatenate([a, layer.start_a[...]], axis=1)
            b = jnp.concatenate([b, -layer.start_b[...]], axis=0)
        tensors = {"lora_A.weight": a.T, "lora_B.weight": b.T}
        if isinstance(layer, DoraLinear):
            tensors["lora_magnitude_vector"] = layer.magnitude[...]
        return tensors

    def adapted(
        self,
        layer: Any,
        name: str,
        tensors: Tensors,
        shared: Shared,
        settings: Mapping[str, Any],
    ) -> LoraLinear | LoraEmbed:
        """A layer with two matrices; see `LayerForm`."""
        is_table, dora = isinstance(layer, nnx.Embed), bool(settings["use_dora"])
        if dora and settings["lora_bias"]:
            raise ValueError("use_dora and lora_bias exclude each other, in peft as well")
        if is_table and dora:
            raise ValueError(f"{name} is a table of embeddings, for which DoRA is not implemented")
        first, second = (
            ("lora_embedding_A", "lora_embedding_B") if is_table else ("lora_A", "lora_B")
        )
        extras = {"lora_magnitude_vector": dora, "lora_B.bias": bool(settings["lora_bias"])}
        require_tensors(name, tensors, {first, second, *(leaf for leaf in extras if extras[leaf])})
        rank = of_expression(settings["rank_pattern"], name, settings["r"])
        inputs, outputs = (layer.embedding if is_table else layer.kernel).shape
        require_shape(f"{name}.{first}", tensors[first], rank, inputs)
        require_shape(f"{name}.{second}", tensors[second], outputs, rank)
        alpha = of_expression(settings["alpha_pattern"], name, settings["lora_alpha"])
        scale = alpha / (rank**0.5 if settings["use_rslora"] else rank)
        how, key = LowRank(rank, scale, settings["lora_dropout"]), jax.random.key(0)
        kind = LoraEmbed if is_table else DoraLinear if dora else LoraLinear
        adapted: Any = kind(layer, how, key)
        adapted.lora_a.set_value(jnp.asarray(tensors[first].T))
        adapted.lora_b.set_value(jnp.asarray(tensors[second].T))
        if isinstance(adapted, DoraLinear):
            magnitudes = tensors["lora_magnitude_vector"]
            require_shape(f"{name}.lora_magnitude_vector", magnitudes, outputs)
            adapted.magnitude.set_value(jnp.asarray(magnitudes))
        if "lora_B.bias" in tensors:
            require_shape(f"{name}.lora_B.bias", tensors["lora_B.bias"], outputs)
            # It is added to each output, so it is one with the layer's own.
            constant = scale * jnp.asarray(tensors["lora_B.bias"])
            own = 0.0 if adapted.bias is None else adapted.bias[...]
            adapted.bias = nnx.data(nnx.Param(own + constant))
        return adapted


LORA_FORM = LoraForm()
METHODS = {
    "lora": Method(lora, FIELDS, adapter_form=LORA_FORM),
    "rslora": Method(rslora, FIELDS, adapter_form=LORA_FORM),
    "lora_plus": Method(lora_plus, {**FIELDS, **LORA_PLUS}, lora_plus_rate, LORA_FORM),
    "dora": Method(dora, FIELDS, adapter_form=LORA_FORM),
    "pissa": Method(pissa, FIELDS, adapter_form=LORA_FORM),
    "qlora": Method(qlora, {**FIELDS, **QLORA}, adapter_form=LORA_FORM),
}
