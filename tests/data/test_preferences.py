"""Pairs of answers in the forms in which they are published."""

import json

import pytest

from ftjax.data.dialogues import Chat, Plain
from ftjax.data.preferences import read_pairs
from ftjax.data.sources.records import Records


def pair_of(**record):
    (pair,) = read_pairs(Records("pairs", [record]))
    return pair


def said(*turns):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]


def test_texts_with_a_prompt():
    pair = pair_of(prompt="2 + 2 = ", chosen="4", rejected="5")
    assert pair == (Plain("2 + 2 = ", "4"), Plain("2 + 2 = ", "5"))


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        # Never within a word.
        ("We can go", "We can't go", "We"),
        ("Q: why?\nA: so", "Q: why?\nA: no", "Q: why?\nA:"),
        ("Q: why?\nso", "Q: why?\nno", "Q: why?\n"),
    ],
)
def test_texts_that_begin_alike(chosen, rejected, prompt):
    pair = pair_of(chosen=chosen, rejected=rejected)
    assert pair.chosen == Plain(prompt, chosen.removeprefix(prompt))
    assert pair.rejected == Plain(prompt, rejected.removeprefix(prompt))


def test_messages_with_a_prompt():
    answers = {"chosen": said("a", "yes")[1:], "rejected": said("a", "no")[1:]}
    pair = pair_of(prompt=said("a"), **answers)
    assert isinstance(pair.chosen, Chat)
    assert [m["content"] for m in pair.chosen.dialogue.messages] == ["a", "yes"]
    assert [m["content"] for m in pair.rejected.dialogue.messages] == ["a", "no"]
    assert pair.chosen.first == pair.rejected.first == 1


@pytest.mark.parametrize("prompt", [{}, {"prompt": "a"}, {"prompt": None}])
def test_messages_that_begin_alike(prompt):
    """As in UltraFeedback, whose prompt stands beside them as a text."""
    pair = pair_of(chosen=said("a", "b", "c", "yes"), rejected=said("a", "b", "c", "no"), **prompt)
    assert pair.chosen.first == 3
    assert pair.rejected.dialogue.messages[3]["content"] == "no"


def test_messages_in_cells_of_a_table_and_answers_in_brackets():
    cells = {n: json.dumps(said("a", n)) for n in ("chosen", "rejected")}
    assert pair_of(**cells).chosen.first == 1
    assert pair_of(prompt="list: ", chosen="[1, 2]", rejected="[1]").chosen.completion == "[1, 2]"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"chosen": "a b", "rejected": said("a", "b")}, "both texts, or both lists"),
        ({"chosen": "a b", "rejected": "c d"}, "no common prompt"),
        ({"chosen": said("a", "b"), "rejected": said("c", "d")}, "no common prompt"),
        ({"prompt": [], "chosen": said("a"), "rejected": said("b")}, "no common prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "identical"),
        ({"chosen": said("a", "b"), "rejected": said("a", "b")}, "identical"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "the chosen answer is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "the rejected answer is empty"),
        ({"chosen": "a b", "rejected": "a b c"}, "the chosen answer is empty"),
        ({"chosen": said("a", "b"), "rejected": said("a", " ")}, "the rejected answer is empty"),
        ({"prompt": said("a"), "chosen": "b", "rejected": "c"}, "must be of a kind"),
        ({"prompt": "a", "chosen": 4, "rejected": 5}, "chosen is 4, which is not a list"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "both texts, or both lists"),
    ],
)
def test_what_nothing_can_be_learned_from(record, told):
    with pytest.raises(ValueError, match=f"pairs, record 1: .*{told}"):
        pair_of(**record)
