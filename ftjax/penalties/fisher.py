"""Fisher information: how much each parameter matters for what the network says of a text."""

import jax
import jax.numpy as jnp

from ftjax.models.heads import TokenOutputs, is_new
from ftjax.models.layers import Network


def add_squared_gradients(
    total: dict[str, jax.Array],
    network_of,
    trainable: dict[str, jax.Array],
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> dict[str, jax.Array]:
    """Adds each row's squared gradient of a log-likelihood at a drawn answer.

    That is an unbiased estimate of the diagonal of the Fisher information. A language model's
    answers are tokens drawn from its own predictions (not the text's: Kunstner et al. 2019,
    https://arxiv.org/abs/1905.12558); an encoder's are its features with unit Gaussian noise.

    Args:
        total: path -> float32 sums so far.
        network_of: trainable -> network.
        trainable: path -> parameter.
        batch: arrays [rows, ...], a language model's with `weights` [rows, length].
        key: random key.
    """

    def log_likelihood(trainable, row, key):
        row = {name: value[None] for name, value in row.items()}
        return _drawn_log_likelihood(network_of(trainable), row, key)

    def add_row(total, inputs):
        gradients = jax.grad(log_likelihood)(trainable, *inputs)
        squares = {path: g.astype(jnp.float32) ** 2 for path, g in gradients.items()}
        return jax.tree.map(jnp.add, total, squares), None

    rows = next(iter(batch.values())).shape[0]
    return jax.lax.scan(add_row, total, (batch, jax.random.split(key, rows)))[0]


def _drawn_log_likelihood(network: Network, row: dict, key: jax.Array) -> jax.Array:
    if "labels" not in row:
        features = network.features(row).astype(jnp.float32)
        return jnp.sum(features * jax.random.normal(key, features.shape))
    outputs: TokenOutputs = network(row)
    position_keys = jax.random.split(key, row["labels"].size)

    def log_probability(logits, keys):
        drawn = jax.vmap(jax.random.categorical)(keys[0], jax.lax.stop_gradient(logits[0]))
        return jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[None, :, None], -1)[..., 0]

    return jnp.sum(outputs.map(log_probability, position_keys[None]) * row["weights"])


def normalised(total: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Scaled to a mean of 1 over the pretrained parameters.

    So a strength of ewc means what it means for l2_sp.

    Args:
        total: path -> sums of squared gradients.
    """
    pretrained = [value for path, value in total.items() if not is_new(path)]
    mean = sum(jnp.sum(value) for value in pretrained) / sum(value.size for value in pretrained)
    return {path: value / jnp.maximum(mean, 1e-30) for path, value in total.items()}
