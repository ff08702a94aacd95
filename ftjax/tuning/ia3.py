"""(IA)3: learned factors on keys, values and inside the feed-forward layer.

Liu et al. 2022, https://arxiv.org/abs/2205.05638, section 3.3. Reference: peft's IA3.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.layers import Network
from ftjax.tuning.adapted import AdaptedLinear
from ftjax.tuning.adapter_form import LayerForm, Shared, Tensors, require_shape, require_tensors
from ftjax.tuning.masks import is_new
from ftjax.tuning.method import IN_NETWORK, TARGETS, Method
from ftjax.tuning.peft_settings import HARMLESS, TARGETED, Setting, names
from ftjax.tuning.targets import ROLES, find_targets, replace_module

ROLES_OF_IA3 = ("key", "value", "query_key_value", "feed_forward_output")


class ScaledOutput(AdaptedLinear):
    """(x W + b) * factor.

    Attributes:
        factor: [out], 1 at first.
    """

    def __init__(self, layer: nnx.Linear):
        super().__init__(layer)
        self.factor = nnx.Param(jnp.ones(self.out_features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        return self.base(x) * self.factor[...].astype(self.dtype)

    def merged_kernel(self) -> jax.Array:
        """W * factor."""
        return self.base_kernel() * self.factor[...]

    def merged_bias(self) -> jax.Array | None:
        """b * factor."""
        bias = super().merged_bias()
        return None if bias is None else bias * self.factor[...]


class ScaledInput(AdaptedLinear):
    """(x * factor) W + b.

    Attributes:
        factor: [in], 1 at first.
    """

    def __init__(self, layer: nnx.Linear):
        super().__init__(layer)
        self.factor = nnx.Param(jnp.ones(self.in_features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        return self.base(x.astype(self.dtype) * self.factor[...].astype(self.dtype))

    def merged_kernel(self) -> jax.Array:
        """W with its rows times the factor."""
        return self.base_kernel() * self.factor[...][:, None]


def ia3(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Factors on keys, values and the input of each feed-forward layer's output projection.

    `settings.targets` chooses other layers; output projections of feed-forward layers have their
    inputs scaled, all others their outputs.

    Raises:
        ValueError: no target.
    """
    for path, layer in find_targets(network, settings.targets, ROLES_OF_IA3, nnx.Linear).items():
        inside = re.fullmatch(ROLES["feed_forward_output"], path)
        replace_module(network, path, (ScaledInput if inside else ScaledOutput)(layer))
    return lambda path: is_new(path) or path.endswith(".factor")


PEFT_SETTINGS: Mapping[str, Setting] = {
    **TARGETED,
    "feedforward_modules": Setting(None, names),
    "init_ia3_weights": HARMLESS,
}


class Ia3Form(LayerForm):
    """peft's IA3: one factor per output, or per input of the layers called feed-forward."""

    peft_types = ("IA3",)
    settings = PEFT_SETTINGS
    layers = (ScaledInput, ScaledOutput)
    leaves = frozenset(["ia3_l"])

    def fields_of(self, layers: Mapping[str, Any]) -> dict[str, Any]:
        """Which layers have their inputs scaled."""
        inputs = [name for name, layer in layers.items() if isinstance(layer, ScaledInput)]
        return {"feedforward_modules": sorted(inputs)}

    def tensors_of(self, layer: ScaledInput | ScaledOutput) -> dict[str, jax.Array]:
        """The factors, along the side of torch's [out, in] that they scale."""
        factor = layer.factor[...]
        return {"ia3_l": factor[None] if isinstance(layer, ScaledInput) else factor[:, None]}

    def adapted(
        self,
        layer: nnx.Linear,
        name: str,
        tensors: Tensors,
        shared: Shared,
        settings: Mapping[str, Any],
    ) -> ScaledInput | ScaledOutput:
        """A layer with factors; see `LayerForm`."""
        require_tensors(name, tensors, {"ia3_l"})
        inside = _is_feed_forward(name, settings["feedforward_modules"])
        adapted = (ScaledInput if inside else ScaledOutput)(layer)
        size = len(adapted.factor)
        require_shape(f"{name}.ia3_l", tensors["ia3_l"], *((1, size) if inside else (size, 1)))
        adapted.factor.set_value(jnp.asarray(tensors["ia3_l"].reshape(-1)))
        return adapted


def _is_feed_forward(name: str, wanted: str | list[str] | None) -> bool:
    """As peft has it: ends of names, also such as begin within a part."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(map(name.endswith, wanted or ()))


METHODS = {"ia3": Method(ia3, {**IN_NETWORK, **TARGETS}, adapter_form=Ia3Form())}
