"""How the next token is chosen from the logits (reference: transformers' logits processors)."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What is done to the logits, in this order, before a token is drawn.

    Attributes:
        repetition_penalty: see `penalise_repetition`; 1 is none.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens may be drawn; None for all.
        top_p: only the likeliest tokens whose probabilities reach this sum may be drawn.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        rules = {
            "repetition_penalty must be above 0": self.repetition_penalty > 0,
            "temperature must be at least 0": self.temperature >= 0,
            "top_k must be at least 1": self.top_k is None or self.top_k >= 1,
            "top_p must be above 0 and at most 1": self.top_p is None or 0 < self.top_p <= 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"{rule}; it is {getattr(self, rule.split()[0])}.")
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            raise ValueError("top_k and top_p need a temperature above 0; at 0 nothing is drawn.")


def choose_tokens(
    logits: jax.Array, seen: jax.Array | None, sampling: Sampling, keys: jax.Array | None
) -> jax.Array:
    """The next token of each row.

    Args:
        logits: [batch, vocabulary].
        seen: bool [batch, vocabulary], tokens that the row already has; needed for a penalty.
        sampling: how to choose.
        keys: a random key per row, [batch]; None if the likeliest token is taken.

    Returns:
        int32 [batch].
    """
    logits = logits.astype(jnp.float32)
    if sampling.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def penalise_repetition(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Divides positive and multiplies negative logits of seen tokens (Keskar et al. 2019, 4.1).

    Args:
        logits: [batch, vocabulary].
        seen: bool [batch, vocabulary].
        penalty: above 1 makes repetition less likely.
    """
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Logits [batch, vocabulary] with -inf below the k-th largest of each row (Fan et al. 2018)."""
    smallest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Nucleus sampling (Holtzman et al. 2020): -inf outside the smallest set of probability >= p.

    Args:
        logits: [batch, vocabulary].
        p: at least the likeliest token is kept.
    """
    order = jnp.argsort(logits, axis=-1)
    ascending = jnp.take_along_axis(logits, order, axis=-1)
    dropped = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - p
    dropped = dropped.at[:, -1].set(False)
    dropped = jnp.take_along_axis(dropped, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(dropped, -jnp.inf, logits)
