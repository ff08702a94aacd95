"""Which tokens are masked, and how."""

import numpy as np
import pytest
import transformers
from tiny import write_subword_tokenizer, write_tokenizer

from ftjax.data.masked import chosen_positions, masked_examples, texts_with_masks
from ftjax.data.sources import Records
from ftjax.data.tokenizer import load_tokenizer

MASK = 4
SPECIAL_IDS = range(5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_subword_tokenizer(folder)
    return load_tokenizer(folder)


def make(tokenizer, texts, length=32, share=0.15, whole_words=False):
    records = Records("texts", [{"text": text} for text in texts])
    return masked_examples(records, tokenizer, length, share=share, whole_words=whole_words)


def some_texts(count=120, seed=0):
    random = np.random.default_rng(seed)
    return [
        " ".join(f"word{n}" for n in random.integers(0, 200, random.integers(1, 14)))
        for _ in range(count)
    ]


def everything(examples):
    rows, length = examples.units.shape
    return examples.batch(np.arange(rows), rows=rows, length=length)


def shown(batch):
    """Of all tokens to guess: the row, where it stands, what it is, what is shown."""
    rows, places = np.nonzero(batch["weights"])
    positions = batch["masked_positions"][rows, places]
    return rows, positions, batch["labels"][rows, places], batch["input_ids"][rows, positions]


@pytest.mark.parametrize("whole_words", [False, True])
def test_only_tokens_of_texts_are_guessed_and_the_rest_is_as_it_was(tokenizer, whole_words):
    examples = make(tokenizer, some_texts(), whole_words=whole_words)
    for epoch in range(5):
        batch = everything(examples.drawn_for(0, epoch))
        rows, positions, labels, _ = shown(batch)
        assert len(set(zip(rows, positions, strict=True))) == len(rows)
        np.testing.assert_array_equal(labels, examples.packed.input_ids[rows, positions])
        assert not np.isin(labels, SPECIAL_IDS).any()
        assert (batch["segment_ids"][rows, positions] > 0).all()
        changed = batch["input_ids"] != examples.packed.input_ids
        guessed = np.zeros_like(changed)
        guessed[rows, positions] = True
        assert not (changed & ~guessed).any()
        assert (batch["weights"].sum(1) >= 1).all()


def test_as_often_and_as_transformers_collator_does_it(tokenizer):
    """Shares within four standard errors of what the other gives, and of what both say."""
    texts = some_texts(400)
    examples = make(tokenizer, texts, length=64)
    counts = np.zeros(4)
    for epoch in range(20):
        _, _, labels, seen = shown(everything(examples.drawn_for(3, epoch)))
        masked, kept = seen == MASK, seen == labels
        counts += [len(labels), masked.sum(), kept.sum(), (~masked & ~kept).sum()]
        assert not np.isin(seen[~masked], SPECIAL_IDS).any()
    collator = transformers.DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=0.15, return_tensors="np", seed=1
    )
    rows = [tokenizer(text, return_special_tokens_mask=True) for text in texts]
    theirs = np.zeros(4)
    for _ in range(20):
        batch = collator([dict(row) for row in rows])
        guessed = batch["labels"] != -100
        seen, labels = batch["input_ids"][guessed], batch["labels"][guessed]
        masked, kept = seen == MASK, seen == labels
        theirs += [len(labels), masked.sum(), kept.sum(), (~masked & ~kept).sum()]
    maskable = 20 * (examples.units >= 0).sum()
    share = counts[0] / maskable
    assert share == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / maskable))
    assert share == pytest.approx(theirs[0] / maskable, abs=6 * np.sqrt(0.15 * 0.85 / maskable))
    # A token drawn in the place of another is now and then the same: theirs of 26, ours of 21.
    ours, other = counts[1:] / counts[0], theirs[1:] / theirs[0]
    np.testing.assert_allclose(ours, [0.8, 0.1 + 0.1 / 21, 0.1 - 0.1 / 21], atol=0.01)
    np.testing.assert_allclose(other, ours, atol=0.02)


def test_the_share_is_exact_on_average_in_short_rows_too():
    random = np.random.default_rng(0)
    for count in (7, 9, 20, 33):
        units = np.where(np.arange(40) < count, np.arange(40), -1)
        found = [len(chosen_positions(units, 0.15, random)) for _ in range(4000)]
        assert {*found} <= {int(0.15 * count), int(0.15 * count) + 1}
        assert np.mean(found) == pytest.approx(0.15 * count, abs=0.04)


def test_every_token_has_the_same_chance():
    random = np.random.default_rng(0)
    hits = np.zeros(20)
    for _ in range(4000):
        hits[chosen_positions(np.arange(20), 0.15, random)] += 1
    np.testing.assert_allclose(hits / 4000, 0.15, atol=0.025)


def test_masks_depend_on_seed_epoch_and_row_and_on_nothing_else(tokenizer):
    examples = make(tokenizer, some_texts())
    first = examples.drawn_for(0, 0)
    whole = everything(first)
    few = first.batch(np.array([5, 2]), rows=4, length=32)
    for name in whole:
        np.testing.assert_array_equal(few[name][:2], whole[name][[5, 2]], err_msg=name)
    assert (few["example_ids"] == [5, 2, -1, -1]).all() and not few["weights"][2:].any()
    for draw in ((0, 1), (1, 0), ()):
        other = everything(examples.drawn_for(*draw))
        assert (other["input_ids"] != whole["input_ids"]).any()
    # What is scored has one set of masks, for all runs.
    np.testing.assert_array_equal(
        everything(examples)["input_ids"], everything(make(tokenizer, some_texts()))["input_ids"]
    )


def test_whole_words(tokenizer):
    examples = make(tokenizer, some_texts(), length=64, whole_words=True)
    share = 0
    for epoch in range(10):
        rows, positions, *_ = shown(everything(examples.drawn_for(0, epoch)))
        guessed = np.zeros(examples.units.shape, bool)
        guessed[rows, positions] = True
        for row, units in enumerate(examples.units):
            for unit in set(units) - {-1}:
                assert len({*guessed[row][units == unit]}) == 1
        share += guessed.sum() / (examples.units >= 0).sum() / 10
    assert share == pytest.approx(0.15, abs=0.02)
    ids = examples.packed.input_ids
    begins = (ids == tokenizer.convert_tokens_to_ids("word")) & (examples.units >= 0)
    assert len(set(examples.units[examples.units >= 0])) == begins.sum()


def test_nothing_but_one_long_word(tokenizer):
    examples = make(tokenizer, ["word" + "1" * 20], whole_words=True)
    _, positions, *_ = shown(everything(examples))
    # As many of its tokens as a row has places for.
    assert list(positions) == [1, 2, 3, 4, 5]


def test_a_long_text_is_cut_into_pieces_that_begin_and_end_like_texts(tokenizer):
    text = " ".join(f"word{n}" for n in range(100, 130))
    examples = make(tokenizer, ["word1", text], length=16)
    ids, segments = examples.packed.input_ids, examples.packed.segment_ids
    pieces = [
        ids[row][segments[row] == segment]
        for row in range(len(ids))
        for segment in range(1, segments[row].max() + 1)
    ]
    assert all(piece[0] == 2 and piece[-1] == 3 for piece in pieces)
    inner = sorted(np.concatenate([piece[1:-1] for piece in pieces]))
    expected = tokenizer([f"word1 {text}"], add_special_tokens=False)["input_ids"][0]
    assert inner == sorted(expected)
    assert examples.text_tokens == len(expected)
    assert examples.text_bytes == len(text) + 5


def test_texts_with_nothing_to_guess(tokenizer):
    examples = make(tokenizer, ["", "word1", "[SEP] unknowable", "   "])
    assert (examples.packed.segment_ids.max(), len(examples.packed.input_ids)) == (1, 1)
    with pytest.raises(ValueError, match="texts: no text has a token to guess; all are empty"):
        make(tokenizer, ["", "[SEP]", "unknowable"])
    with pytest.raises(ValueError, match="no room for a text between the 2 special tokens"):
        make(tokenizer, ["word1"], length=2)


def test_tokenizers_that_cannot(tmp_path, tokenizer):
    write_tokenizer(tmp_path, with_end=False)
    with pytest.raises(ValueError, match="no mask token"):
        make(load_tokenizer(tmp_path), ["word1"])
    (tmp_path / "one").mkdir()
    write_subword_tokenizer(tmp_path / "one")
    undivided = load_tokenizer(tmp_path / "one")
    undivided.backend_tokenizer.pre_tokenizer = None
    make(undivided, ["word1"])
    with pytest.raises(ValueError, match="does not divide texts into words"):
        make(undivided, ["word1"], whole_words=True)


def test_marks_of_ones_own(tokenizer):
    records = Records("texts", [{"text": "word1 [MASK] word2 [MASK]"}, {"text": "[MASK]"}])
    examples = texts_with_masks(records, tokenizer, 16)
    batch = everything(examples)
    rows, positions, labels, seen = shown(batch)
    assert (rows.tolist(), positions.tolist()) == ([0, 0, 1], [3, 6, 1])
    assert (seen == MASK).all() and (labels == MASK).all()
    with pytest.raises(ValueError, match=r"record 1: there is nothing to guess; write \[MASK\]"):
        texts_with_masks(Records("texts", [{"text": "word1"}]), tokenizer, 16)
    with pytest.raises(ValueError, match="record 1: 15 tokens, and the run reads 8"):
        texts = [{"text": "[MASK]" + " word1" * 6}]
        texts_with_masks(Records("texts", texts), tokenizer, 8)
