"""Methods that choose among the parameters there are."""

import re
from typing import Any

import jax

from ftjax.fields import Field, Fields
from ftjax.models.heads import is_new
from ftjax.models.layers import Network
from ftjax.tuning.method import IN_NETWORK, Method, Predicate
from ftjax.tuning.targets import block_of, nearest_paths, parameter_paths

EMBEDDING_ROWS: Fields = {
    "tuning.embedding_rows": Field(
        "seen",
        "Rows of the token table that move: 'seen' in the training data (all if half are, or if an "
        "output layer is tied to the table), or 'all'.",
        choices=("seen", "all"),
    )
}
LAYERS: Fields = {
    "tuning.layers": Field(
        "top:2",
        "Blocks that move: top:N, bottom:N, block:N, or a regex for whole parameter paths.",
    )
}
# With the pretrained network as it is, there is nothing in it to hold, to average or to vary.
NOT_IN_NETWORK: Fields = dict.fromkeys(
    [
        *("averaging.wise_ft_alphas", "model.dropout", "optimizer.layer_decay"),
        *("penalties.ewc", "penalties.feature_distillation", "penalties.kl_to_base"),
        *("penalties.l2_sp", "penalties.mixout", "penalties.replay", "tuning.head_epochs"),
    ]
)


def full(network: Network, settings: Any, key: jax.Array) -> Predicate:
    """Everything."""
    return lambda path: True


def linear_probe(network: Network, settings: Any, key: jax.Array) -> Predicate:
    """Only the new head; dropout stays off in the frozen network.

    (Alain & Bengio 2016, https://arxiv.org/abs/1610.01644.)

    Raises:
        ValueError: the network has no new head.
    """
    if all(map(is_pretrained, parameter_paths(network))):
        raise ValueError(
            "config.tuning.method = 'linear_probe' trains a new head, and this network has none; "
            "choose another method."
        )
    network.deterministic_backbone = True
    return is_new


def layers(network: Network, settings: Any, key: jax.Array) -> Predicate:
    """Some blocks, or what a regular expression matches.

    `settings.layers` is "top:2" (the last two blocks of each stack), "bottom:2", "block:3" (the
    surgical choice of Lee et al. 2022, https://arxiv.org/abs/2210.11466), or a regular expression
    for whole parameter paths.

    Raises:
        ValueError: it fits no parameter; names the nearest paths.
    """
    chosen = _of_blocks(network, settings.layers) or _matching(network, settings.layers)
    return lambda path: is_new(path) or path in chosen


def bitfit(network: Network, settings: Any, key: jax.Array) -> Predicate:
    """Biases of layers and norms (Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199).

    Raises:
        ValueError: the network has no biases.
    """
    return _by_leaf(network, ("bias",), "biases")


def norms(network: Network, settings: Any, key: jax.Array) -> Predicate:
    """Scales and biases of the normalisation layers (Zhao et al. 2023, LayerNorm tuning)."""
    scales = {path for path in parameter_paths(network) if path.endswith(".scale")}
    owners = {path.rpartition(".")[0] for path in scales}
    return lambda path: is_new(path) or path.rpartition(".")[0] in owners


def frozen_embeddings(network: Network, settings: Any, key: jax.Array) -> Predicate:
    """Everything but the embedding tables, and a head that is tied to one."""
    return lambda path: not path.endswith(".embedding")


def is_pretrained(path: str) -> bool:
    """Whether a parameter is of the pretrained network."""
    return not is_new(path)


def _by_leaf(network: Network, names: tuple[str, ...], what: str) -> Predicate:
    def chosen(path: str) -> bool:
        return path.rpartition(".")[2] in names

    if not any(chosen(path) for path in parameter_paths(network) if not is_new(path)):
        raise ValueError(f"This network has no {what}; choose another config.tuning.method.")
    return lambda path: is_new(path) or chosen(path)


def _of_blocks(network: Network, choice: str) -> set[str]:
    match = re.fullmatch(r"(top|bottom|block):(\d+)", choice)
    if not match:
        return set()
    where, number = match[1], int(match[2])
    placed = {path: block_of(path) for path in parameter_paths(network)}
    counts: dict[str, int] = {}
    for place in filter(None, placed.values()):
        counts[place.stack] = max(counts.get(place.stack, 0), place.index + 1)

    def wanted(stack: str, index: int) -> bool:
        return {
            "top": index >= counts[stack] - number,
            "bottom": index < number,
            "block": index == number,
        }[where]

    chosen = {path for path, place in placed.items() if place and wanted(*place)}
    if not chosen:
        sizes = ", ".join(f"{stack}: {count} blocks" for stack, count in counts.items())
        raise ValueError(f"config.tuning.layers = {choice!r} fits no block; there are {sizes}.")
    return chosen


def _matching(network: Network, pattern: str) -> set[str]:
    paths = parameter_paths(network)
    try:
        chosen = {path for path in paths if re.fullmatch(pattern, path)}
    except re.error as error:
        raise ValueError(
            f"config.tuning.layers = {pattern!r} is no regular expression ({error})."
        ) from error
    if not chosen:
        raise ValueError(
            f"config.tuning.layers = {pattern!r} matches no parameter path as a whole. The nearest "
            f"are: {', '.join(nearest_paths(pattern, paths))}."
        )
    return chosen


METHODS = {
    "full": Method(full, {**IN_NETWORK, **EMBEDDING_ROWS}),
    "linear_probe": Method(linear_probe, NOT_IN_NETWORK),
    "layers": Method(layers, {**LAYERS, **IN_NETWORK, **EMBEDDING_ROWS}),
    "bitfit": Method(bitfit, IN_NETWORK),
    "norms": Method(norms, IN_NETWORK),
    "frozen_embeddings": Method(frozen_embeddings, IN_NETWORK),
}
