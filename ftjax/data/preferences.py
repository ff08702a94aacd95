"""What people thought of answers: which of two they preferred, or whether they liked one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ftjax.data.chat import Dialogue
from ftjax.data.dialogues import Chat, Plain, is_empty, messages_of, read_chats, tools_of
from ftjax.data.sources import Records
from ftjax.data.sources.records import bad_record, of_each
from ftjax.data.written_out import as_written


class Pair(NamedTuple):
    """Two answers to one prompt.

    Attributes:
        chosen: with the prompt.
        rejected: with the same prompt.
    """

    chosen: Chat | Plain
    rejected: Chat | Plain


def read_pairs(records: Records) -> list[Pair]:
    """What the records say.

    Args:
        records: with `chosen` and `rejected`, both texts or both lists of messages, and perhaps
            `prompt` of the same kind. Without one, or where it is a text beside lists of messages
            (as in UltraFeedback), the prompt is what both begin with.

    Raises:
        BadRecordError: a record that has no such form, an empty or an identical pair, or a pair
            without a common prompt; says which record.
    """

    def read(index: int) -> Pair:
        try:
            return _pair(records[index])
        except ValueError as error:
            raise bad_record(records, index, str(error)) from error

    return of_each(records, read)


class Judged(NamedTuple):
    """An answer that people liked or did not.

    Attributes:
        answered: it, behind its prompt.
        desirable: whether they liked it.
    """

    answered: Chat | Plain
    desirable: bool


# As JSON, Python and tables have it.
LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def read_judged(records: Records) -> list[Judged]:
    """What the records say.

    Args:
        records: with `prompt` and `completion`, both texts or both lists of messages, and `label`:
            true or false, also as 1 and 0 or as text.

    Raises:
        BadRecordError: a record that has no such form, no prompt or an empty completion; says which
            record.
    """
    texts = read_chats(records, "prompt_completion")

    def read(index: int) -> Judged:
        answered, label = texts[index], records[index]["label"]
        empty = not answered.prompt if isinstance(answered, Plain) else answered.first == 0
        if empty:
            raise bad_record(records, index, "the prompt is empty, and a text answers nothing.")
        desirable = LABELS.get(str(label).strip().lower())
        if desirable is None:
            raise bad_record(
                records, index, f"the label is {label!r:.80}; true or false (1 or 0) is meant."
            )
        return Judged(answered, desirable)

    return of_each(records, read)


def with_other_answers(judged: Sequence[Judged], partners: Iterable[int]) -> list[Chat | Plain]:
    """Each one's prompt with the answer of its partner.

    Args:
        judged: all.
        partners: of each, the index of another.
    """
    return [
        _swapped(one.answered, judged[partner].answered)
        for one, partner in zip(judged, partners, strict=True)
    ]


def _swapped(one: Chat | Plain, other: Chat | Plain) -> Chat | Plain:
    if isinstance(one, Plain) and isinstance(other, Plain):
        return Plain(one.prompt, other.completion)
    if isinstance(one, Chat) and isinstance(other, Chat):
        before = one.dialogue.messages[: one.first]
        answer = other.dialogue.messages[other.first :]
        return Chat(Dialogue([*before, *answer], one.dialogue.tools), one.first)
    raise ValueError("Texts and messages cannot be mixed in one file: all records must be alike.")


def _pair(record: Mapping[str, Any]) -> Pair:
    chosen, rejected, prompt = (
        _text_or_messages(record.get(name)) for name in ("chosen", "rejected", "prompt")
    )
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("chosen and rejected must be both texts, or both lists of messages.")
    if isinstance(chosen, str):
        return _pair_of_texts(chosen, rejected, prompt)
    return _pair_of_messages(record, chosen, rejected, prompt)


def _text_or_messages(value: Any) -> Any:
    """Messages that a table holds as text; an answer may be a list in brackets, and is a text."""
    found = as_written(value)
    is_messages = isinstance(found, list) and all(isinstance(one, Mapping) for one in found)
    return found if is_messages else value


def _pair_of_texts(chosen: str, rejected: str, prompt: Any) -> Pair:
    if prompt is None:
        count = _beginning_of_words(chosen, rejected)
        prompt, chosen, rejected = chosen[:count], chosen[count:], rejected[count:]
        _refuse_without_prompt(prompt.strip())
    elif not isinstance(prompt, str):
        raise ValueError("prompt is no text, and chosen and rejected are; all must be of a kind.")
    _refuse_pair(chosen, rejected, [not chosen.strip(), not rejected.strip()])
    return Pair(Plain(prompt, chosen), Plain(prompt, rejected))


def _pair_of_messages(record: Mapping[str, Any], chosen: Any, rejected: Any, prompt: Any) -> Pair:
    liked, other = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
    if prompt is None or isinstance(prompt, str):
        count = _common(liked, other)
        before, liked, other = liked[:count], liked[count:], other[count:]
        _refuse_without_prompt(before)
    else:
        before = messages_of(prompt, "prompt")
        _refuse_without_prompt(before)
    _refuse_pair(liked, other, [all(map(is_empty, messages)) for messages in (liked, other)])
    tools, first = tools_of(record), len(before)
    return Pair(
        Chat(Dialogue([*before, *liked], tools), first),
        Chat(Dialogue([*before, *other], tools), first),
    )


def _refuse_without_prompt(prompt: Any) -> None:
    if not prompt:
        raise ValueError(
            "chosen and rejected have no common prompt: they differ from their beginning on. Give "
            "the prompt in a column of its own (config.data.prompt_field), or in both."
        )


def _refuse_pair(chosen: Any, rejected: Any, empty: Sequence[bool]) -> None:
    """Answers from which nothing can be learned."""
    # The same text says nothing, and what one begins with and the other does not have is empty.
    if chosen == rejected:
        raise ValueError("chosen and rejected are identical, and nobody can prefer one of them.")
    for name, is_so in zip(("chosen", "rejected"), empty, strict=True):
        if is_so:
            raise ValueError(f"the {name} answer is empty. Leave the record out, or fill it.")


def _beginning_of_words(chosen: str, rejected: str) -> int:
    """Characters that two texts begin with, up to the space before the first word that differs."""
    count = _common(chosen, rejected)
    if count == len(chosen) or count == len(rejected):
        return count
    while count and not chosen[count - 1].isspace():
        count -= 1
    return count - 1 if count and chosen[count - 1] == " " else count


def _common(chosen: Sequence, rejected: Sequence) -> int:
    pairs = zip(chosen, rejected, strict=False)
    return next(
        (count for count, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected))
    )
