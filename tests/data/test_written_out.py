"""Lists in the cells of tables, as programs write them there."""

import json

import numpy as np
import pytest

from ftjax.data.written_out import as_written

WORDS = ["it's", 'a "b"', "c, d", "é", "[", "new\nline"]


@pytest.mark.parametrize("write", [json.dumps, repr, lambda words: str(np.array(words))])
def test_lists_of_texts_come_back(write):
    assert as_written(write(WORDS)) == WORDS
    assert as_written(f" {write(WORDS)}\n") == WORDS


@pytest.mark.parametrize("numbers", [[0, 1, 1], list(range(50)), [0.5, 2.0], []])
def test_lists_of_numbers_come_back(numbers):
    for write in (json.dumps, repr, lambda values: str(np.array(values))):
        assert as_written(write(numbers)) == numbers


def test_objects_come_back():
    chat = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": None}]
    for write in (json.dumps, repr):
        assert as_written(write(chat)) == chat
    assert as_written("{'text': ['a'], 'answer_start': [3]}") == {
        "text": ["a"],
        "answer_start": [3],
    }


@pytest.mark.parametrize(
    "text",
    [
        *("plain", "", "a b", "[a, b]", "[1", "['a' 'b", "[x for x in y]", "[open('f')]", "{1 2"),
        *("[" * 5000 + "]" * 5000, "[0 1 ... 2]", "{'a': array([1])}", "[\x00]", "['a'\\ 'b']"),
    ],
)
def test_anything_else_is_a_text(text):
    assert as_written(text) == text


def test_what_is_no_text_stays():
    rows = [{"a": 1}]
    assert as_written(rows) is rows
    assert as_written(3) == 3
