"""Finding the answers to questions in texts (extractive question answering)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from ftjax.data.examples import Examples, TextExamples, text_examples
from ftjax.data.labels import some_names
from ftjax.data.sources import Records
from ftjax.data.sources.records import bad_record, of_each
from ftjax.data.spans import Answer, Candidate, SpanExamples, answers_of, span_examples
from ftjax.data.text import describe_text
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.measurement import Measurement, Retention
from ftjax.evaluation.metrics import refuse_no_numbers
from ftjax.evaluation.retention import PROBE_FIELDS, probe_retention
from ftjax.evaluation.spans import (
    best_threshold,
    normalised,
    overlapping_sentence,
    span_intervals,
    span_metrics,
)
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import spans
from ftjax.losses.forward import Forward
from ftjax.models.layers import Network
from ftjax.models.token_tagger import LOWEST, SpanReader
from ftjax.objectives.base import LossSums, Objective, Say
from ftjax.objectives.fields import buckets_field, buckets_problem, metric_field
from ftjax.pretrained.checkpoint import Checkpoint
from ftjax.pretrained.new_head import HeadedCheckpoint, architecture
from ftjax.randomness import run_key

CHOOSING = {"f1": "higher", "exact_match": "higher", "loss": "lower"}
OF_PARTS = ("HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")
NULL_THRESHOLD = 0.0
"""Of run_qa; until validation says a better one."""


class Questions(NamedTuple):
    """What a split asks.

    Attributes:
        names: of the questions, for predictions.json.
        texts: question and context of each.
        answers: the right ones of each; none for the null answer.
    """

    names: list[str]
    texts: list[tuple[str, str]]
    answers: list[list[Answer]]

    @property
    def right(self) -> list[list[str]]:
        """The texts of the answers."""
        return [[text for _, text in answers] for answers in self.answers]


class SpanExtraction(Objective):
    """Finds the first and last token of an answer by softmax cross-entropy; see `Objective`.

    Formats, search and rules are those of SQuAD and of transformers' run_qa. Where training or
    validation has questions without an answer in their context (SQuAD 2.0), the null answer may be
    given: its score is the smallest of a question's windows, and by how much it must beat the best
    answer is chosen on the validation split, and kept with the run. So the scores of the validation
    split itself flatter; those of the test split are what they are.
    """

    metrics: ClassVar = CHOOSING | dict.fromkeys(OF_PARTS, "higher")
    fields: ClassVar[Fields] = {
        "data.id_field": Field(
            "id", "Column with a question's name for predictions.json; None: numbers.", optional=str
        ),
        "data.question_field": Field("question", "Column with the question."),
        "data.context_field": Field("context", "Column with the text that holds the answer."),
        "data.answers_field": Field(
            "answers", "Column with SQuAD's answers: text and answer_start of each; empty for none."
        ),
        **buckets_field(
            (64, 128, 256, 384),
            "Lengths in tokens that rows are padded to; longer contexts become windows.",
        ),
        "data.doc_stride": Field(
            128, "Tokens of the context that two of its windows share.", minimum=0
        ),
        "objective.max_answer_length": Field(30, "Most tokens of an answer.", minimum=1),
        "objective.n_best_size": Field(
            20, "So many likeliest first tokens are paired with as many last ones.", minimum=1
        ),
        "tuning.head_epochs": None,
        "optimizer.head_learning_rate_factor": Field(
            1.0, "The new head's learning rate, relative to the rest.", above=0.0, maximum=1e4
        ),
        "evaluation.baselines": Field(
            True, "Also score the sentence most like the question, and the null answer."
        ),
        **metric_field(CHOOSING, "f1"),
        **PROBE_FIELDS,
    }
    keeps_features = False

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self._questions: dict[str, Questions] = {}
        self._spans: dict[str, SpanExamples] = {}

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """Buckets that do not rise, or windows that share all that they have."""
        data = config.data
        if problem := buckets_problem(data.buckets):
            return problem
        if data.doc_stride >= data.buckets[-1]:
            return (
                f"config.data.doc_stride = {data.doc_stride} must be below the {data.buckets[-1]} "
                "tokens of a window, the last of config.data.buckets."
            )
        return None

    @property
    def network_name(self) -> str:
        """The family's network for spans."""
        return "question_answering"

    def checkpoint(self, say: Say) -> Path | Checkpoint:
        """The folder, with a head where it has none.

        Raises:
            ValueError: a comparison with predictions that a new head makes at random.
        """
        key, accept = run_key(self.config.seed, "head"), tuple(self.config.model.accept_fields)
        checkpoint = HeadedCheckpoint(
            self.folder, self.network_name, ("start", "end"), key, accept_fields=accept
        )
        self.has_new_head = bool(checkpoint.new)
        if self.has_new_head:
            if self.config.penalties.get("kl_to_base", 0.0) > 0:
                raise ValueError(
                    "config.penalties.kl_to_base compares with the predictions before tuning, and "
                    f"{self.folder} has no head for spans. Start from a checkpoint that has one, "
                    "or leave the penalty at 0."
                )
            say(f"{self.folder}: of the head, {some_names(list(checkpoint.new))} begin at random.")
        return checkpoint

    def network(self, backbone: Network) -> SpanReader:
        """The published network for spans."""
        return SpanReader(backbone)

    def exported_fields(self) -> dict[str, Any]:
        """Without the names of classes that the checkpoint may have had."""
        fields = super().exported_fields()
        kind = architecture(fields["model_type"], "ForQuestionAnswering")
        kept = {n: v for n, v in fields.items() if n not in ("id2label", "label2id", "num_labels")}
        return kept | {"architectures": [kind]}

    def read_split(self, split: str) -> SpanExamples:
        """Questions with windows of their contexts."""
        data = self.config.data
        answers = {"answers": data.answers_field}
        name = {} if data.id_field is None else {"id": data.id_field}
        records = self.load(split, self.prediction_fields | answers | name)
        questions = self._questions[split] = _questions(records)
        examples = self._spans[split] = span_examples(
            records,
            self.tokenizer,
            data.buckets,
            stride=data.doc_stride,
            answers=questions.answers,
        )
        if split != "test":
            nothing = not all(questions.answers)
            self.facts["null_answers"] = nothing or self.facts.get("null_answers", False)
        self.notes.append(f"{split}: {self._describe(split)}")
        return examples

    def _describe(self, split: str) -> str:
        """What a person should know of a split's questions, above all what cannot be found."""
        examples, questions = self._spans[split], self._questions[split]
        answered = sum(map(bool, questions.answers))
        found = f"{len(questions.names):,} questions"
        if answered < len(questions.names):
            found += f", {len(questions.names) - answered:,} of them without an answer"
        if len(examples.lengths) > len(questions.names):
            found += f", in {len(examples.lengths):,} windows"
        reasons = Counter(
            _out_of_reach(examples, index, answers, self.config.objective.max_answer_length)
            for index, answers in enumerate(questions.answers)
            if answers
        )
        if lost := sum(reasons.values()) - reasons[""]:
            told = ", ".join(f"{n:,} {why}" for why, n in reasons.items() if why)
            found += f"; {lost:,} answers ({lost / answered:.1%}) cannot be found exactly: {told}"
        seen = {context for _, context in self._questions["train"].texts}
        if split != "train" and (known := sum(context in seen for _, context in questions.texts)):
            found += f"; {known:,} ask about a context of train"
        return f"{found} ({describe_text(examples.examples.tokens)})"

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the answer's first and last token, the mean of both."""
        return spans.loss(forward.outputs, forward.batch)

    def divergence(self, first: Any, second: Any, weights: jax.Array) -> jax.Array:
        """Of both positions."""
        return spans.divergence(first, second, weights)

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Loss and null score, and the best spans; float32 [rows, 1 + n_best_size, 3]."""
        logits = network(batch)
        return self._with_best(logits, batch, spans.row_losses(logits, batch))

    def prediction_outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """As of `outputs`, with 0 for the loss."""
        logits = network(batch)
        return self._with_best(logits, batch, jnp.zeros(len(logits), jnp.float32))

    def _with_best(
        self, logits: jax.Array, batch: Mapping[str, jax.Array], losses: jax.Array
    ) -> jax.Array:
        search = self.config.objective
        first = jnp.stack([losses, spans.null_scores(logits, batch), jnp.zeros_like(losses)], -1)
        best = spans.best_spans(
            logits, batch, n_best=search.n_best_size, most=search.max_answer_length
        )
        return jnp.concatenate([first[:, None], best], axis=1)

    def measurement(self) -> Measurement:
        """Scores at the threshold of the null answer that the validation split's outputs say."""

        def score(found: dict[str, np.ndarray]) -> dict[str, float]:
            threshold = self._threshold(found)
            return {
                f"{split}/{name}": value
                for split, outputs in found.items()
                for name, value in self._scores(split, outputs, threshold).items()
            }

        return Measurement(self.examples, self.outputs, score)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `span_metrics`; `loss` is the mean over windows."""
        return self._scores(split, outputs, self.facts.get("null_threshold", NULL_THRESHOLD))

    def _scores(self, split: str, outputs: np.ndarray, threshold: float) -> dict[str, float]:
        refuse_no_numbers(outputs)
        said = [text for text, _ in self._said(self._spans[split], outputs, threshold)]
        losses = outputs[:, 0, 0].astype(np.float64)
        return span_metrics(self._questions[split].right, said) | {"loss": float(losses.mean())}

    def _said(
        self, examples: SpanExamples, outputs: np.ndarray, threshold: float
    ) -> list[tuple[str, float]]:
        """The answer to each question, and by how much the null answer beats the best other."""
        best = _best(examples, outputs)
        return [
            ("" if self._is_null(one, difference, threshold) else one.text, difference)
            for one, difference in best
        ]

    def _is_null(self, one: Candidate, difference: float, threshold: float) -> bool:
        return self.facts["null_answers"] and difference > threshold

    def _threshold(self, outputs: Mapping[str, np.ndarray]) -> float:
        """That which the validation split's outputs say."""
        if not self.facts["null_answers"] or "validation" not in outputs:
            return NULL_THRESHOLD
        found = _best(self._spans["validation"], outputs["validation"])
        metric = self.config.evaluation.metric
        return best_threshold(
            self._questions["validation"].right,
            [one.text for one, _ in found],
            [difference for _, difference in found],
            "exact_match" if metric == "exact_match" else "f1",
        )

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `span_intervals`."""
        said = self._said(self._spans["test"], outputs["test"], self._threshold(outputs))
        return span_intervals(self._questions["test"].right, [text for text, _ in said])

    def learned_facts(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The threshold of the null answer."""
        return {"null_threshold": self._threshold(outputs)}

    def written(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The answers to the test split's questions, as SQuAD's official script reads them."""
        said = self._said(self._spans["test"], outputs["test"], self._threshold(outputs))
        names = self._questions["test"].names
        texts = [text for text, _ in said]
        return {"predictions.json": dict(zip(names, texts, strict=True))}

    @property
    def has_baselines(self) -> bool:
        """Of texts alone."""
        return self.config.evaluation.baselines

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """The sentence that has most words of the question; always the null answer, where it may be
        one.
        """
        questions = self._questions["test"]
        said = {"overlapping_sentence": [overlapping_sentence(*pair) for pair in questions.texts]}
        if self.facts["null_answers"]:
            said["no_answer"] = [""] * len(questions.texts)
        return {name: span_metrics(questions.right, texts) for name, texts in said.items()}

    def retention(self) -> Retention:
        """A linear probe on unrelated text."""
        return probe_retention(self.config.retention, self.tokenizer, self.features)

    def general_text(self, records: Records) -> TextExamples:
        """Texts as they are."""
        return text_examples(records, self.tokenizer, self.config.data.buckets)

    @property
    def prediction_fields(self) -> dict[str, str]:
        """Question and context."""
        data = self.config.data
        return {"question": data.question_field, "context": data.context_field}

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> SpanExamples:
        """Questions with their contexts; a pair of texts is one."""
        rows = [
            {"question": r["text"], "context": r["second_text"]} if "question" not in r else dict(r)
            for r in records
        ]
        found, data = Records("questions", rows), self.config.data
        return span_examples(found, self.tokenizer, data.buckets, stride=data.doc_stride)

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`answer`, its probability as `score`, and where it stands from `start` to before `end`.

        As transformers' question-answering pipeline names them; the null answer is empty. The
        probability is among the `n_best_size` best answers, as of run_qa.
        """
        spans_of = cast(SpanExamples, examples)
        threshold = self.facts["null_threshold"]
        found = spans_of.candidates(outputs[:, 1:])
        rows = []
        for candidates, (one, difference) in zip(found, _best(spans_of, outputs), strict=True):
            kept = candidates[: self.config.objective.n_best_size]
            scores = [candidate.score for candidate in kept]
            if self.facts["null_answers"]:
                scores.append(one.score + difference)
            if self._is_null(one, difference, threshold):
                one = Candidate(0.0, 0, 0, "")
            place = -1 if not one.text else 0
            score = round(float(softmax(scores)[place]), 4) if scores else 0.0
            rows.append({"answer": one.text, "score": score, "start": one.start, "end": one.end})
        return rows

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """The answer and its place."""
        told = f"{prediction['score']:6.1%}  "
        if not prediction["answer"]:
            return [told + "(no answer)"]
        place = f"(characters {prediction['start']:,} to {prediction['end']:,})"
        return [f"{told}{prediction['answer']}  {place}"]


def _questions(records: Records) -> Questions:
    """What records ask.

    Raises:
        ValueError: an id twice, or as of `answers_of`; names the records.
    """
    answers, seen = answers_of(records), {}

    def name(index: int) -> str:
        found = str(records[index].get("id", index + 1))
        if (first := seen.setdefault(found, index)) != index:
            raise bad_record(
                records,
                index,
                f"the id {found!r} is that of {records.where(first)}, too; predictions are told "
                "apart by it. Name another column (config.data.id_field), or set it to None.",
            )
        return found

    names = of_each(records, name)
    return Questions(names, [(r["question"], r["context"]) for r in records], answers)


def _best(examples: SpanExamples, outputs: np.ndarray) -> list[tuple[Candidate, float]]:
    """The best answer of each question but the null answer, and by how much this one beats it.

    The null answer has the smallest score of all windows. Where there is no other, it beats an
    empty one by far.
    """
    best = []
    for question, candidates in enumerate(examples.candidates(outputs[:, 1:])):
        windows = examples.windows_of(question)
        null = float(outputs[windows.start : windows.stop, 0, 1].min())
        one = candidates[0] if candidates else Candidate(LOWEST, 0, 0, "")
        best.append((one, null - one.score))
    return best


def _out_of_reach(
    examples: SpanExamples, question: int, answers: Sequence[Answer], most: int
) -> str:
    """Why none of a question's answers can be found exactly, or "" if one can."""
    reasons = {0}
    told = (
        "in no window whole",
        f"longer than {most} tokens (config.objective.max_answer_length)",
        "begin or end inside a token",
        "",
    )
    for start, text in answers:
        for window in examples.windows_of(question):
            place = examples.tokens_of(window, start, start + len(text))
            if place is None:
                continue
            if place[1] - place[0] >= most:
                reasons.add(1)
            elif normalised(examples.candidate(window, *place).text) != normalised(text):
                reasons.add(2)
            else:
                reasons.add(3)
    return told[max(reasons)]
