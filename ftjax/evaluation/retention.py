"""What a network can still do besides its new task.

Of a language model that is the perplexity of text that has nothing to do with the task. Of an
encoder, a linear probe is fitted on features of such text, before and after tuning, on the same
split (probing: Alain & Bengio 2016). If tuning overwrote what the features said about other text,
the probe's accuracy falls.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import transformers
from sklearn.linear_model import RidgeClassifierCV

from ftjax.data.examples import Examples, text_examples
from ftjax.data.labels import encode_labels
from ftjax.data.sources import Records, load_records
from ftjax.evaluation.intervals import interval_of_mean
from ftjax.evaluation.measurement import Measurement, Retention
from ftjax.evaluation.metrics import perplexity
from ftjax.fields import Field, Fields

STRENGTHS = tuple(10.0**power for power in range(-1, 6))

SOURCE: Fields = {
    "retention.source": Field("tfds://drug_reviews", "Text unrelated to the task."),
    "retention.test_split": Field("test", "Split to score."),
    "retention.text_field": Field("text", "Column with the text."),
    "retention.limit": Field(
        None, "Use so many of each split, drawn at random.", optional=int, minimum=2
    ),
}
TEXT_FIELDS: Fields = {
    "retention.enabled": Field(
        True,
        "Measure before and after what else the network can do.",
        options={True: SOURCE, False: {}},
    )
}
PROBE_FIELDS: Fields = {
    "retention.enabled": Field(
        True,
        "Measure before and after what else the network can do.",
        options={
            True: {
                **SOURCE,
                "retention.train_split": Field("train", "Split to fit the probe on."),
                "retention.label_field": Field("label", "Column with the label."),
                "retention.max_length": Field(64, "Tokens per text.", minimum=3),
            },
            False: {},
        },
    )
}


def probe_retention(
    settings: Any, tokenizer: transformers.PreTrainedTokenizerBase, features: Callable
) -> Retention:
    """Whether a linear probe on a network's features still sorts unrelated texts.

    Args:
        settings: the `retention` part of a config with `PROBE_FIELDS`.
        tokenizer: the checkpoint's.
        features: (network, batch) -> [rows, hidden].
    """
    fields = {"text": settings.text_field, "label": settings.label_field}
    examples, labels, classes = {}, {}, None
    for name in ("train", "test"):
        records = load_records(
            settings.source, split=settings[f"{name}_split"], fields=fields, limit=settings.limit
        )
        labels[name], classes = encode_labels(records, "label", classes)
        examples[name] = text_examples(records, tokenizer, (settings.max_length,))

    def score(found: dict[str, np.ndarray]) -> np.ndarray:
        return probe_correct(found["train"], labels["train"], found["test"], labels["test"])

    return Retention(Measurement(examples, features, score), retention_metrics)


def text_retention(
    settings: Any, examples_of: Callable[[Records], Examples], row_sums: Callable
) -> Retention:
    """The perplexity of unrelated text.

    Args:
        settings: the `retention` part of a config with `TEXT_FIELDS`.
        examples_of: records with a `text` -> what the network reads.
        row_sums: (network, batch) -> as `losses.tokens.row_sums`.
    """
    records = load_records(
        settings.source,
        split=settings.test_split,
        fields={"text": settings.text_field},
        limit=settings.limit,
    )
    return Retention(
        Measurement({"test": examples_of(records)}, row_sums, lambda found: found["test"]),
        perplexity_metrics,
    )


def perplexity_metrics(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """How the perplexity changed.

    Args:
        before: sums of each row, as `losses.tokens.row_sums`, before tuning.
        after: the same rows afterwards.

    Returns:
        `retention/before` and `/after` (perplexities; of the masked tokens, where such are
        guessed), and `retention/change` in nats per token.
    """
    first, last = perplexity(before), perplexity(after)
    return {
        "retention/before": first["perplexity"],
        "retention/after": last["perplexity"],
        "retention/change": first["loss"] - last["loss"],
    }


def probe_correct(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> np.ndarray:
    """Whether a linear probe sorts each test example right, bool [test examples].

    Ridge regression on the classes' indicators, in closed form on standardised features; its
    regularisation is chosen by leave-one-out on the training examples.

    Args:
        train_features: [examples, hidden].
        train_labels: [examples].
        test_features: [examples, hidden].
        test_labels: [examples].
    """
    mean, deviation = train_features.mean(0), train_features.std(0) + 1e-6
    probe = RidgeClassifierCV(alphas=STRENGTHS)
    probe.fit((train_features - mean) / deviation, train_labels)
    return probe.predict((test_features - mean) / deviation) == test_labels


def retention_metrics(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """How the probe's accuracy changed.

    Args:
        before: bool [examples], right with the pretrained network's features.
        after: bool [examples], right with the tuned network's, same examples.

    Returns:
        `retention/before` and `/after` (accuracies), `retention/change`, and `retention/change_low`
        and `/change_high`: its 95 % interval by paired bootstrap over the examples.
    """
    change = after.astype(float) - before.astype(float)
    low, high = interval_of_mean(change)
    return {
        "retention/before": float(before.mean()),
        "retention/after": float(after.mean()),
        "retention/change": float(change.mean()),
        "retention/change_low": low,
        "retention/change_high": high,
    }
