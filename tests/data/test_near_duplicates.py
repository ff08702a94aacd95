import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ftjax.data.near_duplicates import near_duplicates


def by_definition(text, others, threshold, words):
    def shingles(text):
        tokens = text.split()
        return {tuple(tokens[i : i + words]) for i in range(max(len(tokens) - words + 1, 1))}

    mine = shingles(text)
    return any(len(mine & shingles(o)) >= threshold * len(mine | shingles(o)) for o in others)


TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=12)


@settings(deadline=None)
@given(TEXTS, TEXTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_is_jaccard_similarity_by_definition(texts, others, threshold):
    found = near_duplicates(texts, others, threshold=threshold, words=2)
    assert found.tolist() == [by_definition(t, others, threshold, 2) for t in texts]


def test_case_punctuation_and_white_space_do_not_count():
    found = near_duplicates(
        ["Permission is, hereby;  GRANTED free!"], ["permission is hereby granted free"]
    )
    assert found.tolist() == [True]


def test_more_texts_than_one_chunk(monkeypatch):
    monkeypatch.setattr("ftjax.data.near_duplicates.CHUNK", 3)
    texts = [f"a b c d e {n}" for n in range(10)]
    found = near_duplicates(texts, [texts[7]])
    np.testing.assert_array_equal(np.flatnonzero(found), [7])
