"""Small networks between the layers of a frozen one.

Houlsby et al. 2019 (https://arxiv.org/abs/1902.00751): after attention and after the feed-forward
layer of each block. Pfeiffer et al. 2021 (https://arxiv.org/abs/2005.00247): after the feed-forward
layer only. Both stand right after the output projection, before dropout and residual.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.fields import Field, Fields
from ftjax.models.layers import Network, matmul_2d
from ftjax.tuning.adapted import AdaptedLinear
from ftjax.tuning.masks import is_new
from ftjax.tuning.method import IN_NETWORK, NOT_MERGED, TARGETS, Method
from ftjax.tuning.targets import find_targets, replace_module

LEAVES = ("down", "down_bias", "up", "up_bias")
FIELDS: Fields = {
    **IN_NETWORK,
    **NOT_MERGED,
    **TARGETS,
    "tuning.bottleneck": Field(48, "Width of the adapters.", minimum=1),
}


class BottleneckLinear(AdaptedLinear):
    """y + gelu(y D + d) U + u with y = x W + b; U and u are zero at first.

    Attributes:
        down: [out, bottleneck].
        down_bias: [bottleneck].
        up: [bottleneck, out].
        up_bias: [out].
    """

    def __init__(self, layer: nnx.Linear, bottleneck: int, key: jax.Array):
        super().__init__(layer)
        width = self.out_features
        self.down = nnx.Param(0.01 * jax.random.normal(key, (width, bottleneck)))
        self.down_bias = nnx.Param(jnp.zeros(bottleneck))
        self.up = nnx.Param(jnp.zeros((bottleneck, width)))
        self.up_bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        y = self.base(x)
        down, down_bias, up, up_bias = (getattr(self, n)[...].astype(y.dtype) for n in LEAVES)
        thin = jax.nn.gelu(matmul_2d(y, down) + down_bias)
        return y + matmul_2d(thin, up) + up_bias

    def merged(self) -> nnx.Linear:
        """There is no such layer.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Bottleneck adapters are not linear and cannot be merged into the weights. Use the run "
            "itself: scripts/predict.py and scripts/chat.py take --run."
        )


def houlsby(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Adapters after attention and feed-forward layers.

    Raises:
        ValueError: no target.
    """
    return _add(network, settings, key, ("attention_output", "feed_forward_output"))


def pfeiffer(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Adapters after feed-forward layers.

    Raises:
        ValueError: no target.
    """
    return _add(network, settings, key, ("feed_forward_output",))


def _add(network, settings, key, roles) -> Callable[[str], bool]:
    targets = find_targets(network, settings.targets, roles, nnx.Linear)
    for index, (path, layer) in enumerate(targets.items()):
        layer_key = jax.random.fold_in(key, index)
        replace_module(network, path, BottleneckLinear(layer, settings.bottleneck, layer_key))
    return lambda path: is_new(path) or path.rpartition(".")[2] in LEAVES


METHODS = {"houlsby": Method(houlsby, FIELDS), "pfeiffer": Method(pfeiffer, FIELDS)}
