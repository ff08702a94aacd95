"""How the next token is chosen from the logits (reference: transformers' logits processors)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What is done to the logits, in this order, before a token is drawn.

    Attributes:
        repetition_penalty: see `penalise_repetition`; 1 is none.
        no_repeat_ngram_size: no sequence of so many tokens comes twice, prompts included; 0 for
            any.
        banned_tokens: these are never chosen.
        min_new_tokens: no stop token is chosen before there are so many new ones.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens may be drawn; None for all.
        top_p: only the likeliest tokens whose probabilities reach this sum may be drawn.
        min_p: only tokens with at least this share of the likeliest one's probability may be drawn.

    Raises:
        ValueError: a value out of range, or one that would have no effect.
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    banned_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self):
        rules = {
            "repetition_penalty must be above 0": 0 < self.repetition_penalty < math.inf,
            "no_repeat_ngram_size must be at least 0": self.no_repeat_ngram_size >= 0,
            "banned_tokens must be at least 0": all(token >= 0 for token in self.banned_tokens),
            "min_new_tokens must be at least 0": self.min_new_tokens >= 0,
            "temperature must be at least 0": 0 <= self.temperature < math.inf,
            "top_k must be at least 1": self.top_k is None or self.top_k >= 1,
            "top_p must be above 0 and at most 1": self.top_p is None or 0 < self.top_p <= 1,
            "min_p must be at least 0 and at most 1": self.min_p is None or 0 <= self.min_p <= 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"{rule}; it is {getattr(self, rule.split()[0])}.")
        if self.temperature == 0 and (self.top_k, self.top_p, self.min_p) != (None, None, None):
            raise ValueError(
                "top_k, top_p and min_p need a temperature above 0; at 0 nothing is drawn."
            )


class Written(NamedTuple):
    """What rows have so far.

    Attributes:
        tokens: int32 [batch, slots], prompts and new tokens.
        start: int32 [batch], the slot of a row's first token.
        length: int32 scalar, slots in use.
    """

    tokens: jax.Array
    start: jax.Array
    length: jax.Array


def choose_tokens(
    logits: jax.Array,
    written: Written,
    sampling: Sampling,
    keys: jax.Array | None,
    held_back: Sequence[int] | jax.Array = (),
) -> jax.Array:
    """The next token of each row.

    Args:
        logits: [batch, vocabulary].
        written: what the rows have so far.
        sampling: how to choose.
        keys: a random key per row, [batch]; None if the likeliest token is taken.
        held_back: tokens that are not chosen this time, besides `sampling.banned_tokens`.

    Returns:
        int32 [batch].
    """
    logits = processed(logits, written, sampling, held_back)
    if sampling.temperature == 0.0 or keys is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def processed(
    logits: jax.Array,
    written: Written,
    sampling: Sampling,
    held_back: Sequence[int] | jax.Array = (),
) -> jax.Array:
    """Logits float32 [batch, vocabulary] to choose by; -inf for what may not be chosen.

    Args:
        logits: [batch, vocabulary].
        written: what the rows have so far.
        sampling: how to choose.
        held_back: see `choose_tokens`.
    """
    logits, vocabulary = jnp.asarray(logits, jnp.float32), logits.shape[-1]
    if sampling.repetition_penalty != 1.0:
        seen = seen_tokens(written, vocabulary)
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.no_repeat_ngram_size:
        repeats = ends_of_ngrams(written, vocabulary, sampling.no_repeat_ngram_size)
        logits = jnp.where(repeats, -jnp.inf, logits)
    for tokens in (sampling.banned_tokens, held_back):
        logits = logits.at[:, jnp.asarray(tokens, jnp.int32)].set(-jnp.inf, mode="drop")
    if sampling.temperature == 0.0:
        return logits
    # Less the largest, that a small temperature overflows to no infinity.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def seen_tokens(written: Written, vocabulary: int) -> jax.Array:
    """Which tokens a row has, bool [batch, vocabulary]."""
    slots = jnp.arange(written.tokens.shape[1])[None]
    inside = (slots >= written.start[:, None]) & (slots < written.length)
    return _marked(written.tokens, inside, vocabulary)


def ends_of_ngrams(written: Written, vocabulary: int, size: int) -> jax.Array:
    """Which tokens would complete a sequence of `size` tokens that the row has already.

    Returns:
        bool [batch, vocabulary].
    """
    tokens, start, length = written
    slots = jnp.arange(tokens.shape[1])[None]
    # Sequences are looked at by their last token; what is rolled over the edge begins too early.
    repeats = (slots >= start[:, None] + size - 1) & (slots < length)
    for back in range(1, size):
        last = jax.lax.dynamic_slice_in_dim(tokens, length - back, 1, axis=1)
        repeats &= jnp.roll(tokens, back, axis=1) == last
    return _marked(tokens, repeats, vocabulary)


def _marked(tokens: jax.Array, inside: jax.Array, vocabulary: int) -> jax.Array:
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocabulary), bool).at[rows, tokens].max(inside)


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


def keep_min_p(logits: jax.Array, p: float) -> jax.Array:
    """Logits [batch, vocabulary] with -inf below p times the largest probability of each row.

    The likeliest token is kept (Nguyen et al. 2024, "Turning Up the Heat").
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    least = p * jnp.max(probabilities, axis=-1, keepdims=True)
    return jnp.where(probabilities < least, -jnp.inf, logits)
