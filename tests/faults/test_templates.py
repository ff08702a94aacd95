"""Damaged and hostile chat templates: one sentence that names file and turn, soon, or a text."""

import random
import time

import pytest
from chat_templates import TEMPLATES

from ftjax.data.chat import ChatTemplate, Dialogue, render

SECONDS = 60.0
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]
FOR_ALL = "{% for m in messages %}{{ m.content }}{% endfor %}"
IN_THE_THIRD = FOR_ALL.replace("{{", "{% if loop.index == 3 %}WHAT{% endif %}{{")
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

# What each ends with, and the turn; 0 is a template that is not even begun.
HOSTILE = {
    "a loop without end": (LOOP, 1, "does not end"),
    "a loop in the third turn": (IN_THE_THIRD.replace("WHAT", LOOP), 3, "does not end"),
    "a large power": ("{{ 7 ** (10 ** 8) }}", 0, "does not end"),
    "a large power at last": ("{{ 7 ** (messages | length * 10 ** 8) }}", 1, "does not end"),
    "a large text": ("{{ 'a' * 10 ** 10 }}", 1, "GiB of memory"),
    "a text doubled": (
        "{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}"
        "{% endfor %}",
        1,
        "GiB of memory",
    ),
    "a wide number": ("{{ '%*d' | format(10 ** 12, 1) }}", 1, "GiB of memory"),
    "text without end": (
        "{% for i in range(99999) %}{% for j in range(999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaa{{ j }}"
        "{% endfor %}{% endfor %}",
        1,
        "writes more than 10,000,000 characters",
    ),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", 1, "calls itself too deeply"),
    "parentheses": ("{{ " + "(" * 30000 + "1" + ")" * 30000 + " }}", 0, "too deeply"),
    "loops in loops": ("{% for m in messages %}" * 99 + "{% endfor %}" * 99, 0, "too deeply"),
    "half a tag": ("{% for m in messages %}{{ m.content }", 0, "no valid Jinja, in line 1"),
    "an unknown tag": ("\n{% transmogrify %}", 0, "in line 2: Encountered unknown tag"),
    "an unknown filter": ("{{ messages | transmogrify }}", 0, "No filter named"),
    "an undefined name": (IN_THE_THIRD.replace("WHAT", "{{ a.b }}"), 3, "'a' is undefined"),
    "a wrong type": (IN_THE_THIRD.replace("WHAT", "{{ m.content + 1 }}"), 3, "TypeError"),
    "division": ("{{ 1 / (messages | length - 3) }}" + FOR_ALL, 3, "division by zero"),
    "its own error": (IN_THE_THIRD.replace("WHAT", "{{ raise_exception(m) }}"), 3, "refuses it"),
    "the class of a text": ("{{ ''.__class__.__mro__ }}", 1, "what no template may"),
    "a changed argument": ("{{ messages.append(1) }}", 1, "what no template may"),
    "a function's module": ("{{ raise_exception.__globals__['json'] }}", 1, "what no template may"),
    "underscores in a namespace": ("{{ namespace(__init__=1) }}", 1, "what no template may"),
    "a format string": ("{{ '{0.__class__}'.format(messages) }}", 1, "passes over it"),
    "another file": ("{% include '/etc/passwd' %}", 1, "no loader"),
    "an import": ("{% import 'os' as os %}{{ os }}", 1, "no loader"),
}


def sentence_of(template):
    """What is said, or None if it writes a text."""
    made, start = ChatTemplate(template, "folder/chat_template.jinja", NAMES), time.monotonic()
    sentence = None
    try:
        render(made, [Dialogue(MESSAGES)], where=lambda _: "The conversation")
    except ValueError as error:
        sentence = str(error)
        assert "chat template in folder/chat_template.jinja" in sentence
        assert "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 600
    assert time.monotonic() - start < SECONDS
    return sentence


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name):
    template, turn, what = HOSTILE[name]
    sentence = sentence_of(template)
    begin = f"The conversation, turn {turn} (" if turn else "No turn can be written: "
    assert sentence.startswith(begin) and what in sentence, sentence
    # The next is not disturbed.
    assert sentence_of(FOR_ALL) is None


def mutated(text, generator):
    """With some characters, or a stretch of them, replaced, doubled or left out."""
    kind, place = generator.choice(["cut", "out", "double", "swap"]), generator.randrange(len(text))
    end = place + generator.randrange(1, 30)
    if kind == "cut":
        return text[:place]
    if kind == "out":
        return text[:place] + text[end:]
    if kind == "double":
        return text[:end] + text[place:]
    letters = "".join(generator.choice("{}%-'\"()[]|.=+x0 \n") for _ in range(2))
    return text[:place] + letters + text[place + 2 :]


@pytest.mark.parametrize("name", TEMPLATES)
def test_damaged(name):
    generator, sentences = random.Random(name), []
    for _ in range(30):
        sentences.append(sentence_of(mutated(TEMPLATES[name], generator)))
    assert any(sentences) and not all(sentences), "too little or too much damage to learn from"
