"""Divergences from a teacher, in float64, and their gradients as differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from ftjax.losses.distillation import (
    generalised_jsd,
    likeliest,
    of_classes,
    of_features,
    of_tokens,
    with_rest,
)
from ftjax.models.heads import TokenOutputs

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def written_out(teacher, student, beta):
    """Of log-probabilities in float64."""

    def kl(p, q):
        return np.sum(np.exp(p) * (p - q), axis=-1)

    if beta in (0.0, 1.0):
        return kl(teacher, student) if beta == 0 else kl(student, teacher)
    weighted = np.stack([teacher + np.log(beta), student + np.log(1 - beta)])
    mixture = logsumexp(weighted, axis=0)
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


@pytest.fixture
def logits():
    random = np.random.default_rng(0)
    return random.normal(size=(6, 5)) * 2, random.normal(size=(6, 5)) * 2


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_classes(logits, beta, temperature):
    teacher, student = logits
    found = of_classes(
        jnp.asarray(student, jnp.float32), jnp.asarray(teacher), temperature=temperature, beta=beta
    )
    logs = [log_softmax(x / temperature, axis=-1) for x in (teacher, student)]
    np.testing.assert_allclose(found, temperature**2 * written_out(*logs, beta), rtol=1e-4)
    gradient = jax.grad(
        lambda x: of_classes(x, jnp.asarray(teacher), temperature=temperature, beta=beta).sum()
    )(jnp.asarray(student, jnp.float32))
    step = 1e-6
    for row, place in [(0, 0), (3, 4), (5, 2)]:
        ends = []
        for sign in (1, -1):
            moved = student.copy()
            moved[row, place] += sign * step
            logs = [log_softmax(x / temperature, axis=-1) for x in (teacher, moved)]
            ends.append(temperature**2 * written_out(*logs, beta).sum())
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float(gradient[row, place]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_equals_are_not_apart_and_the_impossible_is_no_nan(beta):
    logs = jnp.log(jnp.asarray([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    assert np.allclose(generalised_jsd(logs, logs, beta), 0, atol=1e-7)
    # A padded vocabulary: -inf on both sides.
    scores = jnp.asarray([[0.3, -0.2, -jnp.inf]])

    def apart(scores):
        student = jax.nn.log_softmax(jnp.where(jnp.arange(3) < 2, scores, -jnp.inf))
        return generalised_jsd(logs[:1], student, beta).sum()

    value, gradient = jax.value_and_grad(apart)(scores)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def outputs_of(logits):
    """Of logits [rows, length, vocabulary], in parts."""
    return TokenOutputs(logits, lambda hidden: hidden, 3 * logits.shape[-1])


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_tokens_and_the_rest_of_the_probability(beta, count):
    random, temperature = np.random.default_rng(1), 2.0
    teacher, student = random.normal(size=(2, 2, 7, 8)) * 2
    weights = (random.random((2, 7)) < 0.7).astype(np.float32)
    ids, logps = likeliest(jnp.asarray(teacher), temperature, count)
    batch = {"weights": weights, "teacher_ids": ids, "teacher_logps": logps}

    def total(student, batch):
        return of_tokens(outputs_of(student), batch, temperature=temperature, beta=beta)

    expected = 0.0
    for row, place in np.argwhere(weights > 0):
        p, q = (log_softmax(x[row, place] / temperature) for x in (teacher, student))
        kept = np.argsort(-p)[:count]
        if count < 8:
            p, q = (np.append(x[kept], np.log(np.exp(np.delete(x, kept)).sum())) for x in (p, q))
        expected += temperature**2 * written_out(p, q, beta)
    found, gradient = jax.value_and_grad(total)(jnp.asarray(student, jnp.float32), batch)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    # Whatever stands where nothing counts.
    nothing = weights[..., None] == 0
    poisoned = batch | {
        "teacher_ids": np.where(nothing, 2**31 - 1, ids),
        "teacher_logps": np.where(nothing, np.nan, logps),
    }
    again = jax.value_and_grad(total)(jnp.asarray(student, jnp.float32), poisoned)
    assert again[0] == found
    np.testing.assert_array_equal(again[1], gradient)


def test_all_of_the_vocabulary_is_the_live_teacher():
    """Loss and gradient of what was kept are those of the teacher itself."""
    random, temperature = np.random.default_rng(2), 1.5
    teacher, student = jnp.asarray(random.normal(size=(2, 2, 4, 9)), jnp.float32)
    weights = jnp.ones((2, 4))
    ids, logps = likeliest(teacher, temperature, 9)
    batch = {"weights": weights, "teacher_ids": ids, "teacher_logps": logps}

    def kept(student):
        return of_tokens(outputs_of(student), batch, temperature=temperature, beta=0.5)

    def live(student):
        return of_classes(student, teacher, temperature=temperature, beta=0.5).sum()

    first, second = jax.value_and_grad(kept)(student), jax.value_and_grad(live)(student)
    np.testing.assert_allclose(first[0], second[0], rtol=1e-6)
    np.testing.assert_allclose(first[1], second[1], atol=1e-6)


def test_rest():
    logs = np.log([[0.5, 0.25], [1.0, 1e-9]])
    found = np.exp(with_rest(jnp.asarray(logs, jnp.float32)))
    np.testing.assert_allclose(found[0], [0.5, 0.25, 0.25], rtol=1e-6)
    assert 0 < found[1, 2] < 1e-6


def test_features():
    random = np.random.default_rng(3)
    first, second = random.normal(size=(2, 4, 6))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    expected = 1 - (first * second).sum(1) / norms
    np.testing.assert_allclose(of_features(*map(jnp.asarray, (first, second))), expected, atol=1e-6)
