import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import log_loss

from ftjax.losses.tokens import loss, loss_and_entropy, row_sums, row_sums_and_entropy
from ftjax.models.heads import TokenOutputs


def outputs_of(logits, logits_at_once=2**20):
    """Outputs whose head is the identity."""
    return TokenOutputs(jnp.asarray(logits), lambda hidden: hidden, logits_at_once)


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 5, 7)).astype(np.float32)
    labels = random.integers(0, 7, (3, 5))
    weights = random.integers(0, 2, (3, 5)).astype(np.float32)
    weights[2] = 0
    return logits, {"labels": labels, "weights": weights}


def test_sum_over_predicted_tokens_is_scikit_learns(case):
    logits, batch = case
    total, weight, metrics = loss(outputs_of(logits), batch)
    real = batch["weights"] > 0
    chances = np.exp(logits.astype(np.float64))
    chances /= chances.sum(-1, keepdims=True)
    expected = log_loss(batch["labels"][real], chances[real], labels=range(7), normalize=False)
    assert float(weight) == real.sum()
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["accuracy"][0]) == (logits.argmax(-1) == batch["labels"])[real].sum()


def test_rows_add_up_to_the_batch(case):
    logits, batch = case
    total, weight, metrics = loss(outputs_of(logits), batch)
    sums = np.asarray(row_sums(outputs_of(logits), batch))
    right = metrics["accuracy"][0]
    np.testing.assert_allclose(sums.sum(0), [total, weight, right], rtol=1e-6)
    assert (sums[2] == 0).all()


def test_what_does_not_count_may_be_anything(case):
    """Labels that no token has, logits that are no numbers: not a bit of loss or gradient."""
    logits, batch = case
    logits[2] = np.nan
    garbage = {**batch, "labels": np.where(batch["weights"] > 0, batch["labels"], 10**6)}

    def total(table, batch):
        outputs = TokenOutputs(jnp.asarray(logits), lambda hidden: hidden @ table, 2**20)
        return loss(outputs, batch)[0]

    function = jax.value_and_grad(total)
    clean = jnp.where(jnp.isnan(logits), 0.0, logits)
    value, _ = function(jnp.eye(7), garbage)
    assert jnp.isfinite(value) and value == function(jnp.eye(7), batch)[0]
    logits = clean
    for a, b in zip(function(jnp.eye(7), garbage), function(jnp.eye(7), batch), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("logits_at_once", [1, 3 * 11 * 2, 3 * 11 * 4, 3 * 11 * 7])
def test_in_chunks_the_loss_and_its_gradients_are_the_same(logits_at_once):
    """Lengths that chunks divide and lengths that they do not."""
    random = np.random.default_rng(0)
    hidden = jnp.asarray(random.normal(size=(3, 7, 5)), jnp.float32)
    table = jnp.asarray(random.normal(size=(5, 11)), jnp.float32)
    batch = {
        "labels": random.integers(0, 11, (3, 7)),
        "weights": random.integers(0, 2, (3, 7)).astype(np.float32),
    }

    def total(hidden, table, logits_at_once):
        outputs = TokenOutputs(hidden, lambda h: h @ table, logits_at_once)
        value, _, metrics = loss(outputs, batch)
        return value, metrics["accuracy"][0]

    function = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (whole, correct), gradients = function(hidden, table, 2**20)
    (value, found), in_chunks = function(hidden, table, logits_at_once)
    assert float(value) == pytest.approx(float(whole), rel=1e-6)
    assert float(found) == float(correct)
    for a, b in zip(in_chunks, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_whole_logits_are_never_held():
    """Gemma's vocabulary: the compiled program's temporary memory stays far below one copy."""
    tokens, width, vocabulary = 512, 16, 262_144
    labels = jnp.zeros((1, tokens), jnp.int32)
    batch = {"labels": labels, "weights": jnp.ones((1, tokens))}

    def total(hidden, table, logits_at_once):
        return loss(TokenOutputs(hidden, lambda h: h @ table, logits_at_once), batch)[0]

    shapes = (jax.ShapeDtypeStruct((1, tokens, width), jnp.float32),)
    shapes += (jax.ShapeDtypeStruct((width, vocabulary), jnp.float32),)

    def temporary_bytes(logits_at_once):
        function = jax.grad(lambda h, t: total(h, t, logits_at_once), argnums=(0, 1))
        return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    all_logits = tokens * vocabulary * 4
    assert temporary_bytes(2**62) > all_logits
    assert temporary_bytes(2**22) < all_logits / 4


def test_entropies_are_scipys_and_have_no_gradient(case):
    logits, batch = case
    real = batch["weights"] > 0
    logits[2] = np.nan
    chances = np.exp(logits[real]) / np.exp(logits[real]).sum(-1, keepdims=True)
    total, weight, metrics = loss_and_entropy(outputs_of(logits), batch)
    expected, _, others = loss(outputs_of(logits), batch)
    assert float(metrics["entropy"][0]) == pytest.approx(entropy(chances, axis=-1).sum(), rel=1e-5)
    assert (total, metrics["mean_token_accuracy"]) == (expected, others["accuracy"])
    sums = np.asarray(row_sums_and_entropy(outputs_of(logits), batch))
    np.testing.assert_array_equal(sums[:, :3], row_sums(outputs_of(logits), batch))
    assert metrics["entropy"][1] == weight == real.sum() and (sums[2] == 0).all()

    def whole(table, function):
        outputs = TokenOutputs(jnp.nan_to_num(jnp.asarray(logits)), lambda h: h @ table, 30)
        total, _, metrics = function(outputs, batch)
        return total + sum(value for value, _ in metrics.values())

    gradients = [jax.grad(whole)(jnp.eye(7), function) for function in (loss, loss_and_entropy)]
    np.testing.assert_array_equal(*gradients)
