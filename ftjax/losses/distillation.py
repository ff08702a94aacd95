"""How far a network's predictions are from a teacher's, softened by a temperature.

(Hinton et al. 2015, Distilling the Knowledge in a Neural Network, 1503.02531, section 2: what is
compared is multiplied by the temperature's square, so that gradients keep their size.)
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ftjax.losses.contrastive import unit
from ftjax.losses.sums import weighted_sum
from ftjax.models.heads import TokenOutputs

# Of a logarithm: its exponential is 0, and 0 times it is 0, and no NaN as of -inf.
LEAST = -1e4
# Of the probability that is not kept, at least; so that its logarithm is a number.
LEAST_REST = 1e-7


def generalised_jsd(teacher: jax.Array, student: jax.Array, beta: float) -> jax.Array:
    """Of log-probabilities [..., classes], in nats, [...].

    (Agarwal et al. 2024, On-Policy Distillation of Language Models, 2306.13649, eq. 1, with trl's
    ends.) With beta 0 it is KL(teacher || student), with 1 KL(student || teacher); between, the
    divergence of both from their mixture, of which the teacher has the share beta.

    Args:
        teacher: may be -inf.
        student: of the same shape.
        beta: from 0 to 1.
    """
    teacher, student = (jnp.maximum(logs, LEAST) for logs in (teacher, student))
    if beta == 0.0:
        return _kl(teacher, student)
    if beta == 1.0:
        return _kl(student, teacher)
    mixture = jnp.logaddexp(teacher + jnp.log(beta), student + jnp.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(first: jax.Array, second: jax.Array) -> jax.Array:
    """KL(first || second)."""
    return jnp.sum(jnp.exp(first) * (first - second), axis=-1)


def of_classes(
    logits: jax.Array, teacher: jax.Array, *, temperature: float, beta: float
) -> jax.Array:
    """The divergence of each row, float32 [rows], times the temperature's square.

    Args:
        logits: [rows, classes].
        teacher: the teacher's logits, [rows, classes].
        temperature: both are divided by it.
        beta: as of `generalised_jsd`.
    """
    theirs, ours = (
        jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (teacher, logits)
    )
    return temperature**2 * generalised_jsd(theirs, ours, beta)


def of_features(features: jax.Array, teacher: jax.Array) -> jax.Array:
    """1 less the cosine of each row, float32 [rows].

    (Sanh et al. 2019, DistilBERT, 1910.01108, section 3, whose third term this is; of another width
    through a layer of its own, as in FitNets, Romero et al. 2015, 1412.6550.)

    Args:
        features: [rows, hidden], projected to the teacher's width.
        teacher: [rows, hidden].
    """
    return 1.0 - jnp.sum(unit(features) * unit(teacher), axis=-1)


def likeliest(logits: jax.Array, temperature: float, count: int) -> tuple[jax.Array, jax.Array]:
    """What is kept of a teacher's predictions.

    Args:
        logits: [rows, length, vocabulary].
        temperature: logits are divided by it.
        count: how many tokens.

    Returns:
        Ids int32 and log-probabilities float32, both [rows, length, count].
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    logs, ids = jax.lax.top_k(logs, count)
    return ids.astype(jnp.int32), logs


def of_tokens(
    outputs: TokenOutputs, batch: Mapping[str, jax.Array], *, temperature: float, beta: float
) -> jax.Array:
    """Weighted sum of the divergences of all tokens, times the temperature's square; a scalar.

    All tokens that are not among the kept ones are one more class, with what is left of the
    probability.

    Args:
        outputs: of rows of tokens.
        batch: `weights` [rows, length], and of the teacher, as of `likeliest`, `teacher_ids` and
            `teacher_logps` [rows, length, count].
        temperature: the one that was kept with.
        beta: as of `generalised_jsd`.
    """

    def divergence(logits, ids, teacher):
        logs = jax.nn.log_softmax(logits / temperature)
        student = jnp.take_along_axis(logs, ids, axis=-1)
        if ids.shape[-1] < logits.shape[-1]:
            teacher, student = with_rest(teacher), with_rest(student)
        return generalised_jsd(teacher, student, beta)

    counts = batch["weights"] > 0
    ids = jnp.where(counts[..., None], batch["teacher_ids"], 0)
    teacher = jnp.where(counts[..., None], batch["teacher_logps"], 0.0)
    found = outputs.map(divergence, ids, teacher)
    return temperature**2 * jnp.sum(weighted_sum(found, batch["weights"].astype(jnp.float32)))


def with_rest(logps: jax.Array) -> jax.Array:
    """Log-probabilities [..., count] and one more, of all that they leave."""
    rest = jnp.maximum(1.0 - jnp.sum(jnp.exp(logps), axis=-1, keepdims=True), LEAST_REST)
    return jnp.concatenate([logps, jnp.log(rest)], axis=-1)
