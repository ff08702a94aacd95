"""Which of two answers people preferred, as losses of the answers' log-probabilities.

All are functions of one pair at a time, so that how a batch is divided changes nothing.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftjax.losses.tokens import token_losses
from ftjax.models.heads import TokenOutputs


class Answers(NamedTuple):
    """What a network says of answers, float32 [pairs].

    Attributes:
        logps: log-probability of the answer in nats, given its prompt.
        tokens: of the answer, its end included.
        nll: negative log-probability of prompt and answer together, the mean of their tokens.
    """

    logps: jax.Array
    tokens: jax.Array
    nll: jax.Array

    @property
    def mean_logps(self) -> jax.Array:
        """Log-probability of a token of the answer."""
        return self.logps / self.tokens


class Pairs(NamedTuple):
    """Chosen and rejected answers.

    Attributes:
        chosen: what the network says of the one that people preferred.
        rejected: of the other.
        reference: log-probabilities (chosen, rejected) by the network before tuning; zeros where
            the loss needs none.
    """

    chosen: Answers
    rejected: Answers
    reference: tuple[jax.Array, jax.Array]

    @property
    def ratios(self) -> tuple[jax.Array, jax.Array]:
        """How much likelier the answers have become, in nats (chosen, rejected)."""
        return self.chosen.logps - self.reference[0], self.rejected.logps - self.reference[1]

    @property
    def mean_ratios(self) -> tuple[jax.Array, jax.Array]:
        """The same for each token."""
        chosen, rejected = self.ratios
        return chosen / self.chosen.tokens, rejected / self.rejected.tokens


COLUMNS = 9


def pair_sums(outputs: TokenOutputs, batch: Mapping[str, jax.Array]) -> jax.Array:
    """What a network says of pairs: float32 [rows, 9], whatever lies where nothing counts.

    Args:
        outputs: of rows that hold a chosen answer behind its prompt, and a rejected one behind the
            same, as segments 1 and 2.
        batch: `labels` and `segment_ids` int [rows, length]; `weights` [rows, length], above 0
            where a token of an answer follows.

    Returns:
        Of the chosen and of the rejected answer: log-probability, number of tokens, sum of the
        vocabulary's mean logits; then of the chosen one the sum of its right tokens, and the
        negative log-probability of prompt and answer with the number of their tokens.
    """

    def measures(logits, labels):
        losses, right = token_losses(logits, labels)
        return losses, right, jax.lax.stop_gradient(jnp.mean(logits, axis=-1))

    losses, right, mean_logits = outputs.map(measures, batch["labels"])
    segments = batch["segment_ids"]
    following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    counts = batch["weights"] > 0

    def total(values, where):
        return jnp.sum(jnp.where(where, values, 0.0), axis=-1)

    ones = jnp.ones_like(losses)
    columns = []
    for segment in (1, 2):
        answer = counts & (segments == segment)
        columns += [total(-losses, answer), total(ones, answer), total(mean_logits, answer)]
    chosen = (segments == 1) & (following == 1) & jnp.any(counts, axis=-1, keepdims=True)
    columns += [total(right, counts & (segments == 1)), total(losses, chosen), total(ones, chosen)]
    return jnp.stack(columns, axis=-1)


def pairs_of(sums: jax.Array, reference: jax.Array | None = None) -> Pairs:
    """What losses are functions of.

    Args:
        sums: float32 [rows, 9], as `pair_sums`.
        reference: float32 [rows, 2], the log-probabilities of chosen and rejected answers by the
            network before tuning; None where none is needed.
    """
    # Rows that only fill up have no tokens: not counted, and numbers all the same.
    tokens = jnp.maximum(sums, 1.0)
    chosen = Answers(sums[:, 0], tokens[:, 1], sums[:, 7] / tokens[:, 8])
    rejected = Answers(sums[:, 3], tokens[:, 4], jnp.zeros_like(sums[:, 3]))
    both = jnp.zeros_like(sums[:, :2]) if reference is None else reference
    return Pairs(chosen, rejected, (both[:, 0], both[:, 1]))


def sigmoid(pairs: Pairs, settings: Any) -> jax.Array:
    """DPO (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7)."""
    chosen, rejected = pairs.ratios
    return -jax.nn.log_sigmoid(settings.beta * (chosen - rejected))


def sigmoid_norm(pairs: Pairs, settings: Any) -> jax.Array:
    """DPO of the mean of an answer's tokens (Lambert et al. 2024, Tülu 3, 2411.15124)."""
    chosen, rejected = pairs.mean_ratios
    return -jax.nn.log_sigmoid(settings.beta * (chosen - rejected))


def ipo(pairs: Pairs, settings: Any) -> jax.Array:
    """IPO (Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17); `beta` is its tau.

    Of the mean of an answer's tokens, as its authors have it.
    """
    chosen, rejected = pairs.mean_ratios
    return jnp.square(chosen - rejected - 1 / (2 * settings.beta))


def robust(pairs: Pairs, settings: Any) -> jax.Array:
    """DPO where so many preferences are the wrong way round (Chowdhury et al. 2024, 2403.00409).

    In expectation the loss of clean preferences; it may be below 0.
    """
    chosen, rejected = pairs.ratios
    margin, share = settings.beta * (chosen - rejected), settings.label_smoothing
    right, wrong = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    return ((1 - share) * right - share * wrong) / (1 - 2 * share)


def apo_zero(pairs: Pairs, settings: Any) -> jax.Array:
    """The chosen one likelier, the rejected one less (D'Oosterlinck 2024, 2408.06266, eq. 7)."""
    chosen, rejected = pairs.ratios
    return jax.nn.sigmoid(-settings.beta * chosen) + jax.nn.sigmoid(settings.beta * rejected)


def orpo(pairs: Pairs, settings: Any) -> jax.Array:
    """Learns the chosen text, and its odds over the other's (Hong et al. 2024, 2403.07691, eq. 6).

    The loss of the text is that of prompt and answer, as the authors' code has it, and the mean of
    a text's tokens; their code takes the mean of a batch's.
    """
    chosen, rejected = pairs.chosen.mean_logps, pairs.rejected.mean_logps
    log_odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
    return pairs.chosen.nll - settings.beta * jax.nn.log_sigmoid(log_odds)


def simpo(pairs: Pairs, settings: Any) -> jax.Array:
    """A margin of the mean of an answer's tokens (Meng et al. 2024, 2405.14734, eq. 6)."""
    difference = pairs.chosen.mean_logps - pairs.rejected.mean_logps
    return -jax.nn.log_sigmoid(settings.beta * difference - settings.simpo_gamma)


def cpo(pairs: Pairs, settings: Any) -> jax.Array:
    """DPO without a reference, and the chosen answer (Xu et al. 2024, 2401.08417, eq. 3).

    The loss of the answer is the mean of its tokens; TRL takes the mean of a batch's.
    """
    difference = pairs.chosen.logps - pairs.rejected.logps
    preferred = -jax.nn.log_sigmoid(settings.beta * difference)
    return preferred - settings.cpo_alpha * pairs.chosen.mean_logps


def kto(ratios: jax.Array, desirable: jax.Array, divergence: jax.Array, settings: Any) -> jax.Array:
    """KTO (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 8).

    Args:
        ratios: how much likelier answers have become, in nats, float32 [rows].
        desirable: whether people liked them, bool [rows].
        divergence: scalar, how far the network has gone from its start: the mean ratio of answers
            to other prompts, at least 0. It has no gradient.
        settings: the `objective` part of the config: `beta`, `desirable_weight`,
            `undesirable_weight`.
    """
    margin = settings.beta * (ratios - jax.lax.stop_gradient(divergence))
    return jnp.where(
        desirable,
        settings.desirable_weight * jax.nn.sigmoid(-margin),
        settings.undesirable_weight * jax.nn.sigmoid(margin),
    )


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, without losing what is near 0 (Mächler 2012).

    An answer of probability 1 has no odds; it is taken for one a little less likely.
    """
    x = jnp.minimum(x, -1e-6)
    near = x > -math.log(2)
    # What is not chosen must not be NaN either: its gradient would be.
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))),
        jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
    )


def ratios(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """How much likelier answers have become, in nats (chosen, rejected)."""
    return pairs.ratios


def sums(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of answers (chosen, rejected)."""
    return pairs.chosen.logps, pairs.rejected.logps


def means(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """The same, of a token."""
    return pairs.chosen.mean_logps, pairs.rejected.mean_logps
