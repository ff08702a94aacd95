"""VeRA: one pair of random matrices for all layers, and two learned vectors for each.

Kopiczko et al. 2024, https://arxiv.org/abs/2310.11454, eq. 2. Reference: peft's VeRA.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.dropout import dropout
from ftjax.models.layers import Constant, Network, matmul_2d
from ftjax.tuning.adapted import AdaptedLinear
from ftjax.tuning.adapter_form import (
    PREFIX,
    LayerForm,
    Shared,
    Tensors,
    require_shape,
    require_tensors,
)
from ftjax.tuning.lora import RANK, ROLES_OF_LORA
from ftjax.tuning.masks import is_new
from ftjax.tuning.method import IN_NETWORK, TARGETS, Method
from ftjax.tuning.peft_settings import HARMLESS, TARGETED, Setting, flag, only, rate, whole
from ftjax.tuning.targets import find_targets, replace_module

LEAVES = ("vera_d", "vera_b")
FIRST_D = 0.1


class VeraLinear(AdaptedLinear):
    """x W + b + (dropout(x) A * d) B * b', A and B shared by all layers and frozen.

    Attributes:
        vera_a: [largest in, rank], of which this layer uses the first rows.
        vera_b_shared: [rank, largest out], of which it uses the first columns.
        vera_d: [rank], 0.1 at first.
        vera_b: [out], 0 at first.
    """

    def __init__(self, layer: nnx.Linear, a: Constant, b: Constant, dropout_rate: float):
        super().__init__(layer)
        self.vera_a, self.vera_b_shared, self.dropout_rate = a, b, dropout_rate
        self.vera_d = nnx.Param(jnp.full(a.shape[1], FIRST_D))
        self.vera_b = nnx.Param(jnp.zeros(self.out_features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        x = x.astype(self.dtype)
        a, b = (matrix.astype(self.dtype) for matrix in self._shared())
        d, scale = (leaf[...].astype(self.dtype) for leaf in (self.vera_d, self.vera_b))
        thin = matmul_2d(dropout(x, self.dropout_rate, self.key()), a)
        return self.base(x) + matmul_2d(thin * d, b) * scale

    def merged_kernel(self) -> jax.Array:
        """W + A d B b'."""
        a, b = self._shared()
        delta = jnp.matmul(a * self.vera_d[...], b, precision="highest") * self.vera_b[...]
        return self.base_kernel() + delta

    def _shared(self) -> tuple[jax.Array, jax.Array]:
        a = self.vera_a[...][: self.in_features]
        return a, self.vera_b_shared[...][:, : self.out_features]


def vera(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Two vectors per layer around random matrices that all share; `settings.rank` may be high.

    Raises:
        ValueError: no target.
    """
    targets = find_targets(network, settings.targets, ROLES_OF_LORA, nnx.Linear)
    widest = [max(layer.kernel.shape[axis] for layer in targets.values()) for axis in (0, 1)]
    a_key, b_key = jax.random.split(key)
    # He et al. 2015 for torch's layout [out, in], as peft draws them.
    a = _uniform(a_key, (widest[0], settings.rank), widest[0])
    b = _uniform(b_key, (settings.rank, widest[1]), settings.rank)
    for path, layer in targets.items():
        replace_module(network, path, VeraLinear(layer, a, b, settings.dropout))
    return lambda path: is_new(path) or path.rpartition(".")[2] in LEAVES


def _uniform(key: jax.Array, shape: tuple[int, int], inputs: int) -> Constant:
    bound = (6.0 / inputs) ** 0.5
    return Constant(jax.random.uniform(key, shape, minval=-bound, maxval=bound))


PEFT_SETTINGS: Mapping[str, Setting] = {
    **TARGETED,
    "r": Setting(256, whole),
    "vera_dropout": Setting(0.0, rate),
    "save_projection": Setting(True, flag),
    "bias": Setting("none", only("none", "all", "vera_only")),
    "projection_prng_key": HARMLESS,
    "d_initial": HARMLESS,
    "init_weights": HARMLESS,
}


class VeraForm(LayerForm):
    """peft's VeRA, its random matrices in the file."""

    peft_types = ("VERA",)
    settings = PEFT_SETTINGS
    layers = (VeraLinear,)
    leaves = frozenset(["vera_lambda_d", "vera_lambda_b"])
    shared = frozenset([f"{PREFIX}vera_A", f"{PREFIX}vera_B"])

    def fields_of(self, layers: Mapping[str, Any]) -> dict[str, Any]:
        """The rank; the seed says nothing where the matrices are in the file."""
        rank = next(iter(layers.values())).vera_a.shape[1]
        return {"r": rank, "projection_prng_key": 0, "save_projection": True}

    def tensors_of(self, layer: VeraLinear) -> dict[str, jax.Array]:
        """The two vectors."""
        return {"vera_lambda_d": layer.vera_d[...], "vera_lambda_b": layer.vera_b[...]}

    def shared_of(self, layers: Sequence[VeraLinear]) -> dict[str, jax.Array]:
        """The random matrices."""
        first = layers[0]
        matrices = first.vera_a[...].T, first.vera_b_shared[...].T
        return dict(zip(sorted(self.shared), matrices, strict=True))

    def put(
        self,
        network: Network,
        paths: Mapping[str, str],
        tensors: Mapping[str, Tensors],
        shared: Shared,
        settings: Mapping[str, Any],
    ) -> None:
        """All layers get the same two matrices; see `LayerForm`."""
        if shared.keys() != self.shared:
            raise ValueError(
                "VeRA's random matrices (vera_A and vera_B) are missing, which peft can leave out "
                "and draw again; save it with save_projection=True"
            )
        for name, matrix in shared.items():
            if matrix.ndim != 2:
                raise ValueError(f"{name} is {list(matrix.shape)}, expected two dimensions")
        constants = {name: Constant(jnp.asarray(matrix.T)) for name, matrix in shared.items()}
        super().put(network, paths, tensors, constants, settings)

    def adapted(
        self,
        layer: nnx.Linear,
        name: str,
        tensors: Tensors,
        shared: Shared,
        settings: Mapping[str, Any],
    ) -> VeraLinear:
        """A layer between the random matrices; see `LayerForm`."""
        require_tensors(name, tensors, {"vera_lambda_d", "vera_lambda_b"})
        a, b = (shared[matrix] for matrix in sorted(self.shared))
        (inputs, outputs), rank = layer.kernel.shape, settings["r"]
        if a.shape[0] < inputs or b.shape[1] < outputs or {a.shape[1], b.shape[0]} != {rank}:
            raise ValueError(
                f"{name} is {inputs} x {outputs} and the rank {rank}, which vera_A "
                f"{list(reversed(a.shape))} and vera_B {list(reversed(b.shape))} do not fit"
            )
        adapted = VeraLinear(layer, a, b, settings["vera_dropout"])
        for leaf, part in ((adapted.vera_d, "vera_lambda_d"), (adapted.vera_b, "vera_lambda_b")):
            require_shape(f"{name}.{part}", tensors[part], *leaf.shape)
            leaf.set_value(jnp.asarray(tensors[part]))
        return adapted


METHODS = {"vera": Method(vera, {**IN_NETWORK, **TARGETS, **RANK}, adapter_form=VeraForm())}
