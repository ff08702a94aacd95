"""Pairs of texts, one to be read and one to be written, as batches of a few static shapes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import transformers

from ftjax.data.examples import Batch
from ftjax.data.sources import Records
from ftjax.data.sources.records import bad_record, of_each
from ftjax.data.text import TokenizedText, encode_rendered, tokenize

VERBS = {"source": "read", "target": "write"}


@dataclasses.dataclass(frozen=True)
class PairExamples:
    """Sources and targets, a pair per row; see `Examples`, whose lengths are the sources'.

    Attributes:
        sources: token ids.
        targets: token ids, empty where there is none to learn.
        buckets: rising lengths in tokens that sources are padded to.
        target_buckets: the same for targets.
        pad_token_id: fills `input_ids` behind each source.
        records: what they were made of.
        further_ids: tokens that the network reads besides them.
    """

    sources: TokenizedText
    targets: TokenizedText
    buckets: Sequence[int]
    target_buckets: Sequence[int]
    pad_token_id: int
    records: Records
    further_ids: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of the records."""
        return self.records.fingerprint

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each source."""
        return self.sources.lengths

    def token_ids(self) -> np.ndarray:
        """Of all sources and targets, and the further ones."""
        return np.concatenate(
            [self.sources.input_ids, self.targets.input_ids, np.asarray(self.further_ids, np.int32)]
        )

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """`input_ids`, `attention_mask` int32 [rows, length]; `labels` and `weights` of targets.

        Those are int32 and float32 [rows, target length], of the smallest of `target_buckets` that
        holds these targets; a weight is 1 where there is a token.
        """
        longest = max(self.targets.lengths[indices], default=0)
        places = self.target_buckets[int(np.searchsorted(self.target_buckets, longest))]
        batch = {
            "input_ids": np.full((rows, length), self.pad_token_id, np.int32),
            "attention_mask": np.zeros((rows, length), np.int32),
            "labels": np.zeros((rows, places), np.int32),
            "weights": np.zeros((rows, places), np.float32),
            "example_ids": np.full(rows, -1, np.int32),
        }
        for row, index in enumerate(indices):
            source, target = _row(self.sources, index)[:length], _row(self.targets, index)
            batch["input_ids"][row, : len(source)] = source
            batch["attention_mask"][row, : len(source)] = 1
            batch["labels"][row, : len(target)] = target
            batch["weights"][row, : len(target)] = 1.0
        # A row that only fills up would have nothing to attend to.
        batch["attention_mask"][:, 0] = 1
        batch["example_ids"][: len(indices)] = indices
        return batch


@dataclasses.dataclass(frozen=True)
class PairTokenizer:
    """Makes examples of pairs of texts.

    Attributes:
        tokenizer: the checkpoint's.
        framed: whether both texts have what the tokenizer puts before and behind a text, as
            encoder-decoders read them; else only what it puts before the source, and the target
            goes on from there. Either way a target ends with its one end token, unless it is cut:
            then it has none, so that none is learned where the text goes on.
        buckets: of sources; a longer one is cut to the last.
        target_buckets: of targets; the same.
        before: text in front of each source.
        behind: text behind each source, which is never cut.
        further_ids: see `PairExamples`.

    Raises:
        ValueError: a tokenizer without an end token, or of two languages; or no room for a source.
    """

    tokenizer: transformers.PreTrainedTokenizerBase
    framed: bool
    buckets: Sequence[int]
    target_buckets: Sequence[int]
    before: str = ""
    behind: str = ""
    further_ids: tuple[int, ...] = ()

    def __post_init__(self):
        name = self.tokenizer.name_or_path
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"{name}: the tokenizer has no end token, so no target would end.")
        if any(getattr(self.tokenizer, n, None) is not None for n in ("src_lang", "spm_target")):
            raise ValueError(
                f"{name}: {type(self.tokenizer).__name__} writes another language than it reads, "
                "with tokens of its own, which is not implemented."
            )
        if self._room < 1:
            raise ValueError(
                f"config.data.buckets = {tuple(self.buckets)}: the last one leaves no room for a "
                "source between config.data.source_prefix and source_suffix; raise it."
            )

    def pairs(self, records: Records) -> PairExamples:
        """Records with `source` and `target`.

        Raises:
            ValueError: one that is no text, or empty; names file and record.
        """
        return self._examples(self._sources(records), self._targets(records), records)

    def sources(self, records: Records) -> PairExamples:
        """Records with `source`, without targets to learn.

        Raises:
            ValueError: one that is no text, or empty; names file and record.
        """
        sources = self._sources(records)
        return self._examples(sources, _with_rows(sources, [[]] * len(records)), records)

    def halves(self, records: Records) -> PairExamples:
        """Records with `text`: the second half is to be written after the first, without frames.

        (Prefix language modelling, Raffel et al. 2020, 3.2.3.) Of a long text, the beginning; one
        of less than two tokens is left out.

        Raises:
            ValueError: one that is no text, or none that is long enough.
        """
        tokens, contents = self._contents(records, "text")
        before, behind = self._frame
        most = self.buckets[-1] - len(before) - len(behind)
        contents = [row for row in contents if len(row) > 1]
        if not contents:
            raise ValueError(f"{records.name}: no text has two tokens.")
        middles = [min(len(row) // 2, most) for row in contents]
        parts = list(zip(contents, middles, strict=True))
        sources = _with_rows(tokens, [[*before, *row[:at], *behind] for row, at in parts])
        targets = [row[at : at + self.target_buckets[-1]] for row, at in parts]
        return self._examples(sources, _with_rows(tokens, targets), records)

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind a text."""
        encoded: Any = self.tokenizer(["a"], return_special_tokens_mask=True)
        row, mask = encoded["input_ids"][0], encoded["special_tokens_mask"][0]
        return row[: mask.index(0)], row[len(mask) - mask[::-1].index(0) :]

    @property
    def _frame(self) -> tuple[list[int], list[int]]:
        """What stands around a source."""
        before, behind = self._around
        return before, behind if self.framed else []

    @functools.cached_property
    def _suffix(self) -> list[int]:
        return encode_rendered(self.tokenizer, self.behind) if self.behind else []

    @property
    def _room(self) -> int:
        """Tokens of a source that are read."""
        return self.buckets[-1] - sum(map(len, (*self._frame, self._suffix)))

    def _sources(self, records: Records) -> TokenizedText:
        texts = [record["source"] for record in records]
        _refuse_empty(records, "source", texts)
        texts = [self.before + text if isinstance(text, str) else text for text in texts]
        tokens, contents = self._contents(records.with_values("source", texts), "source")
        _refuse_empty(records, "source", contents)
        before, behind = self._frame
        rows = [[*before, *row[: self._room], *self._suffix, *behind] for row in contents]
        longer = sum(len(row) > self._room for row in contents)
        return dataclasses.replace(_with_rows(tokens, rows), truncated=longer)

    def _targets(self, records: Records) -> TokenizedText:
        tokens, contents = self._contents(records, "target")
        _refuse_empty(records, "target", contents)
        (before, behind), end = self._around, cast(int, self.tokenizer.eos_token_id)
        before, behind = (before, behind) if self.framed else ([], [])
        behind = behind if end in behind else [*behind, end]
        whole, most = [[*before, *row, *behind] for row in contents], self.target_buckets[-1]
        rows = [r if len(r) <= most else r[: min(most, len(r) - len(behind))] for r in whole]
        longer = sum(len(row) > most for row in whole)
        return dataclasses.replace(_with_rows(tokens, rows), truncated=longer)

    def _contents(self, records: Records, field: str) -> tuple[TokenizedText, list[list[int]]]:
        """Texts' tokens, and the same by text without what the tokenizer puts around them."""
        tokens = tokenize(records, self.tokenizer, max_length=None, text_field=field)
        before, behind = self._around
        bounds = zip(
            tokens.offsets[:-1] + len(before), tokens.offsets[1:] - len(behind), strict=True
        )
        return tokens, [tokens.input_ids[start:end].tolist() for start, end in bounds]

    def _examples(
        self, sources: TokenizedText, targets: TokenizedText, records: Records
    ) -> PairExamples:
        return PairExamples(
            sources,
            targets,
            self.buckets,
            self.target_buckets,
            cast(int, self.tokenizer.pad_token_id),
            records,
            self.further_ids,
        )


def _with_rows(tokens: TokenizedText, rows: Sequence[Sequence[int]]) -> TokenizedText:
    """Other token ids, with what is known of the texts."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    ids = np.fromiter((token for row in rows for token in row), np.int32, int(offsets[-1]))
    return dataclasses.replace(tokens, input_ids=ids, offsets=offsets.astype(np.int64))


def _row(tokens: TokenizedText, index: int) -> np.ndarray:
    return tokens.input_ids[tokens.offsets[index] : tokens.offsets[index + 1]]


def _refuse_empty(records: Records, field: str, contents: Sequence[Any]) -> None:
    """Refuses texts of nothing but spaces, and those of which the tokenizer makes nothing."""

    def check(index: int) -> None:
        content = contents[index]
        if content in ("", []) or (isinstance(content, str) and content.isspace()):
            problem = f"the {field} is empty, so there is nothing to {VERBS[field]}."
            raise bad_record(records, index, f"{problem} Leave the record out or fill it.")

    of_each(records, check)
