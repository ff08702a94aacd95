"""How one step runs on many devices: jit over a mesh (the default), or pmap over replicas.

Both map the same functions and offer the same methods; nothing else in ftjax knows how many devices
there are. One process sees them all: several hosts are refused before a run begins.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ftjax.fields import Settings
from ftjax.training.step import TrainStep

SMALLEST_SHARDED = 2**14
"""Parameters with fewer elements are replicated: moving them costs less than gathering them."""


def make_parallel(config: Settings) -> "MeshParallel | PmapParallel":
    """The mapping that the `training` part of a config asks for, over all devices there are.

    Raises:
        RuntimeError: no device of the platform asked for.
        ValueError: the mesh does not fit the devices.
    """
    devices = _devices(config.platform)
    if config.parallel == "pmap":
        return PmapParallel(devices)
    return MeshParallel(devices, config.mesh.data, config.mesh.fsdp, config.mesh.tensor)


class MeshParallel:
    """jit over a mesh of axes data, fsdp and tensor; the compiler adds the communication.

    Rows of a batch are split over data and fsdp. Large parameters, and with them their gradients
    and optimizer state, are split over fsdp by their first axis and over tensor by their last
    (Rajbhandari et al. 2020, ZeRO stage 3; Shoeybi et al. 2019).

    Attributes:
        axis_name: None, sums in the step are global.
        batch_multiple: batch sizes must be a multiple of it.
    """

    axis_name = None

    def __init__(self, devices: list, data: int = -1, fsdp: int = 1, tensor: int = 1):
        rest, remainder = divmod(len(devices), fsdp * tensor)
        data = rest if data == -1 else data
        if remainder or data != rest:
            raise ValueError(
                f"config.training.mesh: data x fsdp x tensor = {data} x {fsdp} x {tensor} must be "
                f"the number of devices, {len(devices)}."
            )
        grid = np.asarray(devices).reshape(data, fsdp, tensor)
        self.mesh = Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
        self.batch_multiple = data * fsdp
        self._rows = NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())

    def shardings(self, tree: Any) -> Any:
        """Where each array of a tree lives."""
        return jax.tree.map(lambda leaf: self._sharding(leaf.shape), tree)

    def place(self, tree: Any) -> Any:
        """Parameters or state onto the devices."""
        return jax.tree.map(lambda leaf: jax.device_put(leaf, self._sharding(leaf.shape)), tree)

    def place_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch onto the devices, split by rows."""
        return {name: jax.device_put(array, self._rows) for name, array in batch.items()}

    def map_train(self, step: TrainStep) -> Callable:
        """The step, jitted; the old state's memory is given to the new one."""

        def pinned(state, frozen, batch):
            state, metrics = step(state, frozen, batch)
            state = jax.lax.with_sharding_constraint(state, self.shardings(state))
            return state, jax.lax.with_sharding_constraint(metrics, self._replicated)

        return jax.jit(pinned, donate_argnums=0)

    def map_evaluate(self, function: Callable) -> Callable:
        """A function of placed trees and a batch, jitted; results are whole on every device."""
        return jax.jit(function, out_shardings=self._replicated)

    def fetch(self, tree: Any) -> Any:
        """Results of a mapped function as numpy arrays."""
        return jax.device_get(tree)

    def one_copy(self, tree: Any) -> Any:
        """Placed arrays without a replica axis, as they are checkpointed."""
        return tree

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        fsdp, tensor = self.mesh.shape["fsdp"], self.mesh.shape["tensor"]
        axes: list[str | None] = [None] * len(shape)
        if len(shape) >= 2 and np.prod(shape) >= SMALLEST_SHARDED:
            axes[0] = "fsdp" if shape[0] % fsdp == 0 else None
            axes[-1] = "tensor" if shape[-1] % tensor == 0 else None
        return NamedSharding(self.mesh, PartitionSpec(*axes))


class PmapParallel:
    """pmap: every device holds everything and works on its rows; sums go through psum.

    Attributes:
        axis_name: the axis that the step sums over.
        batch_multiple: batch sizes must be a multiple of it.
    """

    axis_name = "devices"

    def __init__(self, devices: list):
        self.devices = devices
        self.batch_multiple = len(devices)

    def place(self, tree: Any) -> Any:
        """Parameters or state, copied to every device: leaves gain a leading [devices] axis."""
        mesh = Mesh(np.asarray(self.devices), (self.axis_name,), axis_types=(AxisType.Auto,))
        sharding = NamedSharding(mesh, PartitionSpec(self.axis_name))

        def copied(leaf: Any) -> jax.Array:
            return jax.device_put(np.broadcast_to(leaf, (len(self.devices), *leaf.shape)), sharding)

        return jax.tree.map(copied, tree)

    def place_batch(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch as [devices, rows per device, ...]."""
        return {
            name: array.reshape(len(self.devices), -1, *array.shape[1:])
            for name, array in batch.items()
        }

    def map_train(self, step: TrainStep) -> Callable:
        """The step, mapped; the old state's memory is given to the new one."""
        return jax.pmap(step, axis_name=self.axis_name, devices=self.devices, donate_argnums=0)

    def map_evaluate(self, function: Callable) -> Callable:
        """A function of placed trees and a batch, mapped; results are gathered on every device."""

        def gathered(*arguments):
            return jax.lax.all_gather(function(*arguments), self.axis_name, tiled=True)

        return jax.pmap(gathered, axis_name=self.axis_name, devices=self.devices)

    def fetch(self, tree: Any) -> Any:
        """Results of a mapped function as numpy arrays: the same on all devices, so of one."""
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data)[0], tree)

    def one_copy(self, tree: Any) -> Any:
        """Placed arrays without their replica axis, as they are checkpointed."""
        return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)


def _devices(platform: str) -> list:
    if platform == "any":
        return jax.devices()
    try:
        return jax.devices(platform)
    except RuntimeError as error:
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise RuntimeError(
            f"config.training.platform = {platform!r}, but JAX sees no such device here (it sees: "
            f"{found}). Install the extra for it (pip install 'ftjax[cuda]' or 'ftjax[tpu]'), or "
            "set platform = 'any'."
        ) from error
