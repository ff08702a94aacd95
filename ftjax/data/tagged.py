"""Sentences with a tag for each word: windows of tokens, and back to the words of the file.

The first token of a word bears its tag. A sentence with too many tokens becomes windows that
overlap, and each word is judged where it has the most context, so that no word is lost to a limit.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import transformers

from ftjax.data.examples import Batch, ExamplesAround, TextExamples
from ftjax.data.sources import Records
from ftjax.data.sources.records import bad_record, of_each
from ftjax.data.windows import tokenize_words
from ftjax.data.written_out import as_written

NOTHING = "O"


@dataclasses.dataclass(frozen=True)
class TaggedExamples(ExamplesAround):
    """Windows of sentences, `TextExamples`, with tags; see `Examples`.

    Attributes:
        labels: int32 [all tokens], the tag of the word that is judged there, else -1: each word
            counts once, also where windows overlap.
        places: int64 [words, 2], the window and the position in it where each word of the records,
            in their order, is judged; -1 for a word that the tokenizer makes nothing of.
        words: of each record.
    """

    labels: np.ndarray
    places: np.ndarray
    words: Sequence[Sequence[str]]

    @property
    def word_counts(self) -> np.ndarray:
        """int64 [records]."""
        return np.asarray([len(sentence) for sentence in self.words], np.int64)

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """As of `TextExamples`, with `labels` int32 and `weights` float32 [rows, length].

        A weight is 1 where a word is judged.
        """
        batch = self.examples.batch(indices, rows=rows, length=length)
        labels = np.full((rows, length), -1, np.int32)
        offsets = self.examples.tokens.offsets
        for row, index in enumerate(indices):
            own = self.labels[offsets[index] : offsets[index + 1]][:length]
            labels[row, : len(own)] = own
        weights = (labels >= 0).astype(np.float32)
        return batch | {"labels": np.maximum(labels, 0), "weights": weights}

    def by_word(self, outputs: np.ndarray, missing: Any) -> np.ndarray:
        """What is said at each word's place, [words, ...].

        Args:
            outputs: [windows, positions, ...].
            missing: for words without a place.
        """
        window, position = self.places.T
        found = outputs[window, position]
        found[window < 0] = missing
        return found


def tagged_examples(
    records: Records,
    tokenizer: transformers.PreTrainedTokenizerBase,
    buckets: Sequence[int],
    *,
    stride: int,
    classes: Sequence[str] | None = None,
) -> TaggedExamples:
    """Records with `tokens`, and with `tags` where the classes are given.

    Args:
        records: `tokens` is a list of words, `tags` one of as many names; or texts for them, with
            spaces between words, or lists written out (`as_written`).
        tokenizer: a fast tokenizer.
        buckets: rising lengths in tokens; what is longer than the last becomes windows.
        stride: tokens that two windows of a sentence share.
        classes: names of tags; without them nothing is labelled.

    Raises:
        ValueError: words that are no texts, another number of tags than of words, a tag that is
            none of the classes, or no room for `stride` tokens; names the record.
    """
    words = of_each(records, lambda index: _words(records, index))
    tokens, number, window_of = tokenize_words(
        words, records, tokenizer, buckets[-1], stride=stride
    )
    first = np.cumsum([0, *map(len, words)])
    places = _places(tokens.offsets, number, window_of, first)
    labels = np.full(len(number), -1, np.int32)
    if classes is not None:
        tags = np.concatenate([*_tags(records, words, classes), np.empty(0, np.int32)])
        placed = places[:, 0] >= 0
        window, position = places[placed].T
        labels[tokens.offsets[window] + position] = tags[placed]
    padding: Any = tokenizer.pad_token_id
    windows = TextExamples(tokens, buckets, padding, records.fingerprint)
    return TaggedExamples(windows, labels, places, words)


def tags_of(records: Records) -> list[list[str]]:
    """The tags of each record.

    Raises:
        ValueError: as of `tagged_examples`.
    """
    return of_each(records, lambda i: _checked_tags(records, i, len(_words(records, i))))


def tag_names(tags: Sequence[Sequence[str]]) -> list[str]:
    """Which there are, "O" first and the others in the alphabet's order."""
    found = {tag for sentence in tags for tag in sentence}
    return sorted(found, key=lambda tag: (tag != NOTHING, tag.partition("-")[2], tag))


def _places(
    offsets: np.ndarray, number: np.ndarray, window_of: np.ndarray, first: np.ndarray
) -> np.ndarray:
    """For each word the window in which the nearer end is farthest, and the position there."""
    places = np.full((first[-1], 2), -1, np.int64)
    context = np.full(first[-1], -1, np.int64)
    for window, (start, end) in enumerate(itertools.pairwise(offsets)):
        (positions,) = np.nonzero(number[start:end] >= 0)
        word = first[window_of[window]] + number[start:end][positions]
        room = np.minimum(positions, end - start - 1 - positions)
        better = room > context[word]
        context[word[better]] = room[better]
        places[word[better], 0] = window
        places[word[better], 1] = positions[better]
    return places


def _words(records: Records, index: int) -> list[str]:
    words = _listed(records[index]["tokens"])
    is_list = isinstance(words, list | tuple | np.ndarray)
    if not is_list or not len(words) or not all(isinstance(w, str) and w.strip() for w in words):
        raise bad_record(
            records,
            index,
            f"the words must be a list of texts that are not empty, not {str(words)[:80]!r}.",
        )
    return list(words)


def _listed(value: Any) -> Any:
    """A list, or one that a table holds as text; a text without brackets is divided at spaces."""
    found = as_written(value)
    return found.split() if isinstance(found, str) else found


def _tags(
    records: Records, words: Sequence[Sequence[str]], classes: Sequence[str]
) -> list[np.ndarray]:
    numbers: Mapping[str, int] = {name: index for index, name in enumerate(classes)}

    def tags_of_one(index: int) -> np.ndarray:
        tags = _checked_tags(records, index, len(words[index]))
        if unknown := [tag for tag in tags if tag not in numbers]:
            known = ", ".join(list(classes)[:5])
            raise bad_record(
                records,
                index,
                f"the tag {unknown[0]!r} does not occur in the training split, whose "
                f"{len(classes)} tags are {known}, ...",
            )
        return np.asarray([numbers[tag] for tag in tags], np.int32)

    return of_each(records, tags_of_one)


def _checked_tags(records: Records, index: int, count: int) -> list[str]:
    tags = _listed(records[index]["tags"])
    is_list = isinstance(tags, list | tuple | np.ndarray)
    if not is_list or not all(isinstance(tag, str) and tag for tag in tags):
        raise bad_record(
            records,
            index,
            f"the tags must be a list of names such as 'B-PER', not {str(tags)[:80]!r}. Numbers "
            "need their names: write them into the file.",
        )
    if len(tags) != count:
        raise bad_record(
            records, index, f"{count} words and {len(tags)} tags; each word needs one."
        )
    return list(tags)
