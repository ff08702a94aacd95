"""How a kind of adapters is written in peft's files, and read from them.

Each method that has such a form keeps it in its own file, as a field of its `Method`.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from ftjax.models.layers import Network
from ftjax.tuning.adapted import AdaptedEmbed, AdaptedLinear, QuantizedLinear
from ftjax.tuning.peft_settings import Setting
from ftjax.tuning.targets import modules_of, replace_module

# Tensors by the last part of their names, in torch's layouts.
Tensors = Mapping[str, np.ndarray]
# Those of no layer, by their whole names; in our layout once they are part of the network.
Shared = Mapping[str, Any]
# How the names of peft's tensors begin.
PREFIX = "base_model."


class AdapterForm(abc.ABC):
    """One of peft's kinds; subclasses say what its layers and files hold.

    Attributes:
        peft_types: as adapter_config.json names it; the first is written, all are read.
        settings: every field of adapter_config.json that peft has for this kind.
        layers: classes of the layers that are adapted so.
        adaptable: classes of the plain layers that can be.
        leaves: last parts of the names of a layer's tensors.
        shared: whole names of tensors that belong to no layer.
    """

    peft_types: tuple[str, ...]
    settings: Mapping[str, Setting]
    layers: tuple[type, ...] = ()
    adaptable: tuple[type, ...] = (nnx.Linear,)
    leaves: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()

    def found_in(self, network: Network) -> dict[str, Any]:
        """Path -> adapter of this kind, of a network whose adapters are all of it; else empty."""
        layers = adapters_of(network)
        return layers if all(isinstance(one, self.layers) for one in layers.values()) else {}

    @abc.abstractmethod
    def fields_of(self, layers: Mapping[str, Any]) -> dict[str, Any]:
        """What adapter_config.json says, given name -> adapter."""

    @abc.abstractmethod
    def tensors_of(self, layer: Any) -> dict[str, jax.Array]:
        """One adapter's tensors as peft has them."""

    def shared_of(self, layers: Sequence[Any]) -> dict[str, jax.Array]:
        """Whole name -> tensor that belongs to no layer."""
        return {}

    @abc.abstractmethod
    def put(
        self,
        network: Network,
        paths: Mapping[str, str],
        tensors: Mapping[str, Tensors],
        shared: Shared,
        settings: Mapping[str, Any],
    ) -> None:
        """Puts the adapters of a file on a network.

        Args:
            network: with the pretrained network in `backbone`; changed in place.
            paths: name of a layer -> its path in the network.
            tensors: name of a layer -> its tensors.
            shared: tensors of no layer.
            settings: as `read_settings` gives them.

        Raises:
            ValueError: tensors that do not fit the network or the settings; names the layer.
        """


class LayerForm(AdapterForm):
    """A kind whose tensors belong to adapted layers; subclasses also say how one is adapted."""

    @abc.abstractmethod
    def adapted(
        self, layer: Any, name: str, tensors: Tensors, shared: Shared, settings: Mapping[str, Any]
    ) -> nnx.Module:
        """A plain layer with an adapter.

        Args:
            layer: of one of `adaptable`.
            name: of the module in transformers' network.
            tensors: the layer's, float32.
            shared: those of no layer, by their whole names.
            settings: as `read_settings` gives them.

        Raises:
            ValueError: tensors that do not fit the layer or the settings; begins with the name.
        """

    def put(
        self,
        network: Network,
        paths: Mapping[str, str],
        tensors: Mapping[str, Tensors],
        shared: Shared,
        settings: Mapping[str, Any],
    ) -> None:
        """Each layer by itself; see `AdapterForm`."""
        modules = modules_of(network, self.adaptable)
        for name, parts in tensors.items():
            layer = self.adapted(modules[paths[name]], name, parts, shared, settings)
            replace_module(network, paths[name], layer)


def adapters_of(network: Network) -> dict[str, Any]:
    """Path -> layer in which something was learned."""
    return {
        path: layer
        for path, layer in modules_of(network, (AdaptedLinear, AdaptedEmbed)).items()
        # Frozen in few bits, or with noise in training only: nothing was learned in them.
        if not isinstance(layer, QuantizedLinear) and type(layer) is not AdaptedEmbed
    }


def require_tensors(name: str, tensors: Tensors, needed: set[str]) -> None:
    """Refuses missing and surplus tensors.

    Raises:
        ValueError: names them.
    """
    missing, surplus = sorted(needed - tensors.keys()), sorted(tensors.keys() - needed)
    if missing or surplus:
        said = [f"lacks {', '.join(missing)}"] if missing else []
        said += [f"has {', '.join(surplus)}, which these settings have no use for"] * bool(surplus)
        raise ValueError(f"{name} {' and '.join(said)}")


def require_shape(name: str, tensor: np.ndarray, *expected: int) -> None:
    """Refuses a tensor of another shape.

    Raises:
        ValueError: names it.
    """
    if tensor.shape != expected:
        raise ValueError(f"{name} is {list(tensor.shape)}, expected {list(expected)}")
