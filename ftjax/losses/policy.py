"""Completions that were drawn and rewarded, as losses of their tokens' log-probabilities.

All are sums and weights over tokens or rows, so that how a batch is divided changes nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Drawn(NamedTuple):
    """Tokens of completions, float32 [rows, length] but for `advantages`.

    Attributes:
        logps: of each token now, in nats.
        old_logps: when it was drawn.
        counts: bool, whether it is a token of a completion that counts.
        advantages: [rows], of each completion over others of its prompt.
    """

    logps: jax.Array
    old_logps: jax.Array
    counts: jax.Array
    advantages: jax.Array


def clipped(drawn: Drawn, low: float, high: float) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped surrogate, negated (Schulman et al. 2017, 1707.06347, eq. 7).

    The upper bound may lie further away than the lower (Yu et al. 2025, DAPO, 2503.14476, eq. 10).

    Args:
        drawn: the tokens.
        low: how far a probability may fall, relative to what it was, before the gradient ends.
        high: how far it may rise.

    Returns:
        The loss of each token, and whether clipping takes its gradient, float32 [rows, length]; 0
        where nothing counts.
    """
    apart = jnp.where(drawn.counts, drawn.logps - drawn.old_logps, 0.0)
    ratio, gain = jnp.exp(apart), drawn.advantages[:, None]
    losses = -jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - low, 1 + high) * gain)
    falls, rises = (ratio < 1 - low) & (gain < 0), (ratio > 1 + high) & (gain > 0)
    ended = drawn.counts & (falls | rises)
    return jnp.where(drawn.counts, losses, 0.0), ended.astype(jnp.float32)


def divergence(drawn: Drawn, reference: jax.Array) -> jax.Array:
    """KL(now || reference) of each token, by Schulman's estimator k3, which is never below 0.

    (Shao et al. 2024, DeepSeekMath, 2402.03300, eq. 4.) Each token counts by how much likelier it
    is now than when it was drawn, through which the gradient is that of the divergence itself
    (DeepSeek-AI 2025, DeepSeek-V3.2, 2512.02556; trl's `use_bias_correction_kl`).

    Args:
        drawn: the tokens.
        reference: float32 [rows, length], their log-probabilities by the network before tuning.
    """
    apart = jnp.where(drawn.counts, reference - drawn.logps, 0.0)
    ratio = jnp.exp(jnp.where(drawn.counts, drawn.logps - drawn.old_logps, 0.0))
    return jnp.where(drawn.counts, ratio * (jnp.exp(apart) - apart - 1.0), 0.0)


def grpo(losses: jax.Array, counts: jax.Array, longest: int) -> tuple[jax.Array, jax.Array]:
    """The mean over completions of the mean over their tokens (2402.03300, eq. 3)."""
    tokens = jnp.sum(counts, axis=1)
    means = jnp.sum(losses, axis=1) / jnp.maximum(tokens, 1)
    return jnp.sum(means), jnp.sum((tokens > 0).astype(jnp.float32))


def dapo(losses: jax.Array, counts: jax.Array, longest: int) -> tuple[jax.Array, jax.Array]:
    """The mean over all tokens of the batch (2503.14476, eq. 12)."""
    return jnp.sum(losses), jnp.sum(counts.astype(jnp.float32))


def dr_grpo(losses: jax.Array, counts: jax.Array, longest: int) -> tuple[jax.Array, jax.Array]:
    """The sum over tokens by the most that a completion may have (Liu et al. 2025, 2503.20783)."""
    rows = jnp.sum(jnp.any(counts, axis=1).astype(jnp.float32))
    return jnp.sum(losses), longest * rows


LOSS_TYPES = {"dapo": dapo, "grpo": grpo, "dr_grpo": dr_grpo}
"""By TRL's names: (losses of tokens, counts, most tokens of a completion) -> sum and weight."""
