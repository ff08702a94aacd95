"""Sampled softmax, written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.losses.contrastive import sampled_softmax

NONE = -1


def written_out(users, items, ids, known, shares, scale):
    """Yi et al. 2019, eq. 3 to 5, one like at a time."""
    users, items = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (users, items))
    rows, texts = ids.shape
    places = [(r, t) for r in range(rows) for t in range(texts) if ids[r, t] != NONE]
    losses, right = np.zeros((rows, texts)), np.zeros((rows, texts))
    for row, text in places:
        liked = {*known[row].tolist(), *ids[row].tolist()}
        score = {
            place: scale * users[row] @ items[place] - np.log(shares[place])
            for place in places
            if place == (row, text) or ids[place] not in liked
        }
        own = score[row, text]
        losses[row, text] = np.log(sum(np.exp(s - own) for s in score.values()))
        right[row, text] = own >= max(score.values())
    return losses, right


@pytest.fixture
def batch():
    random = np.random.default_rng(3)
    # The item 4 came next for two users, who do not push it away from each other; 6 is known.
    ids = np.array([[4, 2, 7], [4, 5, NONE], [6, NONE, NONE], [1, 0, 3]], np.int32)
    known = np.array([[6, NONE], [1, 2], [0, NONE], [4, NONE]], np.int32)
    return {
        "users": random.normal(size=(4, 5)).astype(np.float32),
        "items": random.normal(size=(4, 3, 5)).astype(np.float32),
        "ids": ids,
        "known": known,
        "shares": random.uniform(0.01, 0.5, ids.shape),
    }


def ours(users, items, ids, known, shares, scale=3.0):
    return sampled_softmax(
        jnp.asarray(users),
        jnp.asarray(items),
        jnp.asarray(ids),
        jnp.asarray(known),
        jnp.asarray(ids != NONE),
        jnp.asarray(np.log(shares), jnp.float32),
        scale=scale,
    )


def test_each_like_is_written_out(batch):
    losses, right = ours(**batch)
    expected, nearest = written_out(**batch, scale=3.0)
    real = batch["ids"] != NONE
    np.testing.assert_allclose(np.asarray(losses)[real], expected[real], rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(right)[real], nearest[real])


def test_gradients_are_differences(batch):
    real = batch["ids"] != NONE

    def total(users, items):
        losses, _ = ours(**batch | {"users": users, "items": items})
        return jnp.sum(jnp.where(real, losses, 0.0))

    gradients = jax.grad(total, argnums=(0, 1))(batch["users"], batch["items"])
    random = np.random.default_rng(0)
    step = 1e-5
    directions = [random.normal(size=batch[name].shape) for name in ("users", "items")]
    ends = []
    for sign in (1, -1):
        moved = [
            batch[name].astype(np.float64) + sign * step * by
            for name, by in zip(("users", "items"), directions, strict=True)
        ]
        users, items = moved
        losses, _ = written_out(**batch | {"users": users, "items": items}, scale=3.0)
        ends.append(losses[real].sum())
    expected = (ends[0] - ends[1]) / (2 * step)
    found = sum(float(np.sum(g * by)) for g, by in zip(gradients, directions, strict=True))
    assert found == pytest.approx(expected, rel=1e-4)


def test_logq_makes_a_sample_stand_for_the_catalogue():
    """Items sampled by their popularity, corrected, give the softmax over all items on average."""
    random = np.random.default_rng(0)
    catalogue = random.normal(size=(6, 4)).astype(np.float32)
    user = random.normal(size=(1, 4)).astype(np.float32)
    shares = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (user, catalogue)]
    scores = np.exp(2.0 * (unit[0] @ unit[1].T)[0])
    # Of rows beside the user's own, whose item is the first: only they are negatives.
    count = 4000
    drawn = random.choice(6, size=count, p=shares)
    others = drawn[drawn != 0]
    ids = np.concatenate([[0], others]).astype(np.int32)[:, None]
    users = np.concatenate([user, np.zeros((len(others), 4), np.float32)])
    none = np.full((len(ids), 1), NONE, np.int32)
    losses, _ = ours(users, catalogue[ids], ids, none, shares[ids], scale=2.0)
    sampled = np.exp(float(losses[0, 0])) - 1
    # The sum over samples is `count` times that over the catalogue without the own item; its own
    # score is divided by its share as well.
    expected = count * scores[1:].sum() / (scores[0] / shares[0])
    assert sampled == pytest.approx(expected, rel=0.05)


def test_nothing_to_tell_from():
    """One row, or rows whose likes are all known, teach nothing, without a NaN."""
    ids, known = np.array([[1, 2]], np.int32), np.array([[3]], np.int32)
    users, items = np.ones((1, 4), np.float32), np.ones((1, 2, 4), np.float32)

    def total(users, items):
        return jnp.sum(ours(users, items, ids, known, np.full((1, 2), 0.5))[0])

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(users, items)
    assert value == 0
    assert all(not np.any(gradient) for gradient in gradients)
