"""Finding the first and the last token of an answer (Devlin et al. 2019, section 4.2)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from ftjax.losses.divergence import divergence as kl
from ftjax.losses.sums import weighted_sum
from ftjax.models.token_tagger import LOWEST


def loss(
    logits: jax.Array, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Cross-entropy of the two positions, their mean, as a sum and the weight to divide it by.

    (As transformers' `ForQuestionAnsweringLoss`, but that padding is no position.)

    Args:
        logits: float [batch, length, 2], `LOWEST` where a row is padded.
        batch: `start_positions` and `end_positions` int [batch], and `weights` float [batch], 0 for
            rows that only pad the batch.

    Returns:
        The sum of losses in nats, the sum of weights, and the sum and weight of `accuracy`, the
        share of rows with both positions right.
    """
    rows = batch["weights"].astype(jnp.float32)
    weight = jnp.sum(rows)
    # Also backwards, nothing of a row that does not count.
    logits = jnp.where(rows[:, None, None] != 0, logits, 0.0)
    places = jnp.stack([batch["start_positions"], batch["end_positions"]], axis=-1)
    right = jnp.all(jnp.argmax(logits, axis=1) == places, axis=-1).astype(jnp.float32)
    accuracy = (weighted_sum(right, rows), weight)
    return weighted_sum(row_losses(logits, batch), rows), weight, {"accuracy": accuracy}


def row_losses(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The loss of each row, float32 [batch]; arguments as of `loss`."""
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(
            logits[..., side].astype(jnp.float32), batch[name]
        )
        for side, name in enumerate(("start_positions", "end_positions"))
    ]
    return (losses[0] + losses[1]) / 2


def divergence(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of KL(first || second) in nats, the mean of both positions, a float32 scalar.

    Args:
        first: logits [batch, length, 2].
        second: the same.
        weights: [batch].
    """
    starts, ends = (kl(first[..., side], second[..., side], weights) for side in range(2))
    return (starts + ends) / 2


def best_spans(
    logits: jax.Array, batch: Mapping[str, jax.Array], *, n_best: int, most: int
) -> jax.Array:
    """The likeliest spans of each row's context.

    Of the `n_best` likeliest first tokens and as many last ones, the pairs in the band 0 <= last -
    first < most, both in the context; a score is the sum of their logits. (The search of
    transformers' run_qa, `postprocess_qa_predictions`; without padding, its very spans.)

    Args:
        logits: as of `loss`.
        batch: `context_start` and `context_end` int [batch], the context's first and last position.
        n_best: how many spans.
        most: tokens of a span.

    Returns:
        float32 [batch, n_best, 3]: first position, last position and score, the best first; -1, -1
        and 0 where there is none.
    """
    room = min(n_best, logits.shape[1])
    first_scores, first = jax.lax.top_k(logits[..., 0].astype(jnp.float32), room)
    last_scores, last = jax.lax.top_k(logits[..., 1].astype(jnp.float32), room)

    def in_context(positions: jax.Array) -> jax.Array:
        start, end = (batch[name][:, None] for name in ("context_start", "context_end"))
        return (positions >= start) & (positions <= end)

    distance = last[:, None, :] - first[:, :, None]
    band = (distance >= 0) & (distance < most)
    allowed = band & in_context(first)[:, :, None] & in_context(last)[:, None, :]
    scores = jnp.where(allowed, first_scores[:, :, None] + last_scores[:, None, :], 2 * LOWEST)
    kept = min(n_best, room**2)
    scores, at = jax.lax.top_k(scores.reshape(len(scores), -1), kept)
    firsts, lasts = at // room, at % room
    found = jnp.stack(
        [
            jnp.take_along_axis(first, firsts, axis=1).astype(jnp.float32),
            jnp.take_along_axis(last, lasts, axis=1).astype(jnp.float32),
            scores,
        ],
        axis=-1,
    )
    nothing = jnp.asarray([-1.0, -1.0, 0.0])
    found = jnp.where((scores > LOWEST)[..., None], found, nothing)
    missing = jnp.broadcast_to(nothing, (len(found), n_best - kept, 3))
    return jnp.concatenate([found, missing], axis=1)


def null_scores(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The sum of both logits of the null answer, float32 [batch].

    Args:
        logits: as of `loss`.
        batch: `null_positions` int [batch].
    """
    both = jnp.take_along_axis(logits, batch["null_positions"][:, None, None], axis=1)
    return jnp.sum(both[:, 0].astype(jnp.float32), axis=-1)
