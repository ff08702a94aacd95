"""A network by the names that transformers' network has, and weights that an adapter replaces.

Beside its adapters, an adapter file may hold weights of the base itself: biases, tables that were
resized, and whole modules (`modules_to_save`). peft puts them where their names say; so they are
here. Where transformers ties a head to a table and the adapter says something about only one of
the two, they part.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.family import Family
from ftjax.models.layers import Network
from ftjax.pretrained.load import dotted
from ftjax.tuning.adapter_form import require_shape
from ftjax.tuning.targets import modules_of
from ftjax.tuning.tied import tied_table, untie

Tensors = Mapping[str, np.ndarray]


class PublishedNames:
    """Modules and parameters of a network by their names in transformers' network.

    Attributes:
        modules: name -> path of each linear layer and table.
        parameters: name of a tensor -> path of the parameter.
        network: the network.
        family: the network's.
        with_prefix: whether names of the backbone begin with the family's prefix.
    """

    def __init__(self, network: Network, family: Family, *, with_prefix: bool | None = None):
        """Looks a network through.

        Args:
            network: with a family's network in `backbone`.
            family: that network's.
            with_prefix: whether names of the backbone begin with the family's prefix; None if
                they do where the network has a published head.
        """
        has_head = hasattr(network.backbone, "backbone")
        self.with_prefix = has_head if with_prefix is None else with_prefix
        self._has_head, self.family, self.network = has_head, family, network
        self.modules = {
            self._name(f"{path}.kernel").removesuffix(".weight"): path
            for path in modules_of(network, (nnx.Linear, nnx.Embed))
        }
        paths = [dotted(path) for path, _ in nnx.to_flat_state(nnx.state(network.backbone))]
        self.parameters = {self._name(f"backbone.{path}"): path for path in paths}

    def of(self, path: str) -> str:
        """The name of the module at a path that begins with `backbone.`."""
        return self._name(f"{path}.kernel").removesuffix(".weight")

    def _name(self, path: str) -> str:
        inside = path.removeprefix("backbone.") if self._has_head else path
        return self.family.published_name(inside, with_prefix=self.with_prefix)

    def copies_of(self, name: str) -> list[str]:
        """The tables in the stacks of an encoder-decoder that repeat one table, as modules."""
        repeats = [copy for copy, of in self.family.tied.items() if of == f"{name}.weight"]
        return [copy.removesuffix(".weight") for copy in repeats if ".embed_tokens." in copy]

    def tied_head(self) -> str | None:
        """The weight of a head that repeats a table, and is no parameter of its own here."""
        for copy, original in self.family.tied.items():
            is_head = copy.endswith(".weight") and ".embed_tokens." not in copy
            if is_head and original in self.parameters and copy not in self.parameters:
                return copy if tied_table(self.network.backbone) is not None else None
        return None

    def place_of(self, name: str) -> str | None:
        """The path of the parameter that a tensor fills, or that what it fills repeats."""
        if name in self.parameters:
            return self.parameters[name]
        # The head of another network than this one repeats nothing here.
        repeats = name == self.tied_head() or ".embed_tokens." in name or name.endswith(".bias")
        return self.parameters.get(self.family.tied.get(name, "")) if repeats else None


def replace_weights(
    network: Network, names: PublishedNames, tensors: Tensors, modules_to_save: Sequence[str]
) -> list[str]:
    """Puts weights of the base that an adapter file holds in the place of the published ones.

    Args:
        network: with the pretrained network in `backbone`; changed in place.
        names: of that network.
        tensors: name in transformers' network -> tensor.
        modules_to_save: ends of names of modules that were saved whole.

    Returns:
        Names of tensors that the network has no place for.

    Raises:
        ValueError: tensors of other shapes, or that contradict one another.
    """
    whole = {name for name in tensors if _is_saved(name, modules_to_save)}
    tables = {table: copies for table in names.modules if (copies := names.copies_of(table))}
    stacks = {f"{module}.weight" for table in tables for module in (table, *tables[table])}
    if found := whole & stacks:
        raise ValueError(
            f"{', '.join(sorted(found))} was saved as a module of its own, which parts the tables "
            "of encoder and decoder; they are one in this network"
        )
    # A tied head and its table part where one of them was saved as a module of its own.
    if (head := names.tied_head()) and whole & {head, names.family.tied[head]}:
        names = part(network, names)
    places: dict[str, str] = {}
    unknown = []
    for name in tensors:
        place = names.place_of(name)
        if place is None:
            unknown.append(name)
        elif place in places and not np.array_equal(tensors[name], tensors[places[place]]):
            raise ValueError(
                f"{places[place]} and {name} are one in this network and differ in the adapter"
            )
        else:
            places[place] = name
    leaves = {dotted(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(network.backbone))}
    for place, name in places.items():
        leaf, tensor = leaves[place], tensors[name]
        empty = np.broadcast_to(np.False_, leaf.shape)
        require_shape(name, tensor, *names.family.to_published(place, empty).shape)
        ours = names.family.to_ours(place, tensor)
        leaf.set_value(jnp.asarray(ours, leaf[...].dtype))
    return unknown


def with_trained_rows(
    names: PublishedNames, tensors: Tensors, tokens: Sequence[int] | Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Tables of which a file only holds the rows of some tokens, whole.

    Args:
        names: of the network, for the other rows.
        tensors: name in transformers' network -> tensor.
        tokens: `trainable_token_indices`: rows of the table, or of those that the keys end.

    Raises:
        ValueError: rows that the table does not have, or values of another shape.
    """
    state = dict(nnx.to_flat_state(nnx.state(names.network.backbone)))
    leaves = {dotted(path): leaf for path, leaf in state.items()}
    whole = {}
    for name, rows in tensors.items():
        module = name.removesuffix(".token_adapter.trainable_tokens_delta")
        place = names.place_of(f"{module}.weight")
        if module == name or place is None:
            whole[name] = rows
            continue
        by_name = tokens if isinstance(tokens, Mapping) else {module: tokens}
        chosen = next((one for end, one in by_name.items() if module.endswith(end)), ())
        table = np.array(names.family.to_published(place, np.asarray(leaves[place][...])))
        require_shape(name, rows, len(chosen), table.shape[1])
        if not chosen or max(chosen) >= len(table):
            raise ValueError(
                f"{name} is for tokens that {module} ({len(table)} rows) does not have"
            )
        table[np.asarray(chosen)] = rows
        whole[f"{module}.weight"] = table.astype(np.float32)
    return whole


def part(network: Network, names: PublishedNames) -> PublishedNames:
    """Gives a tied head weights of its own, those that it repeats, and names the network anew.

    Raises:
        ValueError: the family's head cannot part from its table.
    """
    table: Network = tied_table(network.backbone)
    untie(network.backbone, table.embedding[...])
    return PublishedNames(network, names.family, with_prefix=names.with_prefix)


def _is_saved(name: str, modules_to_save: Sequence[str]) -> bool:
    """Whether peft made a copy of the module that a tensor is in: by the ends of their names."""
    parts = name.split(".")
    owners = [".".join(parts[:count]) for count in range(1, len(parts))]
    return any(owner.endswith(end) for owner in owners for end in modules_to_save)
