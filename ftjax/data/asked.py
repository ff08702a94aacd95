"""Turns of chats that a network is to write itself: what asks for each, and what a person wrote."""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import transformers

from ftjax.data.chat import ChatTemplate, Dialogue, content_of, render
from ftjax.data.dialogues import Chat, Plain
from ftjax.data.examples import TextExamples
from ftjax.data.text import UnknownTokens, encode_prompt, encode_rendered, joined_tokens
from ftjax.data.turns import answer_turns, beginning


class Asked(NamedTuple):
    """A turn to be written.

    Attributes:
        prompt: token ids of all that stands before it, the prompt that asks for it included.
        question: what was said last.
        answer: what a person wrote.
    """

    prompt: list[int]
    question: str
    answer: str


def draw_asked(
    chats: Sequence[Chat | Plain],
    tokenizer: transformers.PreTrainedTokenizerBase,
    template: Callable[[], ChatTemplate],
    where: Callable[[int], str],
    *,
    count: int,
    most: int,
    seed: int,
) -> list[Asked]:
    """Turns of the assistant, drawn at random, one of a chat at most.

    Args:
        chats: to draw from.
        tokenizer: a fast tokenizer.
        template: gives the chat template, where there is a chat.
        where: what sentences call the chat of an index.
        count: how many turns; fewer where there are no more.
        most: tokens of a prompt; longer ones, and answers without a text, are passed over.
        seed: of the draw.

    Raises:
        ValueError: as `render`.
    """
    drawing = random.Random(seed)
    found: list[Asked] = []
    for index in drawing.sample(range(len(chats)), len(chats)):
        if len(found) == count:
            break
        one = chats[index]
        asked = (
            Asked(encode_prompt(tokenizer, one.prompt), one.prompt, one.completion)
            if isinstance(one, Plain)
            else _of_chat(one, tokenizer, template, where(index), drawing)
        )
        if asked is not None and 0 < len(asked.prompt) <= most:
            found.append(asked)
    return found


def _of_chat(
    chat: Chat,
    tokenizer: transformers.PreTrainedTokenizerBase,
    template: Callable[[], ChatTemplate],
    where: str,
    drawing: random.Random,
) -> Asked | None:
    messages = chat.dialogue.messages
    turns = [turn for turn in answer_turns(chat) if (messages[turn].get("content") or "").strip()]
    if not turns:
        return None
    turn = drawing.choice(turns)
    before: Dialogue = beginning(chat.dialogue, turn)
    (rendered,) = render(template(), [before], add_generation_prompt=True, where=lambda _: where)
    prompt = encode_rendered(tokenizer, rendered.text)
    return Asked(prompt, content_of(messages[turn - 1]), content_of(messages[turn]))


def prompts_of(
    asked: Sequence[Asked],
    tokenizer: transformers.PreTrainedTokenizerBase,
    buckets: Sequence[int],
    fingerprint: str,
) -> TextExamples:
    """The prompts, one a row; arguments as of `TextExamples`."""
    rows = [np.asarray(one.prompt, np.int32) for one in asked]
    tokens = joined_tokens(rows, None, 0, UnknownTokens(tokenizer))
    pad: Any = tokenizer.pad_token_id
    return TextExamples(tokens, buckets, 0 if pad is None else pad, fingerprint)
