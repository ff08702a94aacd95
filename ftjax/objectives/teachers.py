"""Learning from another network as well: what objectives share that can have a teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ftjax.evaluation.measurement import Measurement
from ftjax.fields import Field, Fields, Settings
from ftjax.models.layers import Network
from ftjax.pretrained.checkpoint_folder import checkpoint_folder

SOFTENED: Fields = {
    "teacher.temperature": Field(
        2.0, "Logits of both are divided by it where they are compared.", above=0.0
    ),
    "teacher.alpha": Field(
        0.5,
        "Weight of what the teacher says; what the data say has the rest.",
        above=0.0,
        maximum=1.0,
    ),
    "teacher.beta": Field(
        0.0,
        "0: the network covers what the teacher holds possible; 1: it says nothing that the "
        "teacher does not; between, the generalised Jensen-Shannon divergence.",
        minimum=0.0,
        maximum=1.0,
    ),
}


def teacher_field(further: Fields) -> Fields:
    """The field that names a teacher, and those that are read with one."""
    meaning = "A tuned network to learn from as well: a folder, hf:// or pypi://; None: none."
    fields = {**SOFTENED, **further}
    return {"teacher.reference": Field(None, meaning, optional=str, if_set=fields)}


class Teacher(NamedTuple):
    """A network that is asked once what it says of the training split.

    Attributes:
        load: gives it.
        measurement: of it; its examples are as it reads them.
    """

    load: Callable[[], Network]
    measurement: Measurement


def teacher_folder(config: Settings) -> Path | None:
    """Where the teacher of a config lies, fetched if need be; None without one."""
    reference = config.get("teacher", {}).get("reference")
    return None if reference is None else checkpoint_folder(reference)


def refuse_other_tokens(ours: Any, theirs: Any, reference: str) -> None:
    """Of a teacher of tokens, every token must be the one that the network knows.

    Args:
        ours: tokenizer of the network.
        theirs: of the teacher.
        reference: what the config calls the teacher.

    Raises:
        ValueError: names a token.
    """
    own, other = ours.get_vocab(), theirs.get_vocab()
    differing = [token for token, number in own.items() if other.get(token) != number]
    if differing:
        token = min(differing, key=own.__getitem__)
        theirs_id = other.get(token)
        told = "does not know it" if theirs_id is None else f"has it as number {theirs_id}"
        raise ValueError(
            f"config.teacher.reference = {reference!r} has another tokenizer: token number "
            f"{own[token]} is {token!r} here, and the teacher {told} ({len(differing):,} tokens "
            "differ). What it says of tokens cannot be learned; take a teacher with the same "
            "tokenizer, or learn from texts that it wrote (sft)."
        )
