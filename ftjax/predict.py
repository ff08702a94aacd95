"""Using a finished run: its best network, without the data it was trained on."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ftjax.data.batching import make_batch, plan_batches
from ftjax.data.text import load_tokenizer, tokenize
from ftjax.evaluation.evaluate import outputs_by_example
from ftjax.files import read_json
from ftjax.pretrained.locate import locate, sha256_of_folder
from ftjax.tasks.text_classification import classifier
from ftjax.training.checkpoint import Checkpoints
from ftjax.training.parallel import make_parallel
from ftjax.training.run import load_backbone
from ftjax.training.run_folder import RunFolder
from ftjax.tuning import METHODS, partition


class TextClassificationPredictor:
    """Sorts texts with a finished run.

    Attributes:
        classes: names, in the order of the probabilities.
        fields: our names -> columns of a file of texts.
    """

    def __init__(self, run: str | Path):
        """Loads the run's best parameters onto the pretrained network they belong to.

        Raises:
            FileNotFoundError: the folder holds no finished run.
            ValueError: the pretrained weights are not those the run began with.
        """
        folder = RunFolder(run)
        self._config = folder.config()
        if folder.recall("result") is None:
            raise FileNotFoundError(
                f"The run in {run} is not finished; the command that started it continues it."
            )
        if self._config.task != "text_classification":
            raise ValueError(
                f"The run in {run} learned {self._config.task}; scripts/chat.py talks with it."
            )
        self.classes: list[str] = folder.recall("task")["classes"]
        self.fields = {"text": self._config.data.text_field}
        if self._config.data.second_text_field is not None:
            self.fields["second_text"] = self._config.data.second_text_field
        base = locate(self._config.model.reference)
        _refuse_other_weights(folder, self._config.model.reference, base)
        self._tokenizer = load_tokenizer(base)
        pooled = self._config.model.pooling == "pooler"
        backbone = load_backbone(self._config, base, "pooled" if pooled else "backbone")
        network = classifier(self._config, backbone, len(self.classes), self._config.seed)
        rebuild, trainable, frozen = partition(
            network, METHODS[self._config.tuning.method](network)
        )
        with Checkpoints(folder.checkpoints, keep_last=1_000) as checkpoints:
            _, best, _ = checkpoints.restore_best(trainable)
        self._parallel = make_parallel(self._config.training)
        self._parameters = self._parallel.place(best), self._parallel.place(frozen)
        self._function = self._parallel.map_evaluate(lambda t, f, batch: rebuild(t, f)(batch))

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
        logits = outputs_by_example(self._function, batches, self._parallel, *self._parameters)
        return np.asarray(jax.nn.softmax(logits, axis=-1))


def _refuse_other_weights(folder: RunFolder, reference: str, base: Path) -> None:
    expected = read_json(folder.path / "manifest.json")["weights_sha256"][reference]
    if sha256_of_folder(base) != expected:
        raise ValueError(
            f"{base} is not what the run in {folder.path} began with (SHA-256 differs). Bring back "
            f"the weights that {reference} meant then."
        )
