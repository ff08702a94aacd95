"""Sorting images into classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.examples import Examples
from ftjax.data.images import ImageExamples, Processor, load_processor, pixels_of
from ftjax.data.labels import describe_labels, encode_labels, in_order_of, some_names
from ftjax.data.sources import Records
from ftjax.data.sources.splitting import drawn
from ftjax.evaluation import baselines
from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.evaluation.metrics import (
    CLASS_METRICS,
    classification_metrics,
    label_intervals,
    label_metrics,
    top_k_hits,
)
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import augmentation, classes
from ftjax.losses.forward import Forward
from ftjax.models import family_of
from ftjax.models.image_classifier import ImageClassifier
from ftjax.models.layers import Network
from ftjax.objectives.base import LossSums, Objective, Say
from ftjax.objectives.fields import metric_field
from ftjax.objectives.predicted_classes import details_of, lines_of, marks_of, predicted_classes
from ftjax.pretrained.checkpoint import Checkpoint, read_config
from ftjax.pretrained.new_head import HeadedCheckpoint, with_classes
from ftjax.randomness import run_key

NETWORK = "image_classification"
DEPTH = 5


class ImageClassification(Objective):
    """Sorts images into classes by softmax cross-entropy; see `Objective`."""

    metrics: ClassVar = {**CLASS_METRICS, "top_5_accuracy": "higher"}
    has_new_head = True
    gives_labels = True
    fields: ClassVar[Fields] = {
        "data.image_field": Field(
            "image", "Column with the image: a path beside the data, bytes, or numbers to 255."
        ),
        "data.label_field": Field("label", "Column with the label."),
        "data.image_size": Field(
            None,
            "Pixels of a side, in the place of what the checkpoint's processor says.",
            optional=int,
            minimum=8,
        ),
        "data.image_processor": Field(
            None, "A preprocessor_config.json in the place of the checkpoint's.", optional=str
        ),
        "objective.label_smoothing": Field(
            0.0, "Share of the target spread over classes.", minimum=0.0, below=1.0
        ),
        "augmentation.random_resized_crop": Field(
            None,
            "Learn from a random part of each image, of this share of its area at least.",
            optional=float,
            above=0.0,
            below=1.0,
        ),
        "augmentation.horizontal_flip": Field(False, "Mirror half of the images."),
        "augmentation.mixup": Field(
            0.0, "Mix each image with another; the larger, the more evenly.", minimum=0.0
        ),
        "augmentation.cutmix": Field(
            0.0, "Put a rectangle of another image into each; the larger, the larger.", minimum=0.0
        ),
        "tuning.head_epochs": Field(
            0,
            "Epochs for the new head alone, on cached features, before the rest (LP-FT).",
            minimum=0,
        ),
        "tuning.embedding_rows": None,
        "optimizer.head_learning_rate_factor": Field(
            1.0, "The new head's learning rate, relative to the rest.", above=0.0, maximum=1e4
        ),
        "model.grow_table": None,
        "penalties.replay": None,
        "evaluation.baselines": Field(
            True, "Also score majority, nearest neighbours and a linear head on the frozen network."
        ),
        **metric_field(metrics, "accuracy"),
    }

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self.labels: dict[str, np.ndarray] = {}
        self._processor: Processor = load_processor(
            folder, config.data.image_processor, config.data.image_size
        )
        self._positive = 0

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of the logits."""
        return self.facts["classes"]

    @property
    def rows_meet(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where images are mixed."""
        return self.config.augmentation.mixup > 0 or self.config.augmentation.cutmix > 0

    @property
    def keeps_features(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of images that are always the same."""
        changes = self.config.augmentation
        return not (self.rows_meet or changes.horizontal_flip or changes.random_resized_crop)

    @property
    def network_name(self) -> str:
        """The family's own classifier.

        Raises:
            ValueError: the family sees no images.
        """
        family = family_of(read_config(self.folder).get("model_type", ""))
        if NETWORK not in family.networks:
            raise ValueError(
                f"{self.config.model.reference}: the family {family.model_type} sorts no images; "
                "choose a network that sees them, such as a DINOv2, a ViT, a CLIP or a SigLIP."
            )
        return NETWORK

    def read_split(self, split: str) -> ImageExamples:
        """Images with labels."""
        data = self.config.data
        records = self.load(split, {"image": data.image_field, "label": data.label_field})
        if split == "train":
            _, found = encode_labels(records)
            self.facts["classes"] = self._in_order_of_head(found)
        labels, _ = encode_labels(records, classes=self.classes)
        self.labels[split] = labels
        if split == "train":
            self._positive = int(np.bincount(labels, minlength=len(self.classes)).argmin())
        examples = self._examples(records, {"labels": labels})
        height, width = examples.pixels.shape[1:3]
        told = describe_labels(labels, self.classes)
        self.notes.append(f"{split}: {len(records):,} images of {height} x {width} pixels ({told})")
        return examples

    def _examples(self, records: Records, columns: Mapping[str, np.ndarray]) -> ImageExamples:
        source = Path(self.config.data.source.replace("{split}", "")).expanduser()
        beside = source if source.is_dir() else source.parent
        folder = beside if beside.is_dir() else Path()
        pixels = pixels_of(records, self._processor, folder)
        return ImageExamples(pixels, records.fingerprint, dict(columns))

    def _in_order_of_head(self, found: list[str]) -> list[str]:
        """The classes of the training split, in the order of the checkpoint's head."""
        names = read_config(self.folder).get("id2label") or {}
        published = [str(names[key]) for key in sorted(names, key=int)]
        ordered = in_order_of(found, published) if published else None
        if ordered is None or len(ordered) != len(found):
            return found
        self.notes.append(f"The checkpoint's own head is kept, for {some_names(ordered)}.")
        return ordered

    def checkpoint(self, say: Say) -> Path | Checkpoint:
        """The folder, with what of the head is not there newly initialised."""
        checkpoint = HeadedCheckpoint(
            self.folder,
            self.network_name,
            self.classes,
            run_key(self.config.seed, "head"),
            accept_fields=tuple(self.config.model.accept_fields),
        )
        if checkpoint.new:
            say(f"{self.folder}: of the head, {some_names(list(checkpoint.new))} begin at random.")
        return checkpoint

    def exported_fields(self) -> dict[str, Any]:
        """The checkpoint's, with the names of the classes."""
        return with_classes(read_config(self.folder), self.classes)

    def network(self, backbone: Network) -> ImageClassifier:
        """The family's classifier behind what its processor does to bytes."""
        made = self._processor
        return ImageClassifier(backbone, made.scale, made.mean, made.deviation)

    def augmented(self, batch: Mapping[str, jax.Array], key: jax.Array) -> Mapping[str, jax.Array]:
        """Cropped, mirrored and mixed, as the config says."""
        changes = self.config.augmentation
        if self.keeps_features:
            return batch
        pixels = batch["pixel_values"].astype(jnp.float32)
        of_rows = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["example_ids"])
        keys = jax.vmap(lambda key: jax.random.split(key, 6))(of_rows)
        if changes.random_resized_crop is not None:
            pixels = augmentation.random_resized_crop(
                pixels, keys[:, 0], changes.random_resized_crop
            )
        if changes.horizontal_flip:
            pixels = augmentation.horizontal_flip(pixels, keys[:, 1])
        if not self.rows_meet:
            return {**batch, "pixel_values": pixels}
        return {**batch, **self._mixed(batch, pixels, keys[:, 2:])}

    def _mixed(
        self, batch: Mapping[str, jax.Array], pixels: jax.Array, keys: jax.Array
    ) -> dict[str, jax.Array]:
        """Each row with another one that counts; where both ways are wanted, one of them."""
        changes = self.config.augmentation
        chances = jnp.log((batch["weights"] > 0).astype(jnp.float32))
        partner = jax.vmap(jax.random.categorical, (0, None))(keys[:, 0], chances)
        others = pixels[partner]
        first = jnp.full(len(pixels), changes.mixup > 0)
        if changes.mixup > 0 and changes.cutmix > 0:
            first = jax.vmap(jax.random.bernoulli)(keys[:, 1])

        def shares(alpha: float) -> jax.Array:
            draw = jax.vmap(lambda key: jax.random.beta(key, alpha or 1.0, alpha or 1.0))
            return draw(keys[:, 2])

        of_mixup = shares(changes.mixup)
        cut, left = augmentation.cutmix(pixels, others, shares(changes.cutmix), keys[:, 3])
        mixed = augmentation.mixup(pixels, others, of_mixup)
        return {
            "pixel_values": jnp.where(first[:, None, None, None], mixed, cut),
            "other_labels": batch["labels"][partner],
            "label_shares": jnp.where(first, of_mixup, left),
        }

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy; of mixed images that of both labels, by their shares."""
        batch, smoothing = forward.batch, self.config.objective.label_smoothing
        whole = classes.loss(forward.outputs, batch, label_smoothing=smoothing)
        if "other_labels" not in batch:
            return whole
        total = jnp.zeros(())
        for labels, shares in (
            (batch["labels"], batch["label_shares"]),
            (batch["other_labels"], 1 - batch["label_shares"]),
        ):
            weights = jnp.where(batch["weights"] > 0, batch["weights"] * shares, 0.0)
            part = {**batch, "labels": labels, "weights": weights}
            total += classes.loss(forward.outputs, part, label_smoothing=smoothing)[0]
        return total, whole[1], whole[2]

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Logits, [rows, classes]."""
        return network(batch)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `classification_metrics`; and how often the label is among the likeliest five."""
        found = classification_metrics(self.labels[split], outputs, self._positive)
        hits = top_k_hits(self.labels[split], outputs, DEPTH)
        return {**found, "top_5_accuracy": float(hits.mean())}

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Over the test images."""
        labels, found = self.labels["test"], outputs["test"]
        top = interval_of_mean(top_k_hits(labels, found, DEPTH).astype(np.float64))
        return {
            **label_intervals(labels, found.argmax(-1), len(self.classes)),
            "top_5_accuracy": top,
        }

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Scores of each class, and the confusion matrix."""
        return details_of(self.labels["test"], outputs["test"], self.classes)

    def with_rows(self, rows: Mapping[str, np.ndarray]):
        """The same with some of its examples only."""
        other = super().with_rows(rows)
        other.labels = {name: labels[rows[name]] for name, labels in self.labels.items()}
        return other

    def baseline_rows(self) -> dict[str, np.ndarray]:
        """Drawn with each class in its share."""
        found = super().baseline_rows()
        return {name: drawn(self.labels[name], len(rows), 0) for name, rows in found.items()}

    @property
    def wants_features(self) -> bool:
        """For the frozen network's neighbours and its linear head."""
        return self.config.evaluation.baselines

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """Majority, and of the frozen network the nearest neighbours and a linear head."""
        if not self.config.evaluation.baselines:
            return {}
        train, validation, test = (self.labels[n] for n in ("train", "validation", "test"))
        learned = features["train"], train
        predictions = {
            "majority": baselines.majority(train, len(test)),
            "frozen_knn": baselines.nearest_neighbours(
                learned, features["test"], len(self.classes)
            ),
            "frozen_linear_head": baselines.linear_head(
                learned, (features["validation"], validation), features["test"]
            ),
        }
        return {
            name: label_metrics(test, found, len(self.classes), self._positive)
            for name, found in predictions.items()
        }

    @property
    def prediction_fields(self) -> dict[str, str]:
        """The image."""
        return {"image": self.config.data.image_field}

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Images as they are; a text is the path of one."""
        rows = [{"image": record.get("image", record.get("text"))} for record in records]
        pixels = pixels_of(Records("images", rows), self._processor, Path())
        return ImageExamples(pixels, "")

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`label`, and `probabilities` by class, the likeliest first."""
        return predicted_classes(outputs, self.classes)

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """The probabilities."""
        return lines_of(prediction)

    def marks(self, prediction: Mapping[str, Any]) -> dict[str, float]:
        """The one."""
        return marks_of(prediction)
