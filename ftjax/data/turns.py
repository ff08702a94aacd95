"""Where the assistant's turns stand in a rendered conversation, proved and not believed.

A turn begins where the prompt ends that the template writes to ask for it, and ends where the
conversation ends if nothing follows it: end of turn included, the next header not. Both are
renderings of their own, and what is learned must begin with them, character for character, so that
a finished network is asked with exactly what it was taught with.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ftjax.data.chat import REASONING, ChatTemplate, Dialogue, Rendered, render
from ftjax.data.dialogues import Chat, is_empty
from ftjax.data.sources.records import BadRecordError
from ftjax.data.template_process import ENDLESS

Where = Callable[[int], str]
Spans = tuple[tuple[int, int], ...]

# Around thoughts that stand in a content.
THOUGHTS = re.compile(r"</?think(?:ing)?>")
SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Marked:
    """A text of which a part is learned.

    Attributes:
        text: a rendered conversation, or a plain text.
        spans: (start, end) of what is learned, in characters, rising.
        rendered: whether a chat template wrote it, special tokens included.
    """

    text: str
    spans: Spans
    rendered: bool = True


def mark_turns(
    template: ChatTemplate, chats: Sequence[Chat], where: Where, special: Collection[str]
) -> list[list[Marked]]:
    """The examples of each chat, with all answers from its `first` message on.

    That is one example where earlier answers are written like the last. Where they are not (a
    template may leave out their thoughts), an answer has an example of its own, in which it is the
    last. An answer that a chat begins with was not asked for and is not learned.

    Args:
        template: see `chat.template_of`.
        chats: to be learned.
        where: what sentences call the chat of an index.
        special: the tokenizer's special tokens, which nothing begins or ends within.

    Raises:
        BadRecordError: by the chats' indices: as `render`; a chat without an answer, or with an
            empty one; a template that leaves out or repeats a turn or a part of it, that asks
            otherwise than it writes, or whose {% generation %} tags mark something else.
    """
    _refuse_without_answer(chats, where)
    _prove_each_once(template, chats, where)
    turns = [(number, turn) for number, chat in enumerate(chats) for turn in _answers_of(chat)]
    numbers = [number for number, _ in turns]

    def texts(beyond: int, prompt: bool) -> list[Rendered]:
        dialogues = [beginning(chats[number].dialogue, turn + beyond) for number, turn in turns]
        return _render(template, dialogues, numbers, where, prompt=prompt)

    renderings = zip(texts(0, True), texts(1, False), texts(1, True), strict=True)
    answers: list[list[_Answer]] = [[] for _ in chats]
    for (number, turn), (before, whole, going_on) in zip(turns, renderings, strict=True):
        told = f"{where(number)}, turn {turn + 1} (assistant): the chat template in {template.file}"
        message = chats[number].dialogue.messages[turn]
        # What the turn has at least: some templates end a conversation with more than a turn.
        least = _common(whole.text, going_on.text, special)
        answers[number].append(_Answer(message, before.text, whole, least, told))
    examples, problems = [], {}
    for number, found in enumerate(answers):
        try:
            examples.append(_examples_of(found, special))
        except ValueError as error:
            problems[number] = str(error)
    _refuse(problems)
    return examples


class _Answer(NamedTuple):
    """A message of the assistant, what asks for it, what ends with it; how sentences begin."""

    message: Mapping[str, Any]
    before: str
    whole: Rendered
    least: str
    told: str


def _examples_of(answers: Sequence[_Answer], special: Collection[str]) -> list[Marked]:
    """The examples of a chat; the last answers are in the last of them."""
    found: list[_Example] = []
    for answer in reversed(answers):
        text, start = answer.whole.text, len(answer.before)
        _refuse_other_prompt(answer.before, text, answer.told)
        _refuse_left_out(answer.message, text[start:], answer.told)
        if not found or not _goes_on(found[-1].whole.text, answer):
            found.append(_Example(answer.whole, [], [], answer.told))
        span = (start, len(_common(text, found[-1].whole.text, special)))
        found[-1].spans.insert(0, span)
        if not _is_learned(answer.message):
            found[-1].passed_over.append(span)
    return [
        example.marked()
        for example in reversed(found)
        if len(example.passed_over) < len(example.spans)
    ]


def mark_all(template: ChatTemplate, chats: Sequence[Chat], where: Where) -> list[list[Marked]]:
    """An example of each chat, all of it learned; see `mark_turns`.

    Raises:
        BadRecordError: as `mark_turns`; an answer of weight 0.
    """
    _refuse_without_answer(chats, where)
    _refuse(
        {
            number: f"{where(number)}: it has an answer of weight 0, and all of a chat is learned. "
            "Set config.objective.assistant_only_loss (or completion_only_loss) to True."
            for number, chat in enumerate(chats)
            if answer_turns(chat) != _answers_of(chat)
        }
    )
    _prove_each_once(template, chats, where)
    rendered = _render(template, [chat.dialogue for chat in chats], range(len(chats)), where)
    return [[Marked(one.text, ((0, len(one.text)),))] for one in rendered]


@dataclasses.dataclass
class _Example:
    """A rendering, the answers in it, those that are not learned, and how messages begin."""

    whole: Rendered
    spans: list[tuple[int, int]]
    passed_over: list[tuple[int, int]]
    told: str

    def marked(self) -> Marked:
        """As the template's own tags say, if it has some."""
        tags = [span for span in self.whole.generated or () if span[1] > self.spans[0][0]]
        if self.whole.generated:
            self._refuse_other_tags(tags)
        learned = (
            (start, end)
            for start, end in tags or self.spans
            if not any(start < last and first < end for first, last in self.passed_over)
        )
        return Marked(self.whole.text, tuple(learned))

    def _refuse_other_tags(self, tags: Sequence[tuple[int, int]]) -> None:
        """Line ends and spaces around a turn may belong to it or not."""
        text = self.whole.text
        for one, other, what in (
            (self.spans, tags, "leaves out {}, which the network has to write"),
            (tags, self.spans, "holds {}, which the network does not write when it is asked"),
        ):
            for start, end in _without(one, other):
                if text[start:end].strip():
                    shown = what.format(repr(text[start:end][:SHOWN]))
                    raise ValueError(
                        f"{self.told} marks the wrong part: its generation tag {shown}."
                    )


def answer_turns(chat: Chat) -> list[int]:
    """The numbers of the messages that are learned."""
    messages = chat.dialogue.messages
    return [turn for turn in _answers_of(chat) if _is_learned(messages[turn])]


def _answers_of(chat: Chat) -> list[int]:
    """The numbers of the assistant's messages behind others."""
    messages = chat.dialogue.messages
    turns = range(max(chat.first, 1), len(messages))
    return [turn for turn in turns if messages[turn]["role"] == "assistant"]


def _is_learned(message: Mapping[str, Any]) -> bool:
    return message.get("weight") != 0


def _refuse_without_answer(chats: Sequence[Chat], where: Where) -> None:
    problems = {}
    for number, chat in enumerate(chats):
        messages, turns = chat.dialogue.messages, answer_turns(chat)
        if not turns:
            roles = ", ".join(message["role"] for message in messages)
            problems[number] = (
                f"{where(number)}: no turn of the assistant answers anything (roles: "
                f"{roles or 'none'}). What is learned are messages of the role assistant behind "
                "others, but those of weight 0."
            )
        if empty := [turn for turn in turns if is_empty(messages[turn])]:
            problems[number] = (
                f"{where(number)}, turn {empty[0] + 1} (assistant) is empty. Leave it out, or fill "
                "it."
            )
    _refuse(problems)


def _refuse(problems: Mapping[int, str]) -> None:
    if problems:
        raise BadRecordError(problems)


def _render(
    template: ChatTemplate,
    dialogues: Sequence[Dialogue],
    numbers: Sequence[int],
    where: Where,
    *,
    prompt: bool = False,
) -> list[Rendered]:
    """As `render`; of dialogues of the chats of these numbers, all that fail are named."""
    start, found = 0, []
    problems: dict[int, str] = {}
    while start < len(dialogues):
        try:
            found += render(
                template,
                dialogues[start:],
                add_generation_prompt=prompt,
                where=lambda index, start=start: where(numbers[start + index]),
            )
            break
        except ValueError as error:
            told, left = str(error), range(start, len(dialogues))
            at = next((i for i in left if _is_about(told, where(numbers[i]))), None)
            if at is None or ENDLESS in told:
                raise
            problems.setdefault(numbers[at], told)
            start = at + 1
    _refuse(problems)
    return found


def _is_about(told: str, place: str) -> bool:
    """Whether a sentence begins with a place, and not with line 12 for line 1."""
    return told.startswith(place) and not told[len(place) : len(place) + 1].isdecimal()


def _prove_each_once(template: ChatTemplate, chats: Sequence[Chat], where: Where) -> None:
    """Dialogues of each shape with names in the place of contents: each must stand there once."""
    shapes: dict[tuple, list[int]] = {}
    for number, chat in enumerate(chats):
        shape = _shape(chat.dialogue), chat.dialogue.tools is None
        shapes.setdefault(shape, []).append(number)
    firsts, problems = [numbers[0] for numbers in shapes.values()], {}
    named = [_named(beginning(chats[n].dialogue, answer_turns(chats[n])[-1] + 1)) for n in firsts]
    try:
        rendered = _render(template, named, firsts, where)
    except BadRecordError as error:
        for numbers in shapes.values():
            if told := error.problems.get(numbers[0]):
                told = told.removeprefix(where(numbers[0]))
                problems |= {number: where(number) + told for number in numbers}
        raise BadRecordError(problems) from error
    for numbers, dialogue, one in zip(shapes.values(), named, rendered, strict=True):
        for turn, message in enumerate(dialogue.messages, 1):
            content = message.get("content")
            if content and (count := one.text.count(content)) != 1:
                what = "leaves it out" if count == 0 else f"writes it {count} times"
                told = (
                    f", turn {turn} ({message['role']}): the chat template in {template.file} "
                    f"{what}, and so with every chat of such roles."
                )
                problems |= {number: where(number) + told for number in numbers}
    _refuse(problems)


def _shape(dialogue: Dialogue) -> tuple:
    return tuple(
        (message["role"], bool(message.get("content")), bool(message.get("tool_calls")))
        for message in dialogue.messages
    )


def _named(dialogue: Dialogue) -> Dialogue:
    messages = []
    for turn, message in enumerate(dialogue.messages):
        plain = {name: value for name, value in message.items() if name not in REASONING}
        messages.append(
            plain | ({"content": f"ftjax{turn:05d}turn"} if plain.get("content") else {})
        )
    return dataclasses.replace(dialogue, messages=messages)


def beginning(dialogue: Dialogue, end: int) -> Dialogue:
    """The messages before that number."""
    return dataclasses.replace(dialogue, messages=dialogue.messages[:end])


def _refuse_other_prompt(before: str, whole: str, told: str) -> None:
    if not whole.startswith(before):
        same = len(_common(before, whole, ()))
        raise ValueError(
            f"{told} asks for it with {before[same:][:SHOWN]!r}, where the whole conversation has "
            f"{whole[same:][:SHOWN]!r}: a finished network would be asked otherwise than it was "
            "taught."
        )


def _refuse_left_out(message: Mapping[str, Any], turn: str, told: str) -> None:
    parts = [("a part of it", part) for part in THOUGHTS.split(message.get("content") or "")]
    parts += [(f"its {name}", message[name]) for name in REASONING if message.get(name)]
    for call in filter(None, message.get("tool_calls") or ()):
        function = call.get("function") or call
        parts.append(("its call of a tool", str(function.get("name", ""))))
    for what, part in parts:
        if part.strip() not in turn:
            raise ValueError(
                f"{told} leaves out {what}, {part.strip()[:SHOWN]!r}. Take that out of the data, "
                "or take a network whose template writes it."
            )


def _goes_on(text: str, answer: _Answer) -> bool:
    """Whether a conversation is one that goes on, with the turn and what ends it."""
    if text.startswith(answer.whole.text):
        return True
    last = (answer.message.get("content") or "").strip()
    ends = not answer.message.get("tool_calls") and not answer.least.rstrip().endswith(last)
    return ends and text.startswith(answer.least)


def _common(first: str, second: str, special: Collection[str]) -> str:
    """What both begin with, without the half of a special token."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    for token in special:
        start = first.rfind(token, max(low - len(token) + 1, 0), low + len(token) - 1)
        low = start if 0 <= start < low < start + len(token) else low
    return first[:low]


def _without(
    spans: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """The parts of spans that lie in none of the others; both rise."""
    for start, end in spans:
        for other_start, other_end in others:
            if other_end <= start or other_start >= end:
                continue
            if other_start > start:
                yield start, other_start
            start = max(start, other_end)
        if start < end:
            yield start, end
