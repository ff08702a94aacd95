"""Words and their tokens: windows, places, labels."""

import itertools

import numpy as np
import pytest
from tiny import write_subword_tokenizer, write_tokenizer

from ftjax.data.sources import Records
from ftjax.data.tagged import tag_names, tagged_examples, tags_of
from ftjax.data.tokenizer import load_tokenizer

CLASSES = ["O", "B-X", "I-X"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_subword_tokenizer(folder)
    return load_tokenizer(folder)


def some_records(count=40, seed=0, longest=30):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        size = int(random.integers(1, longest))
        words = [f"word{n}" for n in random.integers(0, 200, size)]
        rows.append({"tokens": words, "tags": random.choice(CLASSES, size).tolist()})
    return Records("sentences", rows)


def make(records, tokenizer, length=16, stride=4, classes=CLASSES):
    return tagged_examples(records, tokenizer, (8, length), stride=stride, classes=classes)


@pytest.mark.parametrize(("length", "stride"), [(16, 4), (64, 0), (7, 3), (16, 0)])
def test_every_word_is_judged_once_at_its_first_token(tokenizer, length, stride):
    records = some_records()
    examples = tagged_examples(records, tokenizer, (length,), stride=stride, classes=CLASSES)
    words = [word for record in records for word in record["tokens"]]
    assert len(examples.places) == len(words)
    tokens = examples.examples.tokens
    for word, (window, position) in zip(words, examples.places, strict=True):
        start = tokens.offsets[window] + position
        own = tokenizer(word, add_special_tokens=False)["input_ids"]
        # A window may end within the word.
        inside = tokens.offsets[window + 1] - start - 1
        assert tokens.input_ids[start : start + min(len(own), inside)].tolist() == own[:inside]
    assert len(np.unique(examples.places, axis=0)) == len(words)
    assert (examples.lengths <= length).all()


def test_labels_and_weights_are_those_of_the_words(tokenizer):
    records = some_records()
    examples = make(records, tokenizer)
    rows = len(examples.lengths)
    batch = examples.batch(np.arange(rows), rows=rows + 1, length=16)
    tags = list(itertools.chain.from_iterable(record["tags"] for record in records))
    assert batch["weights"].sum() == len(tags)
    window, position = examples.places.T
    assert [CLASSES[n] for n in batch["labels"][window, position]] == tags
    assert not batch["weights"][rows:].any() and batch["labels"].min() == 0


def test_a_word_is_judged_where_both_ends_of_the_window_are_farthest(tokenizer):
    words = [f"word{n}" for n in range(60)]
    examples = make(Records("s", [{"tokens": words, "tags": ["O"] * 60}]), tokenizer)
    lengths = examples.lengths
    assert len(lengths) > 3
    tokens = examples.examples.tokens
    for word, (window, position) in zip(words, examples.places, strict=True):
        own = tokenizer(word, add_special_tokens=False)["input_ids"][0]
        room = min(position, lengths[window] - 1 - position)
        for other in range(len(lengths)):
            start, end = tokens.offsets[other : other + 2]
            for place in np.flatnonzero(tokens.input_ids[start:end] == own):
                begins = tokenizer.convert_ids_to_tokens(int(own)) == word
                if begins:
                    assert min(place, end - start - 1 - place) <= room


def test_what_is_said_at_a_place_is_said_of_the_word(tokenizer):
    examples = make(some_records(), tokenizer)
    window, position = examples.places.T
    outputs = np.zeros((len(examples.lengths), 16))
    outputs[window, position] = np.arange(len(window)) + 1
    assert examples.by_word(outputs, 0.0).tolist() == (np.arange(len(window)) + 1).tolist()


def test_a_word_that_the_tokenizer_makes_nothing_of_is_missing(tmp_path):
    write_tokenizer(tmp_path, with_end=False)
    tokenizer = load_tokenizer(tmp_path)
    # A strange space is a word to nobody else.
    records = Records("s", [{"tokens": ["word1", "\u200b\u2003", "word2"], "tags": ["O"] * 3}])
    examples = make(records, tokenizer)
    outputs = np.ones((1, 16))
    missing = examples.places[:, 0] < 0
    assert examples.by_word(outputs, -1.0)[missing].tolist() == [-1.0] * int(missing.sum())


def test_tags_with_nothing_first_and_types_together():
    rows = [{"tokens": ["a"] * 4, "tags": ["I-B", "O", "B-B", "B-A"]}]
    assert tag_names(tags_of(Records("s", rows))) == ["O", "B-A", "B-B", "I-B"]


@pytest.mark.parametrize("write", [repr, " ".join, lambda words: str(np.array(words))])
def test_cells_of_a_table(tokenizer, write):
    rows = some_records()
    table = Records("s", [{name: write(words) for name, words in row.items()} for row in rows])
    assert tags_of(table) == tags_of(rows)
    found, expected = make(table, tokenizer), make(rows, tokenizer)
    assert found.words == expected.words
    np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "record 2: 2 words and 1 tags"),
        ({"tokens": [], "tags": []}, "must be a list of texts that are not empty"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "must be a list of texts"),
        ({"tokens": "a b c", "tags": ["O", "O"]}, "record 2: 3 words and 2 tags"),
        ({"tokens": " ", "tags": []}, "must be a list of texts that are not empty"),
        ({"tokens": {"a": "b"}, "tags": ["O"]}, "must be a list of texts"),
        ({"tokens": ["a"], "tags": [3]}, "Numbers need their names"),
        ({"tokens": ["a"], "tags": ["B-Y"]}, "'B-Y' does not occur in the training split"),
    ],
)
def test_what_is_no_tagged_sentence_is_named(tokenizer, row, message):
    records = Records("s", [{"tokens": ["a"], "tags": ["O"]}, row])
    with pytest.raises(ValueError, match=message):
        make(records, tokenizer)


def test_no_room_for_the_stride(tokenizer):
    with pytest.raises(ValueError, match=r"config\.data\.stride = 14 must be below"):
        make(some_records(), tokenizer, stride=14)
