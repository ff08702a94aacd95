import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from ftjax.evaluation.retention import probe_correct, retention_metrics


def features(signal, count=300, width=24, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    values = random.normal(size=(count, width)) + 10
    values[:, :3] += signal * np.eye(3)[labels]
    return values, labels


def split(values, labels):
    return values[:200], labels[:200], values[200:], labels[200:]


def test_a_probe_finds_what_is_there_and_nothing_else():
    assert probe_correct(*split(*features(8.0))).mean() > 0.97
    assert abs(probe_correct(*split(*features(0.0))).mean() - 1 / 3) < 0.15


def test_it_is_ridge_regression_on_standardised_features():
    train, train_labels, test, test_labels = split(*features(1.5))
    found = probe_correct(train, train_labels, test, test_labels)
    scaler = StandardScaler().fit(train)
    candidates = [
        RidgeClassifier(alpha=alpha).fit(scaler.transform(train), train_labels)
        for alpha in 10.0 ** np.arange(-1, 6)
    ]
    answers = [c.predict(scaler.transform(test)) == test_labels for c in candidates]
    assert any((found == answer).all() for answer in answers)


def test_a_feature_that_never_changes():
    values, labels = features(8.0)
    values[:, 5] = 3.0
    assert probe_correct(*split(values, labels)).mean() > 0.97


def test_nothing_forgotten():
    same = np.array([True, False, True])
    found = retention_metrics(same, same)
    assert found["retention/change"] == found["retention/change_low"] == 0
    assert found["retention/before"] == pytest.approx(2 / 3)


def test_the_interval_holds_the_change_and_narrows_with_more_texts():
    random = np.random.default_rng(0)
    widths = []
    for count in (100, 2500):
        before, after = random.random(count) < 0.8, random.random(count) < 0.6
        found = retention_metrics(before, after)
        assert found["retention/change"] == pytest.approx(after.mean() - before.mean())
        low, high = found["retention/change_low"], found["retention/change_high"]
        assert low < found["retention/change"] < high
        widths.append(high - low)
    # The standard error falls with the square root of the number of texts: 5 times.
    assert widths[0] / widths[1] == pytest.approx(5, rel=0.3)
    assert retention_metrics(before, after) == found
