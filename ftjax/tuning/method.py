"""What a tuning method is: which parameters move, what it reads of a config, and its rates."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ftjax.fields import Field, Fields
from ftjax.models.layers import Network
from ftjax.tuning.adapter_form import AdapterForm

Predicate = Callable[[str], bool]


def same_rate(path: str, settings: Any) -> float:
    """All parameters learn alike."""
    return 1.0


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to tune.

    Attributes:
        apply: (network, settings, key) -> predicate on parameter paths. `settings` is the `tuning`
            part of the config, `key` is for new parameters. The network may be changed; what is
            returned says which parameters move.
        fields: what it reads of a config.
        learning_rate_factor: (parameter path, settings) -> what the schedule's rate is multiplied
            by.
        adapter_form: how what it learned is written in peft's format; None where peft has none.
    """

    apply: Callable[[Network, Any, jax.Array], Predicate]
    fields: Fields
    learning_rate_factor: Callable[[str, Any], float] = same_rate
    adapter_form: AdapterForm | None = None


# What all methods read that change the pretrained network.
IN_NETWORK: Fields = {
    "tuning.unfreeze_epochs": Field(
        None,
        "Epochs between unfreezing one more block, from the top; None: all from the start.",
        optional=int,
        minimum=1,
    ),
    "tuning.reinit_top": Field(0, "Blocks at the top that begin at random.", minimum=0),
    "tuning.neftune_alpha": Field(
        0.0, "Noise on the embeddings, alpha / sqrt(tokens x features).", minimum=0.0
    ),
}

TARGETS: Fields = {
    "tuning.targets": Field(
        None,
        "Regex for whole paths of adapted layers; None: where the method's paper puts it.",
        optional=str,
    )
}

# What is learned is no change of weights: there is nothing between the network and the tuned one.
NOT_MERGED: Fields = {"averaging.wise_ft_alphas": None}
