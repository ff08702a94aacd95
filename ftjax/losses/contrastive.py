"""Embeddings of texts, learned from which belong together."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def unit(embeddings: jax.Array) -> jax.Array:
    """Of length 1 over the last axis, float32; zeros stay zeros, with a gradient of zeros."""
    values = embeddings.astype(jnp.float32)
    squares = jnp.sum(values**2, axis=-1, keepdims=True)
    # The derivative of the root is infinite at 0, whatever it is multiplied by.
    return jnp.where(squares > 0, values * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def multiple_negatives(
    embeddings: jax.Array,
    text_ids: jax.Array,
    real: jax.Array,
    *,
    scale: float,
    labels: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Each anchor finds its positive among all candidates of the batch.

    (Henderson et al. 2017, https://arxiv.org/abs/1705.00652, section 4.4; as
    MultipleNegativesRankingLoss of sentence-transformers, with cosines.) A candidate that is the
    same text as the anchor or its positive, or of a row with the same label, is none.

    Args:
        embeddings: [rows, texts, hidden]: anchor, positive, perhaps negatives.
        text_ids: int [rows, texts], equal for equal texts.
        real: bool [rows], which rows count.
        scale: what cosines are multiplied by.
        labels: int [rows]; rows of one label are no negatives of each other.

    Returns:
        Loss in nats and whether the positive is nearest, float32 [rows].
    """
    vectors = unit(embeddings)
    rows, texts, hidden = vectors.shape
    candidates = vectors[:, 1:].reshape(rows * (texts - 1), hidden)
    scores = scale * jnp.matmul(vectors[:, 0], candidates.T, precision=jax.lax.Precision.HIGHEST)
    ids = text_ids[:, 1:].reshape(-1)
    row = jnp.repeat(jnp.arange(rows), texts - 1)
    own = jnp.arange(rows) * (texts - 1)
    is_own = jnp.arange(len(ids)) == own[:, None]
    same = (ids == text_ids[:, 1:2]) | (ids == text_ids[:, 0:1])
    if labels is not None:
        same |= (labels[row] == labels[:, None]) & (row != jnp.arange(rows)[:, None])
    counts = is_own | (~same & real[row])
    scores = jnp.where(counts, scores, -jnp.inf)
    positive = jnp.take_along_axis(scores, own[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(scores, axis=1) - positive
    return losses, (jnp.max(scores, axis=1) == positive).astype(jnp.float32)


def triplet(embeddings: jax.Array, *, margin: float) -> tuple[jax.Array, jax.Array]:
    """The anchor is nearer to its positive than to its negatives (Schroff et al. 2015, 1503.03832).

    As TripletLoss of sentence-transformers, with Euclidean distances.

    Args:
        embeddings: [rows, texts, hidden]: anchor, positive, negatives.
        margin: by how much.

    Returns:
        The mean loss over negatives, and whether the positive is nearest, float32 [rows].
    """
    values = embeddings.astype(jnp.float32)
    apart = jnp.sum((values[:, 1:] - values[:, :1]) ** 2, axis=-1)
    distances = jnp.where(apart > 0, jnp.sqrt(jnp.where(apart > 0, apart, 1.0)), 0.0)
    positive, negatives = distances[:, :1], distances[:, 1:]
    losses = jnp.mean(jax.nn.relu(positive - negatives + margin), axis=-1)
    return losses, jnp.all(positive < negatives, axis=-1).astype(jnp.float32)


def cosine_similarity(embeddings: jax.Array, labels: jax.Array) -> jax.Array:
    """Squared difference of each pair's cosine and what it should be.

    (Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084, section 3; as CosineSimilarityLoss
    of sentence-transformers.)

    Args:
        embeddings: [rows, 2, hidden].
        labels: float32 [rows], what the cosine should be.

    Returns:
        Losses, float32 [rows].
    """
    vectors = unit(embeddings)
    return (jnp.sum(vectors[:, 0] * vectors[:, 1], axis=-1) - labels) ** 2


def apart(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """How far two networks' embeddings of the same texts are apart, summed over rows.

    Half the squared distance of unit vectors, which is 1 less their cosine; of a row the mean.

    Args:
        first: [rows, texts, hidden].
        second: the same.
        weights: [rows], 0 for those that do not count.
    """
    squares = jnp.sum((unit(first) - unit(second)) ** 2, axis=-1)
    return 0.5 * jnp.sum(jnp.where(weights > 0, jnp.mean(squares, axis=-1), 0.0))


def cosent(embeddings: jax.Array, scores: jax.Array, real: jax.Array, *, scale: float) -> jax.Array:
    """Pairs in the order of their scores (Su 2022, https://kexue.fm/archives/8847, eq. 6).

    As CoSENTLoss of sentence-transformers.

    Args:
        embeddings: [rows, 2, hidden].
        scores: float32 [rows], how alike the texts of a row are.
        real: bool [rows], which rows count.
        scale: what cosines are multiplied by.

    Returns:
        The loss of the batch, a scalar.
    """
    vectors = unit(embeddings)
    cosines = scale * jnp.sum(vectors[:, 0] * vectors[:, 1], axis=-1)
    # Each pair that should be less alike, beside each that should be more.
    wrong = cosines[:, None] - cosines[None, :]
    counts = (scores[:, None] < scores[None, :]) & real[:, None] & real[None, :]
    terms = jnp.where(counts, wrong, -jnp.inf).reshape(-1)
    return jax.nn.logsumexp(jnp.append(terms, 0.0))


def sampled_softmax(
    users: jax.Array,
    items: jax.Array,
    item_ids: jax.Array,
    known_ids: jax.Array,
    real: jax.Array,
    log_shares: jax.Array,
    *,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Each user finds what they liked next among what others of the batch liked next.

    (Yi et al. 2019, Sampling-Bias-Corrected Neural Modeling, eq. 3 to 5.) Popular items are sampled
    more often: the logarithm of an item's share is taken from its score (logQ), so that scores come
    to stand for the softmax over the whole catalogue. What a user is known to like, and what they
    liked next as well, is no negative (accidental hits).

    Args:
        users: [rows, hidden].
        items: [rows, texts, hidden], what each liked next.
        item_ids: int [rows, texts], their numbers.
        known_ids: int [rows, liked], what is known of each user; negative for nothing.
        real: bool [rows, texts], which of them count.
        log_shares: float32 [rows, texts], logarithms of their shares of all that is learned.
        scale: what cosines are multiplied by.

    Returns:
        Loss in nats and whether the item is nearest, float32 [rows, texts].
    """
    rows, texts, hidden = items.shape
    candidates = unit(items).reshape(rows * texts, hidden)
    scores = scale * jnp.matmul(unit(users), candidates.T, precision=jax.lax.Precision.HIGHEST)
    ids, counts = item_ids.reshape(-1), real.reshape(-1)
    scores -= jnp.where(counts, log_shares.reshape(-1), 0.0)
    known = jnp.concatenate([known_ids, jnp.where(real, item_ids, -1)], axis=1)
    hits = jnp.any(ids == known[:, :, None], axis=1)
    negatives = jnp.where(counts & ~hits, scores, -jnp.inf)
    # Finite, so that a batch without negatives has a loss and a gradient of 0.
    others = jnp.logaddexp(jax.nn.logsumexp(negatives, axis=1, keepdims=True), -1e30)
    own = jnp.arange(rows * texts).reshape(rows, texts)
    positive = jnp.take_along_axis(scores, own, axis=1)
    nearest = jnp.max(negatives, axis=1, keepdims=True) <= positive
    return jax.nn.softplus(others - positive), nearest.astype(jnp.float32)


def shortened(embeddings: jax.Array, dims: Sequence[int]) -> list[jax.Array]:
    """The first so many numbers of each (Kusupati et al. 2022, Matryoshka, 2205.13147)."""
    return [embeddings[..., :width] for width in dims] or [embeddings]
