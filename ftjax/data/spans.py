"""Questions about texts that hold the answer: windows of tokens, and back to characters."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import transformers

from ftjax.data.examples import Batch, ExamplesAround, TextExamples
from ftjax.data.sources import Records
from ftjax.data.sources.records import bad_record, of_each
from ftjax.data.windows import tokenize_contexts
from ftjax.data.written_out import as_written

Answer = tuple[int, str]


class Candidate(NamedTuple):
    """A part of a context that may be the answer.

    Attributes:
        score: the higher, the likelier.
        start: its first character in the context.
        end: the character behind its last.
        text: of the context.
    """

    score: float
    start: int
    end: int
    text: str


@dataclasses.dataclass(frozen=True)
class SpanExamples(ExamplesAround):
    """Questions with windows of their contexts, `TextExamples`; see `Examples`.

    Attributes:
        contexts: of the questions.
        question_of: int64 [windows], the question of each, rising.
        characters: int32 [all tokens, 2], as of `ContextWindows`.
    """

    contexts: Sequence[str]
    question_of: np.ndarray
    characters: np.ndarray

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """As of `TextExamples`, with positions, int32 [rows].

        `start_positions` and `end_positions` are those of the answer's first and last token, of the
        null answer where the window does not hold it whole; `null_positions` the CLS token's;
        `context_start` and `context_end` those of the context's first and last token.
        """
        return self.examples.batch(indices, rows=rows, length=length)

    def windows_of(self, question: int) -> range:
        """The windows of a question."""
        first, last = np.searchsorted(self.question_of, [question, question + 1])
        return range(first, last)

    def tokens_of(self, window: int, start: int, end: int) -> tuple[int, int] | None:
        """The positions of the tokens that hold some characters; None if the window does not.

        (As run_qa: the last token that begins no later, the first that ends no earlier.)
        """
        columns = self.examples.columns
        first = int(columns["context_start"][window])
        begin = int(self.examples.tokens.offsets[window])
        spans = self.characters[begin + first : begin + columns["context_end"][window] + 1]
        if spans[0, 0] > start or spans[-1, 1] < end:
            return None
        one = int(np.searchsorted(spans[:, 0], start, "right")) - 1
        other = int(np.searchsorted(spans[:, 1], end, "left"))
        return first + one, first + max(other, one)

    def candidate(self, window: int, first: int, last: int, score: float = 0.0) -> Candidate:
        """What stands in the context from one position of a window to another, without spaces."""
        begin = int(self.examples.tokens.offsets[window])
        start, end = map(int, (self.characters[begin + first, 0], self.characters[begin + last, 1]))
        text = self.contexts[int(self.question_of[window])][start:end]
        start += len(text) - len(text.lstrip())
        text = text.strip()
        return Candidate(score, start, start + len(text), text)

    def candidates(self, found: np.ndarray) -> list[list[Candidate]]:
        """The candidates of each question, the best first; of all its windows, each text once.

        Args:
            found: float [windows, candidates, 3], first and last position and score; first is -1
                where there is none.
        """
        return [self._candidates(question, found) for question in range(len(self.contexts))]

    def _candidates(self, question: int, found: np.ndarray) -> list[Candidate]:
        best: dict[tuple[int, int], Candidate] = {}
        for window in self.windows_of(question):
            for first, last, score in found[window][found[window, :, 0] >= 0].tolist():
                one = self.candidate(window, int(first), int(last), score)
                known = best.get((one.start, one.end))
                if one.text and (known is None or score > known.score):
                    best[one.start, one.end] = one
        return sorted(best.values(), key=lambda one: -one.score)


def span_examples(
    records: Records,
    tokenizer: transformers.PreTrainedTokenizerBase,
    buckets: Sequence[int],
    *,
    stride: int,
    answers: Sequence[Sequence[Answer]] | None = None,
) -> SpanExamples:
    """Records with a `question` and a `context`.

    Args:
        records: of texts.
        tokenizer: a fast tokenizer.
        buckets: rising lengths in tokens; with a longer context, a question has several windows.
        stride: tokens of the context that two windows share.
        answers: of each record, as `answers_of` gives them; the first is learned, and without any
            the null answer. None where nothing is learned.

    Raises:
        ValueError: as of `tokenize_contexts`.
    """
    found = tokenize_contexts(records, tokenizer, buckets[-1], stride=stride)
    padding: Any = tokenizer.pad_token_id
    null = _null_positions(found.tokens.input_ids, found.tokens.offsets, tokenizer.cls_token_id)
    columns = {
        "start_positions": null.copy(),
        "end_positions": null.copy(),
        "null_positions": null,
        "context_start": found.context[:, 0],
        "context_end": found.context[:, 1],
    }
    windows = TextExamples(found.tokens, buckets, padding, records.fingerprint, columns)
    contexts = [record["context"] for record in records]
    examples = SpanExamples(windows, contexts, found.question_of, found.characters)
    for window, question in enumerate(found.question_of if answers is not None else ()):
        for start, text in (answers or ())[question][:1]:
            if (place := examples.tokens_of(window, start, start + len(text))) is not None:
                columns["start_positions"][window], columns["end_positions"][window] = place
    return examples


def answers_of(records: Records) -> list[list[Answer]]:
    """The right answers of each record: first character and text; none for a null answer.

    Args:
        records: each with a `context` and `answers`, as SQuAD has them: `{"text": [...],
            "answer_start": [...]}`, or a list of `{"text": ..., "answer_start": ...}`.

    Raises:
        ValueError: something else, or an answer that does not stand there; names the records.
    """
    return of_each(records, lambda index: _answers(records, index))


def _answers(records: Records, index: int) -> list[Answer]:
    context, answers = records[index]["context"], records[index]["answers"]
    pairs = _pairs(as_written(answers))
    if pairs is None:
        raise bad_record(
            records,
            index,
            'answers must be {"text": [...], "answer_start": [...]} with two lists of one length, '
            f"not {str(answers)[:80]!r}.",
        )
    for text, start in pairs:
        if (problem := _answer_problem(context, text, start)) is not None:
            raise bad_record(records, index, problem)
    return [(int(start), text) for text, start in pairs]


def _pairs(answers: Any) -> list[tuple[Any, Any]] | None:
    """Text and start of each answer; None if this is not what they are."""
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not _is_list(texts) or not _is_list(starts) or len(texts) != len(starts):
            return None
        return list(zip(texts, starts, strict=True))
    if _is_list(answers) and all(isinstance(answer, Mapping) for answer in answers):
        return [(answer.get("text"), answer.get("answer_start")) for answer in answers]
    return None


def _answer_problem(context: Any, text: Any, start: Any) -> str | None:
    """What is wrong with an answer, as a sentence, or None."""
    if not isinstance(text, str) or not text.strip():
        return f"an answer is {text!r}; leave the list empty where the context holds none."
    if not isinstance(start, int | np.integer) or isinstance(start, bool):
        return f"the answer {text[:40]!r} begins at {start!r}; a whole number is needed."
    if not isinstance(context, str):
        # Which the tokenizer's part says.
        return None
    if start < 0 or start + len(text) > len(context):
        return (
            f"the answer {text[:40]!r} at character {start:,} is outside of the context, which has "
            f"{len(context):,} characters."
        )
    if (there := context[start : start + len(text)]) != text:
        found = context.find(text)
        hint = f" It stands at character {found:,}." if found >= 0 else ""
        return (
            f"the answer is {text[:40]!r}, and at character {start:,} of the context stands "
            f"{there[:40]!r}.{hint} Characters are counted from 0, not bytes."
        )
    return None


def _is_list(value: Any) -> TypeGuard[Sequence]:
    return isinstance(value, list | tuple | np.ndarray)


def _null_positions(ids: np.ndarray, offsets: np.ndarray, cls_token_id: Any) -> np.ndarray:
    """Where the first CLS token stands in each row, int32 [rows]; 0 where there is none."""
    rows = np.split(ids, offsets[1:-1])
    return np.asarray([int((row == cls_token_id).argmax()) for row in rows], np.int32)
