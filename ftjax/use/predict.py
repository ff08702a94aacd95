"""Sorting texts with a finished run."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from ftjax.data.batching import make_batch, plan_batches
from ftjax.data.text import load_tokenizer, tokenize
from ftjax.evaluation.evaluate import outputs_by_example
from ftjax.training.parallel import make_parallel
from ftjax.use.finished import load_finished_run


class TextClassificationPredictor:
    """Sorts texts with a finished run.

    Attributes:
        classes: names, in the order of the probabilities.
        fields: our names -> columns of a file of texts.
    """

    def __init__(self, run: str | Path):
        """Loads the run.

        Raises:
            FileNotFoundError: the folder holds no finished run.
            ValueError: the run learned something else, or its pretrained weights have changed.
        """
        finished = load_finished_run(run)
        self._config = finished.config
        if self._config.task != "text_classification":
            raise ValueError(
                f"The run in {run} learned {self._config.task}; scripts/chat.py talks with it."
            )
        self.classes: list[str] = finished.facts["classes"]
        self.fields = {"text": self._config.data.text_field}
        if self._config.data.second_text_field is not None:
            self.fields["second_text"] = self._config.data.second_text_field
        self._tokenizer = load_tokenizer(finished.base)
        self._parallel = make_parallel(self._config.training)
        graphdef, state = nnx.split(finished.network)
        self._state = self._parallel.place(state)
        self._function = self._parallel.map_evaluate(
            lambda state, batch: nnx.merge(graphdef, state)(batch)
        )

    def __call__(
        self, texts: Sequence[str], second_texts: Sequence[str] | None = None
    ) -> np.ndarray:
        """Probabilities float32 [texts, classes].

        Args:
            texts: to be sorted.
            second_texts: the other halves, where the run was trained on pairs.

        Raises:
            ValueError: pairs given to a run of single texts, or the other way round.
        """
        pairs = self._config.data.second_text_field is not None
        if pairs != (second_texts is not None):
            wanted = "pairs of texts" if pairs else "single texts"
            raise ValueError(f"This run was trained on {wanted}; give it {wanted}.")
        second = second_texts if pairs else [None] * len(texts)
        records = [{"text": a, "second_text": b} for a, b in zip(texts, second, strict=True)]
        buckets = self._config.data.buckets
        tokens = tokenize(
            records,
            self._tokenizer,
            max_length=buckets[-1],
            second_text_field="second_text" if pairs else None,
        )
        # Few texts need no wide batch.
        multiple = self._parallel.batch_multiple
        rows = min(self._config.evaluation.batch_size, -(-len(records) // multiple) * multiple)
        plans = plan_batches(
            tokens.lengths, batch_size=rows, buckets=buckets, seed=0, epoch=0, shuffle=False
        )
        labels = np.zeros(len(records), np.int32)
        pad = self._tokenizer.pad_token_id
        batches = (
            make_batch(tokens, labels, plan, batch_size=rows, pad_token_id=pad) for plan in plans
        )
        logits = outputs_by_example(self._function, batches, self._parallel, self._state)
        return np.asarray(jax.nn.softmax(logits, axis=-1))
