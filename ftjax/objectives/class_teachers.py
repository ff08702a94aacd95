"""Teachers of classes, which may read texts with a tokenizer of their own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.data.examples import text_examples
from ftjax.data.labels import in_order_of, some_names
from ftjax.data.sources import Records
from ftjax.data.tokenizer import load_tokenizer
from ftjax.evaluation.measurement import Measurement
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import distillation
from ftjax.losses.forward import Forward
from ftjax.losses.sums import weighted_sum
from ftjax.models.heads import TextClassifier
from ftjax.models.layers import Compute, Network, linear
from ftjax.objectives.base import LossSums
from ftjax.objectives.teachers import Teacher, teacher_field, teacher_folder
from ftjax.pretrained.checkpoint import read_config
from ftjax.pretrained.classifier import load_classifier, published_classes
from ftjax.randomness import run_key

CLASS_TEACHER: Fields = teacher_field(
    {
        "teacher.features": Field(
            0.0,
            "Weight of how far the network's vector of a text is from the teacher's, through a new "
            "layer of its own.",
            minimum=0.0,
        )
    }
)


def class_teacher(objective: Any) -> Teacher | None:
    """The teacher of an objective's config, if it has one.

    Raises:
        ValueError: it sorts texts into other classes, or into none.
    """
    config, classes = objective.config, objective.classes
    if (folder := teacher_folder(config)) is None:
        return None
    theirs = published_classes(folder)
    order = None if theirs is None else in_order_of(classes, theirs)
    if order is None or sorted(order) != sorted(classes):
        found = "has no head of its own" if theirs is None else f"knows {some_names(list(theirs))}"
        raise ValueError(
            f"config.teacher.reference = {config.teacher.reference!r} {found}, and the data have "
            f"the classes {some_names(classes)}. Tune a teacher on the same classes, and export it "
            "(scripts/export.py)."
        )
    places = np.asarray([order.index(name) for name in classes])
    pairs = config.data.second_text_field is not None
    names: list[str] = ["text", "second_text"][: 1 + pairs]
    rows = [dict(zip(names, texts, strict=True)) for texts in objective.texts["train"]]
    examples = text_examples(
        Records("train", rows),
        load_tokenizer(folder),
        config.data.buckets,
        second_text_field="second_text" if pairs else None,
    )

    def load() -> Network:
        dtype = jnp.dtype(config.model.dtype)
        return load_classifier(folder, Compute(dtype=dtype, param_dtype=dtype))

    def outputs(network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Logits in our order and features, float32 [rows, classes + hidden]."""
        features = network.features(batch)
        logits = network({**batch, "features": features})[:, places]
        return jnp.concatenate([logits, features.astype(jnp.float32)], axis=-1)

    return Teacher(load, Measurement({"train": examples}, outputs, lambda found: found))


def facts_of_teacher(config: Settings) -> dict[str, int]:
    """How wide the features are that are learned from a teacher, if they are."""
    folder = teacher_folder(config)
    if folder is None or not config.teacher.features > 0:
        return {}
    return {"teacher_width": int(read_config(folder)["hidden_size"])}


def with_projection(network: Network, width: int | None, seed: int) -> Network:
    """The network with a new layer from its features to so many; as it is for None.

    Raises:
        ValueError: it has a published head, beside which there is no room for one.
    """
    if width is None:
        return network
    if not isinstance(network, TextClassifier):
        raise ValueError(
            "config.teacher.features learns through a layer beside a new head; set "
            "config.model.head to 'new', or teacher.features to 0."
        )
    network.projection = linear(
        network.backbone.config.hidden_size,
        width,
        network.backbone.compute,
        rngs=nnx.Rngs(params=run_key(seed, "projection")),
    )
    return network


def with_kept_logits(objective: Any, found: np.ndarray) -> Any:
    """The same objective, with what `class_teacher` measured beside its labels."""
    count, examples = len(objective.classes), objective.examples["train"]
    columns = {"teacher_logits": found[:, :count]}
    if objective.config.teacher.features > 0:
        columns["teacher_features"] = found[:, count:]
    examples = dataclasses.replace(examples, columns={**examples.columns, **columns})
    return objective.with_examples({**objective.examples, "train": examples})


def with_class_teacher(
    config: Settings, forward: Forward, sums: LossSums, weights: jax.Array
) -> LossSums:
    """The loss of the data and the teacher's, in their shares; without a teacher the first.

    Args:
        config: the objective's.
        forward: the pass.
        sums: the loss of the data.
        weights: float32 [rows], of each row in it.
    """
    if "teacher_logits" not in forward.batch:
        return sums
    settings, (total, weight, metrics) = config.teacher, sums
    apart = distillation.of_classes(
        forward.outputs,
        forward.batch["teacher_logits"],
        temperature=settings.temperature,
        beta=settings.beta,
    )
    apart = weighted_sum(apart, weights)
    total = (1 - settings.alpha) * total + settings.alpha * apart
    metrics = {**metrics, "teacher_divergence": (apart, weight)}
    if settings.features > 0:
        projected = forward.tuned.projected(forward.batch, forward.key)
        distances = distillation.of_features(projected, forward.batch["teacher_features"])
        far = weighted_sum(distances, weights)
        total += settings.features * far
        metrics["teacher_feature_distance"] = (far, weight)
    return total, weight, metrics
