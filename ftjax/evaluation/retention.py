"""What a network can still do besides its new task.

A linear probe is fitted on features of text that has nothing to do with the task, before and after
tuning, on the same split (probing: Alain & Bengio 2016). If tuning overwrote what the features
said about other text, the probe's accuracy falls.
"""

import numpy as np
from scipy.stats import bootstrap
from sklearn.linear_model import RidgeClassifierCV

STRENGTHS = tuple(10.0**power for power in range(-1, 6))
RESAMPLES = 2000


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
    low = high = float(change.mean())
    if np.any(change != change[0]):
        interval = bootstrap(
            (change,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {
        "retention/before": float(before.mean()),
        "retention/after": float(after.mean()),
        "retention/change": float(change.mean()),
        "retention/change_low": low,
        "retention/change_high": high,
    }
