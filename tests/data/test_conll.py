"""CoNLL's columns in and out; what the builders of public corpora refuse is in their tests."""

import gzip

import pytest

from ftjax.data.sources import Source
from ftjax.data.sources.conll import columns_of, goes_on_with_nothing, sentences_of
from ftjax.data.sources.records import BadDataError

WHOLE = """\
-DOCSTART- -X- O O

EU NNP B-ORG
rejects VBZ O


Peter NNP B-PER
Blackburn NNP I-PER
"""

FIELDS = {"tokens": "tokens", "tags": "ner_tags"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["train.conll", "train.iob2.gz"])
def test_columns_are_records(tmp_path, name, end):
    content = WHOLE.replace("\n", end).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    records = Source(str(tmp_path / name)).records("", FIELDS)
    assert list(records) == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]},
    ]
    # The lines of the first words.
    assert [records.where(i).rpartition(", ")[2] for i in range(2)] == ["line 3", "line 7"]


def test_words_alone_have_no_tags(tmp_path):
    (tmp_path / "new.conll").write_text("a\nb c\n".replace(" c", "") + "\nc\n")
    source = Source(str(tmp_path / "new.conll"))
    assert [record["tokens"] for record in source.records("", {"tokens": "tokens"})] == [
        ["a", "b"],
        ["c"],
    ]
    with pytest.raises(BadDataError, match=r"line 1: there is no field 'ner_tags'"):
        source.records("", FIELDS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a O\nb\n", r"x\.conll, line 2: expected a word and its tag, not 'b'"),
        ("a\n\nb O\n", r"x\.conll, line 3: expected a word alone, as above, not 'b O'"),
    ],
)
def test_lines_that_differ(tmp_path, text, problem):
    (tmp_path / "x.conll").write_text(text)
    with pytest.raises(BadDataError, match=problem):
        Source(str(tmp_path / "x.conll")).records("", {"tokens": "tokens"})


def test_where_iob1_begins_an_entity():
    assert goes_on_with_nothing(["I-A", "I-A", "I-B", "O", "I-B", "B-B", "I-B"]) == [0, 2, 4]
    assert goes_on_with_nothing([]) == []


def test_what_is_written_is_read():
    rows = [(["a", "b"], ["O", "B-X"], ["O", "O"]), (["c"], ["B-X"], ["B-X"])]
    text = columns_of(rows)
    assert text == "a O O\nb B-X O\n\nc B-X B-X\n\n"
    found = [(row["tokens"], row["ner_tags"]) for _, row in sentences_of(text, "x")]
    assert found == [(words, said) for words, _, said in rows]
    with pytest.raises(ValueError, match="columns divided by spaces"):
        columns_of([(["New York"], ["B-X"])])
