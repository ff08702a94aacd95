"""Losses of pairs against their papers' equations in float64, on log-probabilities by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ftjax.losses.preference import COLUMNS, pairs_of
from ftjax.objectives.preference import LOSS_TYPES

BETA, SHARE, GAMMA, ALPHA = 0.3, 0.2, 0.7, 0.6
SETTINGS = ConfigDict(
    {"beta": BETA, "label_smoothing": SHARE, "simpo_gamma": GAMMA, "cpo_alpha": ALPHA}
)
# Chosen and rejected log-probabilities, their tokens, the same by the reference, the loss of prompt
# and chosen answer in all and its tokens.
PAIRS = np.array(
    [
        (-12.0, -9.0, 5, 3, -10.0, -9.5, 30.0, 9),
        (-0.01, -40.0, 1, 12, -2.0, -35.0, 0.5, 2),
        (-80.0, -80.0, 40, 40, -80.0, -80.0, 90.0, 44),
        (-0.3, -0.2, 3, 2, -0.5, -0.1, 6.0, 7),
    ]
)


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def log_odds(p):
    return np.log(p / (1 - p))


# Chosen and rejected: log-probabilities c and r, m and n tokens, by the reference pc and pr.
EQUATIONS = {
    "sigmoid": lambda c, r, m, n, pc, pr, s, t: -log_sigmoid(BETA * ((c - pc) - (r - pr))),
    "sigmoid_norm": lambda c, r, m, n, pc, pr, s, t: (
        -log_sigmoid(BETA / m * (c - pc) - BETA / n * (r - pr))
    ),
    "ipo": lambda c, r, m, n, pc, pr, s, t: ((c - pc) / m - (r - pr) / n - 0.5 / BETA) ** 2,
    "robust": lambda c, r, m, n, pc, pr, s, t: (
        (
            (SHARE - 1) * log_sigmoid(BETA * ((c - pc) - (r - pr)))
            + SHARE * log_sigmoid(BETA * ((r - pr) - (c - pc)))
        )
        / (1 - 2 * SHARE)
    ),
    "apo_zero": lambda c, r, m, n, pc, pr, s, t: (
        1 - np.exp(log_sigmoid(BETA * (c - pc))) + np.exp(log_sigmoid(BETA * (r - pr)))
    ),
    "orpo": lambda c, r, m, n, pc, pr, s, t: (
        s / t - BETA * log_sigmoid(log_odds(np.exp(c / m)) - log_odds(np.exp(r / n)))
    ),
    "simpo": lambda c, r, m, n, pc, pr, s, t: -log_sigmoid(BETA / m * c - BETA / n * r - GAMMA),
    "cpo": lambda c, r, m, n, pc, pr, s, t: -log_sigmoid(BETA * c - BETA * r) - ALPHA * c / m,
}


def sums_of(pairs):
    """As `pair_sums` gives them."""
    chosen, rejected, chosen_tokens, rejected_tokens, *_, nll, tokens = pairs.T
    columns = np.zeros((len(pairs), COLUMNS), np.float32)
    columns[:, (0, 1, 3, 4)] = np.stack([chosen, chosen_tokens, rejected, rejected_tokens], 1)
    columns[:, (7, 8)] = np.stack([nll, tokens], 1)
    return jnp.asarray(columns), jnp.asarray(pairs[:, 4:6], jnp.float32)


def losses(name, pairs):
    kind = LOSS_TYPES[name]
    sums, reference = sums_of(pairs)
    return kind.loss(pairs_of(sums, reference if kind.needs_reference else None), SETTINGS)


def test_all_have_an_equation():
    assert LOSS_TYPES.keys() == EQUATIONS.keys()


@pytest.mark.parametrize("name", EQUATIONS)
def test_loss_is_the_paper_s(name):
    np.testing.assert_allclose(losses(name, PAIRS), EQUATIONS[name](*PAIRS.T), rtol=2e-5)


@pytest.mark.parametrize("name", EQUATIONS)
def test_gradient_is_that_of_finite_differences(name):
    kind = LOSS_TYPES[name]
    sums, reference = sums_of(PAIRS)

    def total(sums):
        return kind.loss(pairs_of(sums, reference), SETTINGS).sum()

    found = np.asarray(jax.grad(total)(sums))
    for column, at in ((0, 0), (3, 1), (7, 6)):
        step = np.zeros_like(PAIRS)
        step[:, at] = 1e-6
        expected = (EQUATIONS[name](*(PAIRS + step).T) - EQUATIONS[name](*(PAIRS - step).T)) / 2e-6
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, kind in LOSS_TYPES.items() if kind.needs_reference])
def test_at_the_start_nothing_is_preferred(name):
    pairs = PAIRS.copy()
    pairs[:, 4:6] = pairs[:, :2]
    expected = {"ipo": 0.25 / BETA**2, "apo_zero": 1.0}.get(name, np.log(2))
    np.testing.assert_allclose(losses(name, pairs), expected, rtol=1e-6)


def test_robust_is_in_expectation_the_loss_of_clean_preferences():
    flipped = PAIRS[:, [1, 0, 3, 2, 5, 4, 6, 7]]
    mean = (1 - SHARE) * losses("robust", PAIRS) + SHARE * losses("robust", flipped)
    np.testing.assert_allclose(mean, losses("sigmoid", PAIRS), rtol=1e-5)


def test_odds_of_an_answer_that_is_certain_are_finite():
    certain = PAIRS[:1].copy()
    certain[:, :2] = 0.0
    kind = LOSS_TYPES["orpo"]
    value, gradient = jax.value_and_grad(lambda s: kind.loss(pairs_of(s), SETTINGS).sum())(
        sums_of(certain)[0]
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", EQUATIONS)
def test_rows_that_only_fill_up_are_numbers(name):
    kind = LOSS_TYPES[name]
    sums, reference = jnp.zeros((2, COLUMNS)), jnp.zeros((2, 2))
    value, gradient = jax.value_and_grad(
        lambda s: kind.loss(pairs_of(s, reference), SETTINGS).sum()
    )(sums)
    assert np.isfinite(value) and np.isfinite(gradient).all()
