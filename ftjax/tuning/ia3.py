"""(IA)3: learned factors on keys, values and inside the feed-forward layer.

Liu et al. 2022, https://arxiv.org/abs/2205.05638, section 3.3. Reference: peft's IA3.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.tuning.adapted import AdaptedLinear
from ftjax.tuning.masks import is_new
from ftjax.tuning.method import IN_NETWORK, TARGETS, Method
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


def ia3(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
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


METHODS = {"ia3": Method(ia3, {**IN_NETWORK, **TARGETS})}
