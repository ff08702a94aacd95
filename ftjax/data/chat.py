"""Conversations as the text that a chat template makes of them: the one place that renders.

Templates run in a process of their own (template_process.py), so that whatever one does is a
sentence here: which template, which turn, what went wrong. A turn that a template passes over
without a word is found, too.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from ftjax.data.template_process import ENDLESS, TemplateProcess
from ftjax.files import read_json

# Dialogues of one question to the process, and their characters.
MOST_DIALOGUES = 256
MOST_CHARACTERS = 4_000_000

# To find the turn at which a template fails.
SECONDS_TO_SEARCH = 10.0

SYSTEM_ROLES = ("system", "developer")
# Templates may leave out what these said, such as the thoughts behind an earlier answer.
SHORTENED_ROLES = ("assistant", "tool")
# Names under which data sets have thoughts; templates read the first, some the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """What makes a text of a conversation.

    Attributes:
        text: the template, in Jinja as transformers has it.
        file: where it stands, for messages.
        names: what it may use in every conversation: the tokenizer's special tokens.
    """

    text: str
    file: Path
    names: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """What a template is given.

    Attributes:
        messages: dicts of "role" and "content" (a text, or a list of parts that are texts), perhaps
            of "tool_calls" and others that a template knows.
        tools: JSON schemas of functions that may be called.
        options: what else the template may use, such as "enable_thinking".
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rendered:
    """What a template made of a dialogue.

    Attributes:
        text: with special tokens written out.
        generated: (start, end) of what stands between the template's {% generation %} tags, in
            characters of the text; empty without such tags, None where their place is not known.
    """

    text: str
    generated: tuple[tuple[int, int], ...] | None


def template_of(
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: Path | None = None,
    *,
    tools: bool = False,
) -> ChatTemplate | None:
    """The chat template of a tokenizer, or of the chat_template.json beside it; None without one.

    Args:
        tokenizer: from a folder.
        folder: where its template stands, if not there.
        tools: whether dialogues have tools: of several templates, "tool_use" is taken, else
            "default".

    Raises:
        ValueError: several templates and none of these names, or a template that is no text.
    """
    folder, found = folder or Path(tokenizer.name_or_path), tokenizer.chat_template
    file, name = folder / "tokenizer_config.json", "default"
    if found is None and (folder / "chat_template.json").is_file():
        file = folder / "chat_template.json"
        content = read_json(file)
        found = content.get("chat_template") if isinstance(content, dict) else content
    if isinstance(found, dict):
        wanted = [n for n in (("tool_use",) if tools else ()) + ("default",) if n in found]
        if not wanted:
            raise ValueError(
                f"{file}: there are several chat templates ({', '.join(sorted(found))}) and none "
                'is named "default"; name the one to use so.'
            )
        name, found = wanted[0], found[wanted[0]]
    if found is None or found == "":
        return None
    if not isinstance(found, str):
        raise ValueError(f"{file}: chat_template is a {type(found).__name__}, not a text.")
    own = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
    if (folder / own).is_file():
        file = folder / own
    return ChatTemplate(found, file, dict(tokenizer.special_tokens_map))


def fold_system(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Puts the instructions that a dialogue begins with before the first user's text.

    For templates that know no system turn; an empty line stands between the two.

    Args:
        messages: as a `Dialogue` has them.

    Raises:
        ValueError: instructions without a turn of a user behind them.
    """
    roles = [message.get("role") for message in messages]
    count = next((i for i, role in enumerate(roles) if role not in SYSTEM_ROLES), len(roles))
    if not count:
        return list(messages)
    if roles[count : count + 1] != ["user"]:
        raise ValueError("A system turn can be folded into a user turn only, and none follows it.")
    whole = "\n\n".join(content_of(message) for message in messages[: count + 1])
    return [{**messages[count], "content": whole}, *messages[count + 1 :]]


def render(
    template: ChatTemplate,
    dialogues: Sequence[Dialogue],
    *,
    add_generation_prompt: bool = False,
    where: Callable[[int], str] = lambda index: f"Conversation {index + 1}",
) -> list[Rendered]:
    """What the template makes of each dialogue, as transformers' `apply_chat_template`.

    Args:
        template: see `template_of`.
        dialogues: to render, any number.
        add_generation_prompt: whether the assistant is to go on.
        where: what sentences call the dialogue of an index.

    Raises:
        ValueError: messages that are none; the template is no valid Jinja, fails, refuses a turn,
            does not end, or passes over a turn, the tools or an option. It names the dialogue and
            the turn, counted from 1.
        RuntimeError: as `TemplateProcess.ask`.
    """
    rendered: list[Rendered] = []
    renderer = _Renderer(template, add_generation_prompt)
    for questions in _in_portions(dialogues, where):
        answers = renderer.ask([question.text for question in questions])
        for question, answer in zip(questions, answers, strict=False):
            renderer.refuse_unread(question)
            if "error" in answer:
                raise ValueError(renderer.explained(question, answer["error"]))
            renderer.refuse_passed_over(question, answer["text"])
            spans = answer["spans"]
            spans = None if spans is None else tuple((start, end) for start, end in spans)
            rendered.append(Rendered(answer["text"], spans))
    return rendered


class _Question(NamedTuple):
    """A dialogue, checked.

    Attributes:
        where: what sentences call it.
        messages: as templates take them.
        names: what else the template may use.
        text: all of it, as JSON.
    """

    where: str
    messages: list[dict[str, Any]]
    names: dict[str, Any]
    text: str

    def about(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text with other messages."""
        return json.dumps(self.names | {"messages": messages})


class _Renderer:
    """A template, and the questions to its process."""

    def __init__(self, template: ChatTemplate, add_generation_prompt: bool):
        self._template = template
        self._names = {
            **template.names,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        self._read: frozenset[str] = frozenset()

    def ask(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """An answer per question, up to the first that failed.

        Raises:
            ValueError: the template fails before the first turn.
        """
        first, *answers = _process().ask(self._template.text, self._names, texts)
        if "error" in first:
            raise ValueError(
                f"No turn can be written: the chat template in {self._template.file} "
                f"{_ended(first['error'])}"
            )
        self._read = frozenset(first["names"])
        return answers

    def refuse_unread(self, question: _Question) -> None:
        """Tools and options that the template does not use."""
        given = [name for name, value in question.names.items() if value is not None]
        unread = [name for name in given if name not in self._read]
        if unread:
            raise ValueError(
                f"{question.where}: the chat template in {self._template.file} does not use "
                f"{' and '.join(unread)}; leave it out, or take a network whose template does."
            )

    def refuse_passed_over(self, question: _Question, text: str) -> None:
        """A turn whose content makes no difference to the text."""
        for turn, message in enumerate(question.messages, 1):
            content = message.get("content", "")
            if message["role"] in SHORTENED_ROLES or content.strip() in text:
                continue
            other = list(question.messages)
            other[turn - 1] = {**message, "content": f"{content} And more."}
            (answer,) = self.ask([question.about(other)])
            if answer.get("text") == text:
                raise ValueError(self._about_turn(question, turn, "passes over it"))

    def explained(self, question: _Question, error: str) -> str:
        """The sentence for a failure, with the shortest beginning that fails in the same way."""
        messages, end = question.messages, time.monotonic() + SECONDS_TO_SEARCH
        for turn in range(1, len(messages)):
            (answer,) = self.ask([question.about(messages[:turn])])
            found = answer.get("error", "")
            # Whether processor time or patience ended first is chance.
            if found == error or (ENDLESS in found and ENDLESS in error):
                return self._about_turn(question, turn, error)
            if time.monotonic() > end:
                break
        return self._about_turn(question, len(messages), error)

    def _about_turn(self, question: _Question, turn: int, what: str) -> str:
        role, file = question.messages[turn - 1]["role"], self._template.file
        sentence = f"{question.where}, turn {turn} ({role}): the chat template in {file} "
        sentence += _ended(what)
        if role in SYSTEM_ROLES and self._reads_folded(question, what):
            sentence += " Folded into the first user turn (fold_system), it works."
        return sentence

    def _reads_folded(self, question: _Question, what: str) -> bool:
        if what.startswith(ENDLESS):
            # A second time would take as long.
            return False
        try:
            folded = fold_system(question.messages)
        except ValueError:
            return False
        (answer,) = self.ask([question.about(folded)])
        return folded[0]["content"].strip() in answer.get("text", "")


@functools.cache
def _process() -> TemplateProcess:
    return TemplateProcess()


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else sentence + "."


def _in_portions(
    dialogues: Sequence[Dialogue], where: Callable[[int], str]
) -> Iterator[list[_Question]]:
    """As many as fit one question to the process."""
    portion, size = [], 0
    for index, dialogue in enumerate(dialogues):
        question = _checked(dialogue, where(index))
        portion.append(question)
        size += len(question.text)
        if len(portion) == MOST_DIALOGUES or size > MOST_CHARACTERS:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _checked(dialogue: Dialogue, where: str) -> _Question:
    """Raises ValueError for what is no dialogue."""
    if not dialogue.messages:
        raise ValueError(f"{where} has no messages.")
    messages = []
    for turn, message in enumerate(dialogue.messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"{where}, turn {turn}: a message needs a role, such as user.")
        try:
            messages.append(_as_templates_take_it(message))
        except ValueError as error:
            raise ValueError(f"{where}, turn {turn} ({message['role']}): {error}") from error
    names = {**dialogue.options}
    if dialogue.tools:
        names["tools"] = list(dialogue.tools)
    try:
        return _Question(where, messages, names, json.dumps(names | {"messages": messages}))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} holds what JSON cannot hold ({error}).") from error


def _as_templates_take_it(message: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in message.items() if value is not None}
    if "content" in plain:
        plain["content"] = content_of(message)
    thoughts = next((plain[name] for name in REASONING if name in plain), None)
    if thoughts is not None:
        plain = {"thinking": thoughts, **plain, "reasoning_content": thoughts}
    return plain


def content_of(message: Mapping[str, Any]) -> str:
    """A message's text; parts that are texts are joined by line breaks.

    Raises:
        ValueError: a part that is none, such as an image.
    """
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(f"its content is {content!r}, which is not a text.")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in ("text", "str") or not isinstance(text, str):
            raise ValueError(f"its content has a part of type {kind}; ftjax chats in texts only.")
        texts.append(text)
    return "\n".join(texts)
