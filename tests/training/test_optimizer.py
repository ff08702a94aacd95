import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftjax.config import base_config, override
from ftjax.training.optimizer import decay_mask, make_optimizer, make_schedule


@pytest.fixture
def config():
    config = base_config().optimizer
    config.learning_rate = 1e-2
    return config


def rates(config, steps=20):
    schedule = make_schedule(config, steps)
    return np.asarray([float(schedule(step)) for step in range(steps)])


def test_linear_rises_to_the_peak_and_falls_evenly(config):
    config.warmup_fraction = 0.2
    found = rates(config)
    np.testing.assert_allclose(found[:4], 1e-2 * np.arange(1, 5) / 5, rtol=1e-5)
    assert found[4] == pytest.approx(1e-2)
    np.testing.assert_allclose(np.diff(found[4:]), -1e-2 / 16, rtol=1e-4)
    assert found.min() > 0


def test_cosine_ends_where_it_is_told(config):
    config.schedule, config.final_fraction, config.warmup_fraction = "cosine", 0.1, 0.0
    found = rates(config)
    expected = 1e-2 * (0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(20) / 20)) / 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_slanted_triangular_is_equation_3_of_ulmfit(config):
    config.schedule, config.warmup_fraction, config.final_fraction = (
        "slanted_triangular",
        0.25,
        1 / 32,
    )
    cut = 5
    for step, found in enumerate(rates(config)):
        p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / 0.25 - 1))
        assert found == pytest.approx(1e-2 * (1 + p * (32 - 1)) / 32, rel=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_constant_at_the_edges_of_the_warmup(config, warmup):
    config.schedule, config.warmup_fraction = "constant", warmup
    found = rates(config)
    assert (found > 0).all()
    assert found.max() <= 1e-2 * (1 + 1e-6)
    assert warmup == 1.0 or (found == np.float32(1e-2)).all()


def test_one_step_in_all(config):
    assert rates(config, 1)[0] == pytest.approx(1e-2)


def parameters():
    random = np.random.default_rng(0)
    shapes = {
        "backbone.dense.kernel": (3, 4),
        "backbone.dense.bias": (4,),
        "backbone.norm.scale": (4,),
        "backbone.words.embedding": (5, 3),
        "classifier.kernel": (4, 2),
    }
    return {p: jnp.asarray(random.normal(size=s), jnp.float32) for p, s in shapes.items()}


def test_decay_spares_biases_and_norm_scales():
    assert decay_mask(parameters()) == {
        "backbone.dense.kernel": True,
        "backbone.dense.bias": False,
        "backbone.norm.scale": False,
        "backbone.words.embedding": True,
        "classifier.kernel": True,
    }


def test_two_updates_are_adamw_by_hand(config):
    """Loshchilov & Hutter 2019, algorithm 2, on gradients clipped to norm 1, in float64."""
    config.weight_decay = 0.1
    config.schedule, config.warmup_fraction = "constant", 0.0
    values = parameters()
    optimizer = make_optimizer(
        config, make_schedule(config, 10), values, factors={"classifier.kernel": 5.0}
    )
    state, ours = optimizer.init(values), values
    random = np.random.default_rng(1)
    expected = {p: np.asarray(v, np.float64) for p, v in values.items()}
    first = {p: np.zeros(v.shape) for p, v in values.items()}
    second = {p: np.zeros(v.shape) for p, v in values.items()}
    for step in (1, 2):
        gradients = {p: random.normal(size=v.shape) for p, v in values.items()}
        updates, state = optimizer.update(
            {p: jnp.asarray(g, jnp.float32) for p, g in gradients.items()}, state, ours
        )
        ours = optax.apply_updates(ours, updates)
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for path, gradient in gradients.items():
            gradient = gradient / max(norm, 1.0)
            first[path] = 0.9 * first[path] + 0.1 * gradient
            second[path] = 0.999 * second[path] + 0.001 * gradient**2
            direction = first[path] / (1 - 0.9**step)
            direction = direction / (np.sqrt(second[path] / (1 - 0.999**step)) + 1e-8)
            if path.rpartition(".")[2] in ("kernel", "embedding"):
                direction = direction + 0.1 * expected[path]
            rate = 1e-2 * (5.0 if path.startswith("classifier") else 1.0)
            expected[path] = expected[path] - rate * direction
    for path, value in ours.items():
        np.testing.assert_allclose(value, expected[path], atol=1e-6)


def test_a_group_that_begins_late_is_corrected_for_its_own_bias(config):
    """torch's AdamW counts updates per parameter; a frozen one has no gradient and no count."""
    config.schedule, config.warmup_fraction, config.weight_decay = "constant", 0.0, 0.0
    config.max_gradient_norm = 1e9
    values = {"a": jnp.ones(3), "b": jnp.ones(3)}
    optimizer = make_optimizer(config, make_schedule(config, 9), values, groups=[["a"], ["b"]])
    state = optimizer.init(values)
    gradient = jnp.asarray([0.5, -2.0, 1.0])
    for _ in range(5):
        updates, state = optimizer.update({"a": gradient}, state, values)
        assert set(updates) == {"a"}
    updates, state = optimizer.update({"a": gradient, "b": gradient}, state, values)
    np.testing.assert_allclose(updates["b"], -1e-2 * np.sign(gradient), rtol=1e-5)
    np.testing.assert_allclose(updates["a"], -1e-2 * np.sign(gradient), rtol=1e-5)


LION = {"optimizer.beta1": 0.8, "optimizer.beta2": 0.95}
# Like matrices of a network: large ones, which Adafactor factors, and vectors.
SHAPES = {"dense.kernel": (130, 140), "words.embedding": (150, 128), "dense.bias": (140,)}
ADAMS_SIZE = 0.2 * 140**0.5


def lion(gradient, state, step):
    """Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2."""
    update = np.sign(0.8 * state + 0.2 * gradient)
    return update, 0.95 * state + 0.05 * gradient


def sgd(gradient, state, step):
    """Sutskever et al. 2013 as torch has it."""
    state = 0.9 * state + gradient
    return state, state


def adafactor(gradient, state, step):
    """Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, algorithms 4 and 5, no momentum."""
    decay, squared = 1 - step**-0.8, gradient**2 + 1e-30
    rows, columns = squared, squared
    if gradient.ndim == 2:
        rows, columns = squared.mean(1, keepdims=True), squared.mean(0, keepdims=True)
    rows = decay * (state[0] if step > 1 else 0) + (1 - decay) * rows
    columns = decay * (state[1] if step > 1 else 0) + (1 - decay) * columns
    second = rows * columns / rows.mean() if gradient.ndim == 2 else rows
    update = gradient / np.sqrt(second)
    return update / max(1.0, np.sqrt((update**2).mean())), (rows, columns)


@pytest.mark.parametrize(
    ("name", "settings", "rule"),
    [
        ("lion", LION, lion),
        ("sgd", {"optimizer.momentum": 0.9}, sgd),
        ("adafactor", {}, adafactor),
    ],
)
def test_three_updates_by_hand(name, settings, rule):
    """In float64, of all parameters."""
    optimizer, values = optimizer_of(name, settings)
    state, by_hand = optimizer.init(values), dict.fromkeys(values, 0.0)
    for step, gradients in enumerate(some_gradients(3), 1):
        updates, state = optimizer.update(gradients, state, values)
        for path, gradient in gradients.items():
            direction, by_hand[path] = rule(np.asarray(gradient, float), by_hand[path], step)
            scale = 1e-5 * np.abs(direction).max()
            np.testing.assert_allclose(-updates[path], direction, rtol=1e-5, atol=scale)


def test_muon_orthogonalises_matrices_and_moves_the_rest_by_adam():
    """Singular values are near one another, and as large as Adam's updates."""
    optimizer, values = optimizer_of("muon", {})
    state, adam = optimizer.init(values), optax.scale_by_adam()
    others = [path for path in values if path != "dense.kernel"]
    adams = adam.init({path: values[path] for path in others})
    for gradients in some_gradients(3):
        updates, state = optimizer.update(gradients, state, values)
        expected, adams = adam.update({path: gradients[path] for path in others}, adams)
        for path in others:
            np.testing.assert_allclose(-updates[path], expected[path], rtol=1e-5)
        sizes = np.linalg.svd(updates["dense.kernel"], compute_uv=False) / ADAMS_SIZE
        assert 0.6 < sizes.min() < sizes.max() < 1.3
    first, _ = optimizer.update(gradients, optimizer.init(values), values)
    left, _, right = np.linalg.svd(gradients["dense.kernel"], full_matrices=False)
    turned = left.T @ -first["dense.kernel"] @ right.T / ADAMS_SIZE
    assert 0.6 < np.diag(turned).min() < np.diag(turned).max() < 1.3
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-3)


@pytest.mark.parametrize("path", ["dense.bias", "dense.kernel"])
def test_muon_of_vectors_only_and_of_matrices_only(path):
    optimizer, values = optimizer_of("muon", {}, {path: SHAPES[path]})
    updates, _ = optimizer.update(values, optimizer.init(values), values)
    assert updates.keys() == {path} and np.isfinite(updates[path]).all()


def optimizer_of(name, settings, shapes=None):
    """At rate 1, without decay and clipping; and parameters of 1."""
    plain = {"optimizer.name": name, "optimizer.schedule": "constant"} | settings
    plain |= {"optimizer.learning_rate": 1.0, "optimizer.warmup_fraction": 0.0}
    plain |= {"optimizer.weight_decay": 0.0, "optimizer.max_gradient_norm": None}
    config = override(base_config(), plain).optimizer
    values = {path: jnp.ones(shape) for path, shape in (shapes or SHAPES).items()}
    return make_optimizer(config, make_schedule(config, 9), values), values


def some_gradients(count):
    random = np.random.default_rng(0)
    for _ in range(count):
        yield {
            path: jnp.asarray(random.normal(size=shape), jnp.float32)
            for path, shape in SHAPES.items()
        }
