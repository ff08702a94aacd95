import json
import logging
import shutil

import numpy as np
import pytest

from ftjax.data.text import encode_labels, load_tokenizer, tokenize


@pytest.fixture
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


def test_texts_become_ragged_ids(tokenizer):
    records = [{"text": "word0 word1"}, {"text": ""}, {"text": "nonsense"}]
    tokens = tokenize(records, tokenizer, max_length=8)
    np.testing.assert_array_equal(tokens.input_ids, [2, 4, 5, 3, 2, 3, 2, 1, 3])
    np.testing.assert_array_equal(tokens.lengths, [4, 2, 3])
    assert tokens.truncated == 0
    assert tokens.token_type_ids is None


def test_long_texts_are_cut_with_their_end_token_and_counted(tokenizer):
    records = [{"text": "word0 " * 50}, {"text": "word1"}]
    tokens = tokenize(records, tokenizer, max_length=6)
    np.testing.assert_array_equal(tokens.lengths, [6, 3])
    assert tokens.input_ids[5] == 3
    assert tokens.truncated == 1


def test_without_a_limit_nothing_is_cut(tokenizer):
    tokens = tokenize([{"text": "word0 " * 5000}], tokenizer, max_length=None)
    assert tokens.lengths[0] == 5002


def test_pairs_have_token_types(tokenizer):
    records = [{"text": "word0", "second_text": "word1 word2"}]
    tokens = tokenize(records, tokenizer, max_length=9, second_text_field="second_text")
    np.testing.assert_array_equal(tokens.input_ids, [2, 4, 3, 5, 6, 3])
    np.testing.assert_array_equal(tokens.token_type_ids, [0, 0, 0, 1, 1, 1])


def test_chunks_join_without_a_seam(tokenizer, monkeypatch):
    records = [{"text": f"word{n}"} for n in range(10)]
    whole = tokenize(records, tokenizer, max_length=8)
    monkeypatch.setattr("ftjax.data.text.CHUNK", 3)
    parts = tokenize(records, tokenizer, max_length=8)
    np.testing.assert_array_equal(whole.input_ids, parts.input_ids)
    np.testing.assert_array_equal(whole.offsets, parts.offsets)


def test_no_texts(tokenizer):
    tokens = tokenize([], tokenizer, max_length=8)
    assert len(tokens.lengths) == len(tokens.input_ids) == 0


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)


def test_a_folder_with_a_config_but_no_tokenizer_file(tmp_path):
    """transformers makes a tokenizer of special tokens of it: every text would be [UNK]."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"knows no words.*Copy tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("rows", "refused"), [(63, True), (64, False), (100, False)])
def test_tokens_without_an_embedding(tiny_bert, tmp_path, rows, refused):
    """The tiny tokenizer has 64 tokens; more rows than tokens are usual."""
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"vocab_size": rows}))
    if not refused:
        assert len(load_tokenizer(folder)) == 64
        return
    with pytest.raises(ValueError, match=r"knows 64 tokens, .* for 63 .*'word59' has none"):
        load_tokenizer(folder)


def test_truncating_gives_no_warning_of_errors_to_come(tokenizer, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    tokenize([{"text": "word0 " * 100}], tokenizer, max_length=6)
    logger.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize("text", [5, ["a", "b"], {"a": 1}, True])
def test_a_text_that_is_none(tokenizer, text):
    with pytest.raises(ValueError, match=r"record 2: text is .*not a text"):
        tokenize([{"text": "word0"}, {"text": text}], tokenizer, max_length=8)


@pytest.mark.parametrize("label", ["", ["a"], {"a": 1}])
def test_a_label_that_is_none(label):
    with pytest.raises(ValueError, match=r"record 2: the label is .*one name or number"):
        encode_labels([{"label": "a"}, {"label": label}, {"label": "b"}])


def test_labels_are_sorted_and_numbered():
    labels, classes = encode_labels([{"label": n} for n in ("b", "a", "b", 3)])
    assert classes == ["3", "a", "b"]
    np.testing.assert_array_equal(labels, [2, 1, 2, 0])


def test_a_label_never_seen_in_training():
    with pytest.raises(ValueError, match=r"record 2: the label 'c' was never seen .*a, b"):
        encode_labels([{"label": "a"}, {"label": "c"}], "label", ["a", "b"])


def test_one_class_alone():
    with pytest.raises(ValueError, match="single label"):
        encode_labels([{"label": "a"}, {"label": "a"}])
