"""Questions and their contexts: windows, places of answers, and what is refused."""

import json

import numpy as np
import pytest
from tiny import write_subword_tokenizer

from ftjax.data.sources import Records, load_records
from ftjax.data.spans import answers_of, span_examples
from ftjax.data.tokenizer import load_tokenizer

FIELDS = {name: name for name in ("id", "question", "context", "answers")}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_subword_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def some_records(count=30, longest=30, seed=0):
    """Contexts of words; answers are one to three whole words, or there is none."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        words = [f"word{n}" for n in random.integers(0, 99, int(random.integers(3, longest)))]
        first = int(random.integers(0, len(words) - 2))
        text = " ".join(words[first : first + int(random.integers(1, 4))])
        start = len(" ".join([*words[:first], ""]))
        answers = {"text": [text], "answer_start": [start]}
        if index % 5 == 0:
            answers = {"text": [], "answer_start": []}
        rows.append({"question": "word7 word8", "context": " ".join(words), "answers": answers})
    return Records("questions", rows)


def make(records, tokenizer, length=24, stride=6):
    return span_examples(records, tokenizer, (length,), stride=stride, answers=answers_of(records))


@pytest.mark.parametrize(("length", "stride"), [(24, 6), (40, 0), (13, 4), (200, 128)])
def test_windows_are_those_of_the_tokenizers_own_overflow(tokenizer, length, stride):
    records = some_records()
    examples = make(records, tokenizer, length, stride)
    theirs = tokenizer(
        [record["question"] for record in records],
        [record["context"] for record in records],
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    tokens = examples.examples.tokens
    rows = np.split(tokens.input_ids, tokens.offsets[1:-1])
    assert [row.tolist() for row in rows] == theirs["input_ids"]
    types = np.split(tokens.token_type_ids, tokens.offsets[1:-1])
    assert [row.tolist() for row in types] == theirs["token_type_ids"]
    assert examples.question_of.tolist() == list(theirs["overflow_to_sample_mapping"])
    characters = np.split(examples.characters, tokens.offsets[1:-1])
    for window, offsets in enumerate(theirs["offset_mapping"]):
        inside = [part == 1 for part in theirs.sequence_ids(window)]
        (places,) = np.nonzero(inside)
        columns = examples.examples.columns
        assert places[[0, -1]].tolist() == [
            columns["context_start"][window],
            columns["context_end"][window],
        ]
        assert characters[window][inside].tolist() == [list(o) for o in np.array(offsets)[inside]]
        assert not characters[window][~np.array(inside)].any()


def test_answers_are_labelled_where_a_window_holds_them_whole(tokenizer):
    records = some_records()
    examples = make(records, tokenizer)
    rows = len(examples.lengths)
    batch = examples.batch(np.arange(rows), rows=rows + 1, length=24)
    found = set()
    for window, question in enumerate(examples.question_of):
        first, last = batch["start_positions"][window], batch["end_positions"][window]
        answers = records[question]["answers"]
        if first == 0:
            assert last == 0
            continue
        one = examples.candidate(window, first, last)
        assert (one.text, one.start) == (answers["text"][0], answers["answer_start"][0])
        found.add(int(question))
    # Two windows share 6 tokens, and an answer has up to nine.
    assert len(found) > 20 and found < {i for i in range(30) if i % 5}
    assert batch["null_positions"].tolist() == [0] * (rows + 1)
    assert batch["weights"].tolist() == [1.0] * rows + [0.0]


def test_an_answer_inside_a_token_has_the_tokens_around_it(tokenizer):
    record = {"question": "word1", "context": "word12 word34 word5"}
    record["answers"] = {"text": ["ord34 w"], "answer_start": [8]}
    examples = make(Records("questions", [record]), tokenizer)
    columns = examples.examples.columns
    place = int(columns["start_positions"][0]), int(columns["end_positions"][0])
    assert examples.candidate(0, *place)[1:] == (7, 18, "word34 word")
    assert examples.tokens_of(0, 8, 15) == place
    assert examples.tokens_of(0, 0, 99) is None


def test_candidates_of_all_windows_come_once_each_and_the_best_first(tokenizer):
    context = " ".join(["word1 word2"] + ["word3"] * 9)
    records = Records("questions", [{"question": "word7", "context": context}] * 2)
    examples = span_examples(records, tokenizer, (20,), stride=6)
    windows = examples.windows_of(1)
    assert examples.windows_of(0) == range(2) and windows == range(2, 4)
    first = int(examples.examples.columns["context_start"][0])
    found = np.zeros((4, 2, 3))
    found[..., 0] = -1
    found[2, 0] = (first, first + 1, 1.5)
    # The last tokens of one window are the first of the next.
    at = int(examples.examples.columns["context_end"][2])
    found[2, 1] = (at, at, -1.0)
    found[3, 0] = (first + 5, first + 5, 2.5)
    assert examples.candidates(found)[0] == []
    one, other = examples.candidates(found)[1]
    assert (one.score, other.score) == (2.5, 1.5)
    assert other[1:] == (0, 5, "word1")
    assert context[one.start : one.end] == one.text


def row(**changes):
    found = {"question": "word1", "context": "word1 word2 word3"}
    return found | {"answers": {"text": ["word2"], "answer_start": [6]}} | changes


BAD = [
    ({"answers": {"text": ["word2"], "answer_start": [7]}}, r"at character 7 .* stands 'ord2 '"),
    ({"answers": {"text": ["word2"], "answer_start": [7]}}, "It stands at character 6"),
    ({"answers": {"text": [" word2"], "answer_start": [6]}}, r"the answer is ' word2'"),
    ({"answers": {"text": ["word3"], "answer_start": [13]}}, "is outside of the context"),
    ({"answers": {"text": ["word3"], "answer_start": [-5]}}, "is outside of the context"),
    ({"answers": {"text": ["word2"], "answer_start": []}}, "two lists of one length"),
    ({"answers": {"text": "word2", "answer_start": 6}}, "two lists of one length"),
    ({"answers": "word2"}, "two lists of one length"),
    ({"answers": {"text": [" "], "answer_start": [5]}}, "leave the list empty"),
    ({"answers": {"text": ["word2"], "answer_start": ["6"]}}, "begins at '6'"),
    ({"answers": [{"text": "word2", "answer_start": 5}]}, r"stands ' word'"),
    ({"context": ["word1"]}, r"context is \['word1'\], which is not a text"),
    ({"question": " "}, "makes nothing of the question"),
    ({"context": "\n", "answers": {"text": [], "answer_start": []}}, "nothing of the context"),
    ({"question": "word12 " * 8}, r"take 27 of the 24 tokens .*Shorten the question"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_cannot_be_learned_from_is_refused_with_its_record(tokenizer, changes, message):
    records = Records("questions", [row(), row(**changes)])
    with pytest.raises(ValueError, match=f"^questions, record 2: .*{message}"):
        make(records, tokenizer)


def test_a_context_that_fits_needs_no_room_for_a_stride(tokenizer):
    examples = make(Records("questions", [row()]), tokenizer, length=14, stride=13)
    assert len(examples.lengths) == 1


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "One",
            "paragraphs": [
                {
                    "context": "word1 word2",
                    "qas": [
                        {
                            "id": "a",
                            "question": "word1",
                            "answers": [{"text": "word2", "answer_start": 6}],
                            "is_impossible": False,
                        },
                        {
                            "id": "b",
                            "question": "word2",
                            "answers": [],
                            "plausible_answers": [{"text": "word1", "answer_start": 0}],
                            "is_impossible": True,
                        },
                    ],
                },
                {"context": "word3", "qas": []},
            ],
        },
        {"title": "Two", "paragraphs": []},
    ],
}


def test_squads_own_files(tmp_path):
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(SQUAD))
    records = load_records(str(tmp_path / "dev-v2.0.json"), split="", fields=FIELDS)
    assert [record["id"] for record in records] == ["a", "b"]
    assert [record["context"] for record in records] == ["word1 word2"] * 2
    assert answers_of(records) == [[(6, "word2")], []]
    assert records.where(1).endswith("dev-v2.0.json, question 2")


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_answers_in_the_cells_of_a_table(write):
    rows = some_records()
    table = Records("q", [{**row, "answers": write(row["answers"])} for row in rows])
    assert answers_of(table) == answers_of(rows)


@pytest.mark.parametrize(
    ("paragraphs", "message"),
    [
        ({}, "article 2: its paragraphs must be a list"),
        ([{"qas": []}], "article 2, paragraph 1: it has no context"),
        ([{"context": "word"}], "article 2, paragraph 1: its qas must be a list"),
        ([{"context": "word", "qas": ["a"]}], "article 2, paragraph 1: its qas must be objects"),
    ],
)
def test_damaged_files_of_squad(tmp_path, paragraphs, message):
    damaged = {"data": [SQUAD["data"][0], {"title": "Two", "paragraphs": paragraphs}]}
    (tmp_path / "dev.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match=message):
        load_records(str(tmp_path / "dev.json"), split="", fields=FIELDS)
