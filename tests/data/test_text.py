import json
import logging
import shutil

import numpy as np
import pytest
from tiny import write_tokenizer

from ftjax.data.labels import describe_labels, encode_labels
from ftjax.data.text import (
    describe_text,
    encode_prompt,
    encode_rendered,
    tokenize,
    tokenize_documents,
)
from ftjax.data.tokenizer import load_tokenizer, required_rows


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


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


@pytest.mark.parametrize("pairs", [False, True])
def test_what_is_cut_is_cut_as_the_tokenizer_does_it(tokenizer, pairs):
    lengths = [1, 9, 2, 30, 3, 7]
    texts = [" ".join(f"word{n}" for n in range(length)) for length in lengths]
    seconds = texts[::-1] if pairs else None
    records = [{"text": a, "other": b} for a, b in zip(texts, texts[::-1], strict=True)]
    tokens = tokenize(
        records, tokenizer, max_length=8, second_text_field="other" if pairs else None
    )
    expected = tokenizer(texts, seconds, truncation=True, max_length=8)["input_ids"]
    found = np.split(tokens.input_ids, tokens.offsets[1:-1])
    assert [row.tolist() for row in found] == expected


def test_without_a_limit_nothing_is_cut(tokenizer):
    tokens = tokenize([{"text": "word0 " * 5000}], tokenizer, max_length=None)
    assert tokens.lengths[0] == 5002


@pytest.mark.parametrize("reads_types", [True, False])
def test_pairs_have_token_types_where_the_network_reads_them(tiny_bert, tmp_path, reads_types):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * reads_types
    change_json(folder / "tokenizer_config.json", model_input_names=names)
    records = [{"text": "word0", "second_text": "word1 word2"}]
    tokens = tokenize(
        records, load_tokenizer(folder), max_length=9, second_text_field="second_text"
    )
    np.testing.assert_array_equal(tokens.input_ids, [2, 4, 3, 5, 6, 3])
    if reads_types:
        np.testing.assert_array_equal(tokens.token_type_ids, [0, 0, 0, 1, 1, 1])
    else:
        assert tokens.token_type_ids is None


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


def test_a_tokenizer_that_is_read_as_one_of_another_kind(tmp_path):
    """Beside a Qwen 2, transformers takes any tokenizer.json for byte-level BPE."""
    write_tokenizer(tmp_path, with_end=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match=r"no token in its own words.*Qwen2Tokenizer"):
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


def test_labels_that_read_the_same_are_one_class():
    names = ("\u2003mail ", "mail\u200b", 1, 1.0, "1.0", 2.5)
    labels, classes = encode_labels([{"label": name} for name in names])
    assert classes == ["1", "2.5", "mail"]
    np.testing.assert_array_equal(labels, [2, 2, 0, 0, 0, 1])
    assert describe_labels(labels, classes) == "1 3, 2.5 1, mail 2"


@pytest.mark.parametrize("label", [float("nan"), float("inf"), "  "])
def test_a_label_that_is_no_class(label):
    with pytest.raises(ValueError, match=r"record 2: the label is"):
        encode_labels([{"label": "a"}, {"label": label}, {"label": "b"}])


def test_many_unknown_labels_make_a_short_sentence():
    records = [{"label": f"new{n}"} for n in range(300)]
    with pytest.raises(ValueError, match="300 records have such labels") as raised:
        encode_labels(records, "label", [f"old{n}" for n in range(300)])
    assert "and 295 more" in str(raised.value)
    assert len(str(raised.value)) < 500


def with_affixes(folder, before, after):
    """The tiny tokenizer, which begins and ends texts itself."""
    ids = {"[CLS]": 2, "[SEP]": 3}
    single = [{"SpecialToken": {"id": name, "type_id": 0}} for name in (*before, *after)]
    single.insert(len(before), {"Sequence": {"id": "A", "type_id": 0}})
    processor = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (*before, *after)
        },
    }
    change_json(folder / "tokenizer.json", post_processor=processor)
    change_json(folder / "tokenizer_config.json", bos_token="[CLS]", eos_token="[SEP]")
    return load_tokenizer(folder)


@pytest.mark.parametrize("after", [(), ("[SEP]",)])
@pytest.mark.parametrize("before", [(), ("[CLS]",)])
def test_one_beginning_and_one_end(tiny_llama, tmp_path, before, after):
    tokenizer = with_affixes(shutil.copytree(tiny_llama, tmp_path / "copy"), before, after)
    start = [2] * len(before)

    def document(text):
        return tokenize_documents([{"text": text}], tokenizer).input_ids.tolist()

    assert document("word0 word1") == document("word0 word1 [SEP]") == [*start, 4, 5, 3]
    assert document("") == [*start, 3]
    assert document("word0 [SEP] word1") == [*start, 4, 3, 5, 3]
    assert document("[CLS] word0") == [2, 4, 3]
    assert encode_prompt(tokenizer, "word0") == [*start, 4]
    assert encode_prompt(tokenizer, "") == [2]
    assert encode_rendered(tokenizer, "[CLS] word0") == [2, 4]
    assert encode_rendered(tokenizer, "[CLS] [CLS] word0 [SEP]") == [2, 4, 3]


def test_unknown_tokens_are_counted_and_many_are_said(tokenizer):
    tokens = tokenize([{"text": "word0 x y z"}, {"text": ""}], tokenizer, max_length=8)
    assert (tokens.unknown, tokens.unknown_share) == (3, 0.75)
    assert "75% of their tokens unknown to the tokenizer" in describe_text(tokens)
    few = tokenize([{"text": "word0 " * 99 + "x"}], tokenizer, max_length=None)
    assert describe_text(few) == "1 texts, 1.00% of their tokens unknown"


def test_special_tokens_beyond_the_table(tiny_llama, tmp_path):
    """Allowed until a text holds one; padding takes another token."""
    folder = shutil.copytree(tiny_llama, tmp_path / "copy")
    extra = [
        {
            "id": 64 + n,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for n, token in enumerate(("[NEW]", "<|user|>"))
    ]
    change_json(folder / "tokenizer.json", added_tokens=extra)
    change_json(folder / "tokenizer_config.json", pad_token="[NEW]")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id < 64
    assert required_rows(tokenizer) == 66
    texts = [{"text": "word0"}, {"text": "<|user|> word0"}]
    for call in (tokenize_documents, lambda *a: tokenize(*a, max_length=8)):
        with pytest.raises(ValueError, match=r"record 2: the token '<\|user\|>' \(id 65\) has no"):
            call(texts, tokenizer)
    grown = load_tokenizer(folder, grow_table=True)
    assert grown.pad_token == "[NEW]"
    assert tokenize_documents(texts, grown).input_ids.tolist() == [4, 3, 65, 4, 3]


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_replacements_that_blow_a_text_up(tiny_bert, tmp_path, part):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    step = {"type": "Replace", "pattern": {"String": "w"}, "content": "ww"}
    steps = f"{part}s"
    change_json(folder / "tokenizer.json", **{part: {"type": "Sequence", steps: [step] * 60}})
    with pytest.raises(ValueError, match=f"its {part} makes up to 1e.18 characters of one"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["[1, 2]", "5", "{", "[" * 100_000, '{"model": 3}'])
def test_a_tokenizer_file_that_is_none(tiny_bert, tmp_path, content):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="has no tokenizer that can be loaded"):
        load_tokenizer(folder)


def test_a_regular_expression_without_end(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    change_json(folder / "tokenizer.json", pre_tokenizer=split)
    with pytest.raises(ValueError, match=r"record 2: the tokenizer of .* fails on this text"):
        tokenize([{"text": "b"}, {"text": "a" * 40 + "b"}], load_tokenizer(folder), max_length=8)
