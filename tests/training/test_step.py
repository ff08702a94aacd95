"""The step against a plain large-batch gradient, and over meshes and pmap on four devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ftjax.config import base_config
from ftjax.losses import classes
from ftjax.losses.forward import of_outputs
from ftjax.models.bert import BertConfig, BertModel
from ftjax.models.heads import TextClassifier
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.parallel import MeshParallel, PmapParallel, make_parallel
from ftjax.training.step import make_train_step, new_state
from ftjax.tuning import METHODS
from ftjax.tuning.partition import partition

ROWS, LENGTH = 8, 16


def parts(method="full", dropout=0.0):
    config = BertConfig(
        vocab_size=99,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    network = TextClassifier(
        BertModel(config, rngs=nnx.Rngs(0)),
        3,
        pooling="mean",
        dropout_rate=dropout,
        rngs=nnx.Rngs(1),
    )
    settings = base_config(method=method).tuning
    return partition(network, METHODS[method].apply(network, settings, jax.random.key(0)))


def batches(count, weights=None):
    random = np.random.default_rng(0)
    for _ in range(count):
        mask = np.arange(LENGTH)[None] < random.integers(1, LENGTH + 1, (ROWS, 1))
        yield {
            "input_ids": random.integers(1, 99, (ROWS, LENGTH)).astype(np.int32),
            "attention_mask": mask.astype(np.int32),
            "labels": random.integers(0, 3, ROWS).astype(np.int32),
            "weights": random.integers(0, 2, ROWS).astype(np.float32)
            if weights is None
            else np.asarray(weights, np.float32),
        }


def train(parallel, *, steps=10, accumulation_steps=1, weights=None, **kind):
    """Losses of a few steps, and the last state on the host."""
    rebuild, trainable, frozen = parts(**kind)
    config = base_config().optimizer
    config.learning_rate = 1e-3
    schedule = make_schedule(config, steps)
    optimizer = make_optimizer(config, schedule, trainable)
    step = make_train_step(
        rebuild,
        of_outputs(classes.loss),
        optimizer,
        schedule,
        accumulation_steps=accumulation_steps,
        axis_name=parallel.axis_name,
    )
    mapped = parallel.map_train(step)
    state, frozen = parallel.place(new_state(0, trainable, optimizer)), parallel.place(frozen)
    losses = []
    for batch in batches(steps, weights):
        state, metrics = mapped(state, frozen, parallel.place_batch(batch))
        losses.append(float(parallel.fetch(metrics)["loss"]))
    return np.asarray(losses), jax.tree.map(np.asarray, parallel.one_copy(state))


def one_device():
    return MeshParallel(jax.devices()[:1])


@functools.cache
def reference():
    return train(one_device())


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 1), (1, 2, 2)])
def test_every_mesh_gives_the_losses_of_one_device(shape):
    losses, state = train(MeshParallel(jax.devices(), *shape))
    np.testing.assert_allclose(losses, reference()[0], atol=1e-5)
    for path, value in reference()[1].trainable.items():
        np.testing.assert_allclose(state.trainable[path], value, atol=1e-4, err_msg=path)


def test_pmap_gives_the_losses_of_one_device():
    losses, state = train(PmapParallel(jax.devices()))
    np.testing.assert_allclose(losses, reference()[0], atol=1e-5)
    for path, value in reference()[1].trainable.items():
        np.testing.assert_allclose(state.trainable[path], value, atol=1e-4, err_msg=path)


def test_dropout_is_the_same_under_every_mesh():
    alone, _ = train(one_device(), dropout=0.3, steps=3)
    spread, _ = train(MeshParallel(jax.devices(), 2, 2, 1), dropout=0.3, steps=3)
    np.testing.assert_allclose(spread, alone, atol=1e-5)
    assert np.abs(alone - reference()[0][:3]).max() > 1e-3


def test_fsdp_and_tensor_split_the_large_parameters_and_their_moments():
    parallel = MeshParallel(jax.devices(), 1, 2, 2)
    _, trainable, _ = parts()
    placed = parallel.place(trainable)
    kernel = placed["backbone.encoder.layer.0.intermediate.dense.kernel"]
    assert kernel.addressable_shards[0].data.shape == (64, 64)
    assert placed["classifier.bias"].sharding.is_fully_replicated


@pytest.mark.parametrize("accumulation_steps", [2, 8])
@pytest.mark.parametrize("weights", [[1, 1, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]])
def test_micro_batches_of_uneven_weight_equal_the_large_batch(accumulation_steps, weights):
    whole = train(one_device(), steps=2, weights=weights)
    split = train(one_device(), steps=2, weights=weights, accumulation_steps=accumulation_steps)
    np.testing.assert_allclose(split[0], whole[0], atol=1e-6)
    for path, value in whole[1].optimizer[1][0][0].mu.items():
        np.testing.assert_allclose(
            split[1].optimizer[1][0][0].mu[path], value, atol=1e-6, err_msg=path
        )


def test_accumulation_over_a_mesh():
    losses, _ = train(MeshParallel(jax.devices()), accumulation_steps=2)
    np.testing.assert_allclose(losses, reference()[0], atol=1e-5)


def test_rows_of_weight_zero_change_nothing():
    weights = [1, 1, 1, 0, 0, 0, 0, 0]
    rebuild, trainable, frozen = parts()
    batch = next(batches(1, weights))
    garbage = batch | {
        "labels": np.where(batch["weights"] > 0, batch["labels"], 2),
        "input_ids": np.where(batch["weights"][:, None] > 0, batch["input_ids"], 7),
    }

    def loss(batch):
        total, weight, _ = classes.loss(rebuild(trainable, frozen)(batch), batch)
        return total / weight

    assert float(loss(batch)) == pytest.approx(float(loss(garbage)), abs=1e-6)


def test_the_first_gradient_is_that_of_the_mean_loss():
    """Adam's first moment after one step is 0.1 of the clipped gradient, taken here by hand."""
    rebuild, trainable, frozen = parts()
    batch = next(batches(1))

    def mean_loss(trainable):
        logits = rebuild(trainable, frozen)(batch)
        logs = jax.nn.log_softmax(logits)[jnp.arange(ROWS), batch["labels"]]
        return -(logs * batch["weights"]).sum() / batch["weights"].sum()

    gradients = jax.grad(mean_loss)(trainable)
    scale = 1 / max(1.0, float(optax.tree.norm(gradients)))
    _, state = train(one_device(), steps=1)
    for path, gradient in gradients.items():
        np.testing.assert_allclose(
            state.optimizer[1][0][0].mu[path], 0.1 * scale * gradient, atol=1e-6, err_msg=path
        )


def test_what_is_frozen_has_no_state_and_does_not_move():
    _, before, frozen = parts("linear_probe")
    _, state = train(one_device(), method="linear_probe")
    assert set(state.trainable) == {"classifier.kernel", "classifier.bias"}
    assert set(state.optimizer[1][0][0].mu) == set(state.trainable)
    assert all(path.startswith("backbone.") for path in frozen)
    assert np.abs(state.trainable["classifier.kernel"] - before["classifier.kernel"]).max() > 0


def test_a_method_that_trains_nothing_is_refused():
    network = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no parameter trainable"):
        partition(network, lambda path: False)


def test_devices_that_are_not_there():
    config = base_config().training
    config.platform = "gpu"
    with pytest.raises(RuntimeError, match=r"JAX sees no such device here .*cpu"):
        make_parallel(config)


def test_meshes_that_do_not_fit():
    config = base_config().training
    config.mesh.data = 3
    with pytest.raises(ValueError, match="3 x 1 x 1 must be the number of devices, 4"):
        make_parallel(config)
