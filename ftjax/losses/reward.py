"""Rewards of answers, learned from which of two people preferred."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def pair_losses(
    rewards: jax.Array, margins: jax.Array | None = None, *, centering: float = 0.0
) -> jax.Array:
    """The Bradley-Terry loss of each pair, float32 [pairs].

    (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1; with margins Touvron et al. 2023,
    2307.09288, eq. 2; centering as of Eisenstein et al. 2023, 2312.09244.)

    Args:
        rewards: float32 [pairs, 2], of the chosen and of the rejected answer.
        margins: float32 [pairs], by how much the chosen one should be ahead.
        centering: weight of the squared sum of both, which keeps rewards around 0.
    """
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    ahead = chosen - rejected if margins is None else chosen - rejected - margins
    return -jax.nn.log_sigmoid(ahead) + centering * jnp.square(chosen + rejected)


def pair_metrics(rewards: jax.Array) -> Mapping[str, jax.Array]:
    """By TRL's names, float32 [pairs] each."""
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    return {
        "accuracy": (chosen > rejected).astype(jnp.float32),
        "margin": chosen - rejected,
        "mean_reward": (chosen + rejected) / 2,
    }
