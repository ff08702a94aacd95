"""Teachers of the next token: what causal_lm and sft share."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.examples import WithTokenColumns
from ftjax.data.tokenizer import load_tokenizer
from ftjax.evaluation.measurement import Measurement
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import distillation
from ftjax.losses.forward import Forward
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Compute, Network
from ftjax.objectives.base import LossSums, Objective
from ftjax.objectives.teachers import (
    Teacher,
    refuse_other_tokens,
    teacher_field,
    teacher_folder,
)
from ftjax.pretrained.load import load_model

TOKEN_TEACHER: Fields = teacher_field(
    {
        "teacher.top_k": Field(
            32, "Tokens of each of the teacher's predictions that are kept.", minimum=1
        )
    }
)


def token_teacher(objective: Objective) -> Teacher | None:
    """The teacher of an objective's config, if it has one.

    Raises:
        ValueError: it has another tokenizer.
    """
    config = objective.config
    if (folder := teacher_folder(config)) is None:
        return None
    theirs = load_tokenizer(folder)
    refuse_other_tokens(objective.tokenizer, theirs, config.teacher.reference)
    examples, rows = objective.examples["train"], int(objective.tokenizer.table_rows)
    longest = int(examples.buckets[-1])
    count = min(config.teacher.top_k, rows)

    def load() -> Network:
        dtype = jnp.dtype(config.model.dtype)
        network = load_model(folder, "causal_lm", Compute(dtype=dtype, param_dtype=dtype))
        return LanguageModel(network, config.model.logits_at_once)

    def outputs(network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Ids and log-probabilities, float32 [rows, longest, 2, count], which holds every id."""
        found = network(batch)

        def kept(logits):
            # Of a table that is larger, the rows without a token.
            ids, logps = distillation.likeliest(
                logits[..., :rows], config.teacher.temperature, count
            )
            return jnp.stack([ids.astype(jnp.float32), logps], axis=2)

        kept_rows = found.map(kept)
        room = longest - kept_rows.shape[1]
        return jnp.pad(kept_rows, ((0, 0), (0, room), (0, 0), (0, 0)))

    return Teacher(load, Measurement({"train": examples}, outputs, lambda found: found))


def with_kept_tokens(objective: Any, found: np.ndarray) -> Any:
    """The same objective, with what `token_teacher` measured beside its tokens."""
    columns = {
        "teacher_ids": found[:, :, 0].astype(np.int32),
        "teacher_logps": found[:, :, 1].astype(np.float32),
    }
    examples = WithTokenColumns(objective.examples["train"], columns)
    return objective.with_examples({**objective.examples, "train": examples})


def with_token_teacher(config: Settings, forward: Forward, sums: LossSums) -> LossSums:
    """The loss of the data and the teacher's, in their shares; without a teacher the first."""
    if "teacher_ids" not in forward.batch:
        return sums
    settings, (total, weight, metrics) = config.teacher, sums
    apart = distillation.of_tokens(
        forward.outputs, forward.batch, temperature=settings.temperature, beta=settings.beta
    )
    total = (1 - settings.alpha) * total + settings.alpha * apart
    return total, weight, {**metrics, "teacher_divergence": (apart, weight)}
