"""Penalties and averages against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax, rel_entr, softmax
from tiny import make_case

from ftjax.config import base_config
from ftjax.losses import classes
from ftjax.losses.divergence import divergence
from ftjax.losses.forward import START, forward, of_outputs
from ftjax.models.heads import TokenOutputs
from ftjax.penalties.fisher import add_squared_gradients, normalised
from ftjax.penalties.penalties import (
    FISHER,
    ewc_gradient,
    feature_distance,
    l2_sp_gradient,
    make_penalties,
    mixout,
    r_drop,
    replay,
)
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.step import make_train_step, new_state
from ftjax.tuning.averaging import between, make_averaging
from ftjax.tuning.tune import tune


def values(seed, **shapes):
    random = np.random.default_rng(seed)
    return {
        path.replace("__", "."): jnp.asarray(random.normal(size=shape), jnp.float32)
        for path, shape in shapes.items()
    }


NOW = values(0, backbone__a=(3, 4), backbone__b=(4,), classifier__kernel=(4, 2))
BEFORE = values(1, backbone__a=(3, 4), backbone__b=(4,), classifier__kernel=(4, 2))
ANCHORS = {START + path: value for path, value in BEFORE.items()}


def test_l2_sp_is_the_gradient_of_half_the_squared_distance():
    def distance(now):
        return 0.5 * sum(jnp.sum((now[p] - BEFORE[p]) ** 2) for p in ("backbone.a", "backbone.b"))

    expected = jax.grad(distance)(NOW)
    found = l2_sp_gradient(NOW, ANCHORS)
    assert found.keys() == {"backbone.a", "backbone.b"}
    for path, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[path], rtol=1e-6)


def test_ewc_weighs_it_by_the_fisher_information():
    fisher = {path: value**2 for path, value in values(2, backbone__a=(3, 4)).items()}
    frozen = ANCHORS | {FISHER + path: value for path, value in fisher.items()}
    found = ewc_gradient({"backbone.a": NOW["backbone.a"]}, frozen)["backbone.a"]
    expected = fisher["backbone.a"] * (NOW["backbone.a"] - BEFORE["backbone.a"])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_divergence_is_scipys():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 5, 7))
    weights = np.array([1, 0, 2, 1, 1])
    chances = softmax(first, -1), softmax(second, -1)
    expected = (rel_entr(*chances).sum(-1) * weights).sum()
    found = divergence(jnp.asarray(first), jnp.asarray(second), jnp.asarray(weights))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(divergence(jnp.asarray(first), jnp.asarray(first), weights)) == pytest.approx(0)


@pytest.mark.parametrize("logits_at_once", [2**20, 2 * 9 * 2])
def test_divergence_of_language_models_is_that_of_their_tokens(logits_at_once):
    random = np.random.default_rng(0)
    hidden, other = random.normal(size=(2, 2, 5, 4)).astype(np.float32)
    heads = random.normal(size=(2, 4, 9)).astype(np.float32)
    weights = random.integers(0, 2, (2, 5)).astype(np.float32)
    first, second = (
        TokenOutputs(
            jnp.asarray(h), functools.partial(jnp.matmul, b=jnp.asarray(head)), logits_at_once
        )
        for h, head in ((hidden, heads[0]), (other, heads[1]))
    )
    logs = log_softmax(hidden @ heads[0], -1), log_softmax(other @ heads[1], -1)
    expected = ((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1) * weights).sum()
    assert float(divergence(first, second, jnp.asarray(weights))) == pytest.approx(
        expected, rel=1e-5
    )


def forward_of(family, *, dropout=0.0, move=0.0, key=None, extra=None):
    """A forward pass of a tiny network, `move` away from its start."""
    network, batch, _ = make_case(family)
    rebuild, start, frozen = tune(network, base_config().tuning, 0)
    frozen = frozen | {START + path: value for path, value in start.items()}
    random = np.random.default_rng(3)
    now = {
        path: value + move * jnp.asarray(random.normal(size=value.shape), jnp.float32)
        for path, value in start.items()
    }

    def network_of(parameters, key):
        model = rebuild(parameters, frozen)
        if hasattr(model, "dropout_rate"):
            model.dropout_rate = dropout
        return model

    batch = batch | (extra or {})
    return forward(network_of, now, frozen, batch, key)


@pytest.mark.parametrize("name", ["kl_to_base", "feature_distillation"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_nothing_is_held_at_the_start_and_something_away_from_it(family, name):
    settings = base_config().penalties
    settings[name] = 2.0
    penalties = make_penalties(settings, None)
    assert penalties.needs_start
    at_start = penalties.on_outputs(forward_of(family))
    assert float(at_start[name]) == pytest.approx(0, abs=1e-5)
    away = penalties.on_outputs(forward_of(family, move=0.3))
    assert float(away[name]) > 1e-2


def test_r_drop_compares_two_dropout_masks():
    key = jax.random.key(0)
    assert float(r_drop(forward_of("bert", dropout=0.5, key=key))) > 1e-4
    assert float(r_drop(forward_of("bert", key=key))) == pytest.approx(0, abs=1e-6)
    assert float(r_drop(forward_of("bert", dropout=0.5))) == 0


def test_replay_of_a_language_model_is_its_loss_and_of_an_encoder_its_features():
    _, batch, loss = make_case("llama")
    other = {name: value[:2] for name, value in batch.items()}
    other["weights"] = 0.5 * other["weights"]
    passed = forward_of("llama", extra={f"replay_{k}": v for k, v in other.items()})
    expected, _, _ = loss(passed.tuned(other), other)
    assert float(replay(passed, of_outputs(loss))) == pytest.approx(float(expected), rel=1e-6)

    _, batch, _ = make_case("bert")
    other = {name: value[1:3] for name, value in batch.items() if name != "labels"}
    passed = forward_of("bert", move=0.2, extra={f"replay_{k}": v for k, v in other.items()})
    now, base = passed.tuned.features(other), passed.base().features(other)
    expected = np.mean((np.asarray(now) - np.asarray(base)) ** 2, -1).sum()
    assert float(replay(passed, None)) == pytest.approx(expected, rel=1e-5)


def test_feature_distance_by_hand():
    found = feature_distance(
        jnp.array([[1.0, 3.0], [9.0, 9.0]]), jnp.zeros((2, 2)), jnp.array([2, 0])
    )
    assert float(found) == 2 * (1 + 9) / 2


def test_mixout_puts_back_the_right_share_and_keeps_the_mean():
    now = {"backbone.a": jnp.full((200, 200), 3.0), "classifier.kernel": jnp.ones(5)}
    frozen = {
        START + "backbone.a": jnp.full((200, 200), 1.0),
        START + "classifier.kernel": jnp.zeros(5),
    }
    mixed = mixout(now, frozen, jax.random.key(0), 0.25)
    back = np.isclose(mixed["backbone.a"], 1.0)
    assert back.mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(np.asarray(mixed["backbone.a"])[~back], 1 + 2 / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(mixed["classifier.kernel"], now["classifier.kernel"])
    assert mixout(now, frozen, None, 0.25) is now


def test_averages_by_hand():
    config = base_config()
    sequence = [jnp.float32(x) for x in (4.0, 1.0, 7.0, 2.0)]

    def follow(method, **changes):
        config.averaging.method = method
        for name, value in changes.items():
            config.averaging[name] = value
        averaging, average = make_averaging(config.averaging, 4), {"a": jnp.float32(5.0)}
        found = []
        for step, value in enumerate(sequence):
            average = averaging(average, {"a": value}, jnp.int32(step))
            found.append(float(average["a"]))
        return found

    # Weights 1/2, 1/4, ... from the last, divided by their sum.
    np.testing.assert_allclose(follow("ema", decay=0.5), [4, 2, 34 / 7, 50 / 15], rtol=1e-6)
    config.averaging.decay = 0.999
    np.testing.assert_allclose(follow("swa", start_fraction=0.5), [4, 1, 7, 4.5])
    np.testing.assert_allclose(follow("swa", start_fraction=0.0), [4, 2.5, 4, 3.5])


class Headed(nnx.Module):
    def __init__(self, seed):
        values = np.random.default_rng(seed).normal(size=(2, 3))
        self.backbone = nnx.Dict(a=nnx.Param(jnp.asarray(values[0])))
        self.classifier = nnx.Param(jnp.asarray(values[1]))


def test_interpolation_leaves_the_new_head_alone():
    start, end = Headed(0), Headed(1)
    expected = 0.75 * start.backbone.a[...] + 0.25 * end.backbone.a[...]
    found = between(start, Headed(1), 0.25)
    np.testing.assert_allclose(found.backbone.a[...], expected, rtol=1e-6)
    np.testing.assert_array_equal(found.classifier[...], end.classifier[...])
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
            between(start, end, alpha)


class Linear(nnx.Module):
    def __init__(self, kernel):
        self.kernel = kernel

    def features(self, batch):
        return batch["x"] @ self.kernel


def test_fisher_information_of_a_linear_map_is_the_squared_inputs():
    """y = x W with unit Gaussian noise: the information on W_ij is the sum of x_i squared."""
    x = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
    total = {"backbone.kernel": jnp.zeros((3, 2))}
    found = add_squared_gradients(
        total,
        lambda parameters: Linear(parameters["backbone.kernel"]),
        {"backbone.kernel": jnp.ones((3, 2))},
        {"x": jnp.asarray(x)},
        jax.random.key(0),
    )["backbone.kernel"]
    expected = np.repeat((x**2).sum(0)[:, None], 2, 1)
    np.testing.assert_allclose(found, expected, rtol=0.12)
    assert float(normalised({"backbone.kernel": found})["backbone.kernel"].mean()) == pytest.approx(
        1
    )


def test_fisher_information_of_a_softmax_is_p_minus_p_squared():
    """One token, logits = a parameter vector: the diagonal is p (1 - p) (closed form)."""
    logits = jnp.array([0.5, -1.0, 2.0])

    class Unigram(nnx.Module):
        def __init__(self, logits):
            self.values = logits

        def __call__(self, batch):
            hidden = jnp.zeros((*batch["labels"].shape, 1))
            return TokenOutputs(hidden, lambda h: h + self.values, 2**20)

    rows = 6000
    batch = {"labels": jnp.zeros((rows, 1), jnp.int32), "weights": jnp.ones((rows, 1))}
    total = {"backbone.logits": jnp.zeros(3)}
    found = add_squared_gradients(
        total,
        lambda p: Unigram(p["backbone.logits"]),
        {"backbone.logits": logits},
        batch,
        jax.random.key(1),
    )["backbone.logits"]
    p = softmax(np.asarray(logits))
    np.testing.assert_allclose(found / rows, p * (1 - p), rtol=0.1)


def step_once(settings, accumulation_steps=1, weights=(1, 1, 0, 1)):
    network, batch, _ = make_case("bert")
    batch = batch | {"weights": np.asarray(weights, np.float32)}
    rebuild, start, frozen = tune(network, base_config().tuning, 0)
    frozen = frozen | {START + path: value for path, value in start.items()}
    frozen |= {FISHER + path: jnp.ones_like(value) for path, value in start.items()}
    moved = {path: value + 0.1 for path, value in start.items()}
    config = base_config().optimizer
    schedule = make_schedule(config, 1)
    optimizer = make_optimizer(config, schedule, moved)
    step = jax.jit(
        make_train_step(
            rebuild,
            of_outputs(classes.loss),
            optimizer,
            schedule,
            penalties=make_penalties(settings, of_outputs(classes.loss)),
            accumulation_steps=accumulation_steps,
        )
    )
    state, metrics = step(new_state(0, moved, optimizer), frozen, batch)
    return state.optimizer[1][0][0].mu, metrics


@pytest.mark.parametrize("name", ["ewc", "kl_to_base"])
def test_a_penalty_reaches_the_gradients_the_same_in_micro_batches(name):
    plain, _ = step_once(base_config().penalties)
    settings = base_config().penalties
    settings[name] = 0.5
    whole, metrics = step_once(settings)
    parts, _ = step_once(settings, accumulation_steps=2)
    path = "backbone.encoder.layer.0.output.dense.kernel"
    assert not np.allclose(whole[path], plain[path], atol=1e-7)
    assert all(np.isfinite(value) for value in metrics.values())
    for path, value in whole.items():
        np.testing.assert_allclose(parts[path], value, atol=1e-6, err_msg=path)
