"""Writing a text for another: summaries, notes, translations."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.examples import Examples
from ftjax.data.pairs import PairExamples, PairTokenizer
from ftjax.data.sources import Records
from ftjax.data.text import describe_text
from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.evaluation.measurement import Measurement, Retention
from ftjax.evaluation.retention import TEXT_FIELDS, text_retention
from ftjax.evaluation.text_overlap import (
    OF_PREDICTIONS,
    TEXT_METRICS,
    best_lead,
    by_document,
    lead,
    text_metrics,
    unsupported_numbers,
)
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import tokens
from ftjax.losses.forward import Forward
from ftjax.models import family_of
from ftjax.models.layers import Network
from ftjax.models.text_to_text import (
    DecoderTextToText,
    EncoderDecoderTextToText,
    TextToText,
)
from ftjax.objectives.base import LossSums, Objective
from ftjax.objectives.fields import LOGITS_AT_ONCE, buckets_field, buckets_problem, metric_field
from ftjax.pretrained.checkpoint import read_config
from ftjax.pretrained.generation_defaults import GenerationDefaults, generation_defaults

# By the name of the published network, the first that a family has.
KINDS: Mapping[str, type[TextToText]] = {
    "seq2seq_lm": EncoderDecoderTextToText,
    "causal_lm": DecoderTextToText,
}
OF_TOKENS = ("loss", "accuracy")
MOST_KEPT = 1000
"""Generated texts that stand in the result."""


class SequenceToSequence(Objective):
    """Writes a target for a source; see `Objective`.

    An encoder-decoder reads the source in its encoder. A decoder has both in one row and learns the
    target only. What is scored are texts that the network writes itself, token by token, the
    likeliest each time.
    """

    metrics: ClassVar = TEXT_METRICS
    fields: ClassVar[Fields] = {
        **LOGITS_AT_ONCE,
        "data.source_field": Field("source", "Column with the text that is read."),
        "data.target_field": Field("target", "Column with the text that is to be written."),
        "data.source_prefix": Field("", "Text before each source, such as 'summarize: '."),
        "data.source_suffix": Field("", "Text behind each source, such as '\\nTL;DR:'."),
        **buckets_field(
            (64, 128, 256, 512), "Lengths in tokens that sources are padded to; the last truncates."
        ),
        **buckets_field(
            (32, 64, 128),
            "Lengths in tokens that targets are padded to; the last truncates.",
            "target_buckets",
        ),
        "objective.label_smoothing": Field(
            0.0, "Share of the target spread over all tokens.", minimum=0.0, below=1.0
        ),
        "generation.max_new_tokens": Field(
            None,
            "Most tokens of a text that is written; None: the last of data.target_buckets.",
            optional=int,
            minimum=1,
        ),
        "generation.min_new_tokens": Field(
            None, "Fewest; None: as the checkpoint says.", optional=int, minimum=0
        ),
        "generation.no_repeat_ngram_size": Field(
            None,
            "So many tokens never come twice in a text; 0: any may; None: as the checkpoint says.",
            optional=int,
            minimum=0,
        ),
        "generation.repetition_penalty": Field(
            None,
            "Above 1 against repetition; None: as the checkpoint says.",
            optional=float,
            above=0,
        ),
        "evaluation.baselines": Field(True, "Also score the first sentences of the sources."),
        **metric_field(metrics, "rougeLsum"),
        **TEXT_FIELDS,
    }
    keeps_features = False

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self._records: dict[str, Records] = {}

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """Buckets that do not rise."""
        data = config.data
        return buckets_problem(data.buckets) or buckets_problem(
            data.target_buckets, "target_buckets"
        )

    def with_rows(self, rows: Mapping[str, np.ndarray]) -> Self:
        """The same with some of its examples only."""
        other = super().with_rows(rows)
        other._records = {name: found.chosen(rows[name]) for name, found in self._records.items()}
        return other

    @functools.cached_property
    def network_name(self) -> str:
        """The family's encoder-decoder, else its decoder.

        Raises:
            ValueError: a family that writes no texts.
        """
        model_type = read_config(self.folder).get("model_type", "")
        networks = family_of(model_type).networks
        for name in KINDS:
            if name in networks:
                return name
        raise ValueError(
            f"{self.config.model.reference} is a {model_type} network, which does not write text; "
            "choose an encoder-decoder such as T5, or a decoder."
        )

    @functools.cached_property
    def _defaults(self) -> GenerationDefaults:
        """How the checkpoint wants texts to be written."""
        return generation_defaults(
            self.folder,
            (cast(int, self.tokenizer.eos_token_id),),
            is_encoder_decoder=KINDS[self.network_name].frames_texts,
        )

    @functools.cached_property
    def generation(self) -> dict[str, Any]:
        """How texts are written: the arguments of `TextToText.write`."""
        wanted = dict(self.config.generation)
        most = wanted.pop("max_new_tokens") or self.config.data.target_buckets[-1]
        return {
            "max_new_tokens": most,
            "sampling": self._defaults.sampling(temperature=0.0, **wanted),
            "stop_token_ids": self._defaults.stop_token_ids,
        }

    @functools.cached_property
    def _pairs(self) -> PairTokenizer:
        data = self.config.data
        framed = KINDS[self.network_name].frames_texts
        return PairTokenizer(
            self.tokenizer,
            framed,
            data.buckets,
            data.target_buckets,
            before=data.source_prefix,
            behind=data.source_suffix,
            further_ids=self._defaults.decoder_prompt,
        )

    def read_split(self, split: str) -> PairExamples:
        """Sources with their targets."""
        data = self.config.data
        records = self.load(split, {"source": data.source_field, "target": data.target_field})
        examples = self._pairs.pairs(records)
        self._records[split] = records
        sources = describe_text(examples.sources, data.buckets[-1])
        targets = describe_text(examples.targets, data.target_buckets[-1])
        self.notes.append(f"{split}: sources: {sources}; targets: {targets}")
        if split == "test" and self._defaults.passed_over:
            told = ", ".join(self._defaults.passed_over)
            self.notes.append(
                f"{self._defaults.file.name} also asks for {told}; that is not done, the likeliest "
                "token is taken each time"
            )
        return examples

    def network(self, backbone: Network) -> TextToText:
        """The published network with its published head.

        Raises:
            ValueError: rows longer than the network has positions for.
        """
        kind, config = KINDS[self.network_name], self.config
        network = kind(backbone, config.model.logits_at_once, self._defaults.decoder_prompt)
        source = config.data.buckets[-1]
        target = max(config.data.target_buckets[-1], self.generation["max_new_tokens"])
        if problem := network.problem(source, target):
            raise ValueError(
                f"Sources of {source} tokens (config.data.buckets) and targets of {target} "
                f"(config.data.target_buckets, generation.max_new_tokens) do not fit: {problem}; "
                "lower them."
            )
        return network

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the target's tokens, its end included."""
        smoothing = self.config.objective.label_smoothing
        return tokens.loss(forward.outputs, forward.batch, label_smoothing=smoothing)

    def sums(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Sum of losses, number of tokens and of right ones in each target, float32 [rows, 3]."""
        return tokens.row_sums(network(batch), batch)

    def prediction_outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The tokens that are written, float32 [rows, max_new_tokens], -1 behind the end.

        (float32 holds every id below 2**24.)
        """
        return network.write(batch, **self.generation).astype(jnp.float32)

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Both, [rows, 3 + max_new_tokens]."""
        both = [self.sums(network, batch), self.prediction_outputs(network, batch)]
        return jnp.concatenate(both, axis=1)

    def measurement(self) -> Measurement:
        """Of written texts and of tokens."""
        return self._measurement_of(self.outputs)

    def validation(self) -> Measurement:
        """Without writing, if what chooses the checkpoint does not need it."""
        of_tokens = self.config.evaluation.metric in OF_TOKENS
        return self._measurement_of(self.sums if of_tokens else self.outputs)

    def _measurement_of(self, outputs) -> Measurement:
        # One length of targets: what compiles longest, the writing, has nothing to do with it.
        last = self.config.data.target_buckets[-1:]
        examples = {
            name: dataclasses.replace(cast(PairExamples, found), target_buckets=last)
            for name, found in self.examples.items()
        }
        return dataclasses.replace(super().measurement(), examples=examples, outputs=outputs)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `text_metrics`; `unfinished` is the share of texts that `max_new_tokens` cut off."""
        total, count, right = outputs[:, :3].astype(np.float64).sum(0)
        found = {"loss": float(total / count), "accuracy": float(right / count)}
        written = outputs[:, 3:]
        if not written.size:
            return found
        unfinished = float((written[:, -1] >= 0).mean())
        texts = text_metrics(self._texts(written), *self._human(split))
        return {**texts, **found, "unfinished": unfinished}

    def _texts(self, written: np.ndarray) -> list[str]:
        return self._defaults.texts(self.tokenizer, written)

    def _human(self, split: str) -> tuple[list[str], list[str]]:
        """Targets and sources of a split as they came."""
        records = self._records[split]
        return [r["target"] for r in records], [r["source"] for r in records]

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Of what is a mean over documents."""
        found = by_document(self._texts(outputs["test"][:, 3:]), *self._human("test"))
        found["with_unsupported_numbers"] = found["unsupported_numbers"] > 0
        return {name: interval_of_mean(values) for name, values in found.items()}

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """How texts were written, scores by document, and the texts themselves."""
        written = self._texts(outputs["test"][:, 3:])
        targets, sources = self._human("test")
        found = by_document(written, targets, sources)
        few = zip(range(MOST_KEPT), written, sources, strict=False)
        return {
            "generation": self._settings(),
            "documents": {name: np.round(values, 4).tolist() for name, values in found.items()},
            "generated": [self._prediction(text, source) for _, text, source in few],
        }

    def _settings(self) -> dict[str, Any]:
        sampling = self.generation["sampling"]
        return {
            "max_new_tokens": self.generation["max_new_tokens"],
            "num_beams": 1,
            "do_sample": False,
            "min_new_tokens": sampling.min_new_tokens,
            "no_repeat_ngram_size": sampling.no_repeat_ngram_size,
            "repetition_penalty": sampling.repetition_penalty,
            "banned_tokens": list(sampling.banned_tokens),
            "stop_token_ids": list(self._defaults.stop_token_ids),
            "stop_strings": list(self._defaults.stop_strings),
            "decoder_prompt": list(self._defaults.decoder_prompt),
        }

    @property
    def has_baselines(self) -> bool:
        """Of sentences alone."""
        return self.config.evaluation.baselines

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """The first sentences of the source, as many as are best on validation; and the targets.

        Of those, what is said without comparing them to themselves.
        """
        references, sources = self._human("validation")
        count = best_lead(sources, references)
        targets, sources = self._human("test")
        first = text_metrics([lead(source, count) for source in sources], targets, sources)
        of_targets = text_metrics(targets, targets, sources)
        return {
            "lead": {**first, "sentences": float(count)},
            "targets": {name: of_targets[name] for name in OF_PREDICTIONS},
        }

    def retention(self) -> Retention:
        """How well the second half of unrelated texts is written after the first."""
        return text_retention(self.config.retention, self.general_text, self.sums)

    def general_text(self, records: Records) -> PairExamples:
        """In halves."""
        return self._pairs.halves(records)

    @property
    def prediction_fields(self) -> dict[str, str]:
        """The source."""
        return {"text": self.config.data.source_field}

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> PairExamples:
        """Sources.

        Raises:
            ValueError: an empty one, or a second text.
        """
        if any(record.get("second_text") is not None for record in records):
            raise ValueError("This run was trained on single texts; give it single texts.")
        rows = [{"source": record["text"]} for record in records]
        return self._pairs.sources(Records("texts", rows))

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`generated_text`, and its `unsupported_numbers`, which the source does not have."""
        sources = [record["source"] for record in cast(PairExamples, examples).records]
        return [
            self._prediction(text, source)
            for text, source in zip(self._texts(outputs), sources, strict=True)
        ]

    def _prediction(self, text: str, source: str) -> dict[str, Any]:
        return {
            "generated_text": text,
            "unsupported_numbers": unsupported_numbers(text, source),
        }

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """The text, and what of it to look at."""
        lines = prediction["generated_text"].splitlines()
        if numbers := prediction["unsupported_numbers"]:
            lines.append(f"(numbers that the text above does not have: {', '.join(numbers)})")
        return lines
