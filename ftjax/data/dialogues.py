"""Records of the forms in which chats are published, as dialogues or as plain texts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ftjax.data.chat import REASONING, Dialogue, content_of
from ftjax.data.sources import Records
from ftjax.data.sources.records import bad_record, of_each
from ftjax.data.written_out import as_written

# Who speaks, as ShareGPT and what followed it have it.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "system": "system",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


class Chat(NamedTuple):
    """A conversation.

    Attributes:
        dialogue: as a template takes it, its contents as texts.
        first: the number of the first message whose answer is learned, from 0.
    """

    dialogue: Dialogue
    first: int = 0


class Plain(NamedTuple):
    """A text, without a template.

    Attributes:
        prompt: what it begins with; empty where all of it is learned.
        completion: what follows.
    """

    prompt: str
    completion: str


def read_chats(records: Records, form: str) -> list[Chat | Plain]:
    """What the records say.

    Args:
        records: with the names of the form, perhaps with `tools`.
        form: "messages" (`messages`, dicts of role and content, with `weight` 0 where an answer is
            not to be learned); "sharegpt" (`conversations`, dicts of from and value);
            "prompt_completion" (`prompt` and `completion`, both texts or both lists of messages);
            "alpaca" (`instruction`, perhaps `input`, and `output`); "text".

    Raises:
        ValueError: a record that has no such form, or an empty completion; says which record.
    """

    def read(index: int) -> Chat | Plain:
        try:
            return FORMS[form](records[index])
        except ValueError as error:
            raise bad_record(records, index, str(error)) from error

    return of_each(records, read)


def is_empty(message: Mapping[str, Any]) -> bool:
    """Whether a message says nothing."""
    said = (message.get(name) for name in ("content", "tool_calls", *REASONING))
    return not any(value.strip() if isinstance(value, str) else value for value in said)


def _of_messages(record: Mapping[str, Any]) -> Chat:
    return Chat(Dialogue(messages_of(record["messages"], "messages"), tools_of(record)))


def _of_sharegpt(record: Mapping[str, Any]) -> Chat:
    messages = []
    for turn, said in enumerate(_listed(record["conversations"], "conversations"), 1):
        if not isinstance(said, Mapping) or not {"from", "value"} <= said.keys():
            raise ValueError(f"turn {turn} of conversations needs from and value.")
        if said["from"] not in SPEAKERS:
            known = ", ".join(SPEAKERS)
            raise ValueError(f"turn {turn} is from {said['from']!r}; known are {known}.")
        message = {"role": SPEAKERS[said["from"]], "content": said["value"]}
        if "weight" in said:
            message["weight"] = said["weight"]
        messages.append(message)
    return Chat(Dialogue(messages_of(messages, "conversations"), tools_of(record)))


def _of_prompt_and_completion(record: Mapping[str, Any]) -> Chat | Plain:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise ValueError("prompt and completion must be both texts, or both lists of messages.")
    if isinstance(completion, str):
        _refuse_empty(completion, "completion")
        return Plain(prompt, completion)
    before, after = messages_of(prompt, "prompt"), messages_of(completion, "completion")
    if all(is_empty(message) for message in after):
        raise ValueError("the completion is empty. Leave the record out, or fill it.")
    return Chat(Dialogue([*before, *after], tools_of(record)), len(before))


def _of_alpaca(record: Mapping[str, Any]) -> Chat:
    """The input stands behind the instruction, after an empty line."""
    for name, text in record.items():
        if not isinstance(text, str):
            raise ValueError(f"{name} is {text!r:.200}, which is not a text.")
    _refuse_empty(record["output"], "output")
    asked = "\n\n".join(filter(None, (record["instruction"], record.get("input"))))
    answer = {"role": "assistant", "content": record["output"]}
    return Chat(Dialogue([{"role": "user", "content": asked}, answer]), 1)


def _of_text(record: Mapping[str, Any]) -> Plain:
    text = record["text"]
    if not isinstance(text, str):
        raise ValueError(f"text is {text!r:.200}, which is not a text.")
    _refuse_empty(text, "text")
    return Plain("", text)


FORMS = {
    "messages": _of_messages,
    "sharegpt": _of_sharegpt,
    "prompt_completion": _of_prompt_and_completion,
    "alpaca": _of_alpaca,
    "text": _of_text,
}


def messages_of(value: Any, name: str) -> list[dict[str, Any]]:
    """Messages with contents that are texts.

    Args:
        value: a list of dicts with role and content, or such a list as a table holds it.
        name: what sentences call it.

    Raises:
        ValueError: it is none; names the turn.
    """
    messages = []
    for turn, message in enumerate(_listed(value, name), 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"turn {turn} of {name} needs a role, such as user, and a content.")
        if (weight := message.get("weight")) not in (None, 0, 1):
            raise ValueError(
                f"turn {turn} ({message['role']}) has the weight {weight!r}; it may be 0 (not "
                "learned) or 1."
            )
        try:
            content = content_of(message)
        except ValueError as error:
            raise ValueError(f"turn {turn} ({message['role']}): {error}") from error
        # Templates tell a content that is missing from an empty one.
        missing = message.get("content") is None
        messages.append({**message} if missing else {**message, "content": content})
    return messages


def tools_of(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """The JSON schemas of a record's `tools`, if it has some."""
    return _listed(record["tools"], "tools") or None if record.get("tools") else None


def _listed(value: Any, name: str) -> list:
    found = as_written(value)
    if not isinstance(found, list):
        raise ValueError(f"{name} is {value!r:.200}, which is not a list.")
    return found


def _refuse_empty(text: str, name: str) -> None:
    if not text.strip():
        raise ValueError(f"the {name} is empty. Leave the record out, or fill it.")
