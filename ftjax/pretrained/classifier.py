"""Classifiers of texts as others load them: the family's own form, or sentence-transformers'."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from ftjax.files import new_folder, read_json, write_json_atomically
from ftjax.models import family_of
from ftjax.models.encoder_heads import PooledClassifier, SequenceClassifier
from ftjax.models.family import Family
from ftjax.models.heads import PublishedClassifier, TextClassifier
from ftjax.models.layers import Compute
from ftjax.pretrained.checkpoint import Checkpoint, read_config
from ftjax.pretrained.compare import Outputs, outputs_on_example, refuse_difference
from ftjax.pretrained.export import compute_of, refuse_another, write_checkpoint
from ftjax.pretrained.load import load_model
from ftjax.pretrained.new_head import (
    HeadedCheckpoint,
    architecture,
    lacking_of_head,
    with_classes,
)
from ftjax.pretrained.sentence_modules import read_head, with_head, write_modules

NETWORK = "sequence_classification"
# What all families call it, in their files.
LAST_LAYER = re.compile(r"(classifier|score)\.")


def backbone_name(family: Family) -> str:
    """The network that turns texts into hidden states, in families that have it; T5's encoder."""
    return "encoder" if "seq2seq_lm" in family.networks else "backbone"


def published_classes(
    folder: str | Path, *, accept_fields: tuple[str, ...] = ()
) -> tuple[str, ...] | None:
    """Names of the classes that a checkpoint's own head sorts texts into; None without a head.

    Args:
        folder: a checkpoint, perhaps in sentence-transformers' layout.
        accept_fields: unknown fields of config.json to ignore.

    Returns:
        In the order of the logits; LABEL_0, LABEL_1, ... where config.json names none.

    Raises:
        ValueError, FileNotFoundError: as of `load_model`.
    """
    if (head := read_head(folder)) is not None:
        return head.classes
    checkpoint = Checkpoint(folder)
    family = family_of(checkpoint.fields.get("model_type", ""))
    if NETWORK not in family.networks or not any(map(LAST_LAYER.match, checkpoint.files)):
        return None
    config = family.parse_config(checkpoint.fields, accept=accept_fields)
    network = nnx.eval_shape(lambda: family.networks[NETWORK](config, rngs=nnx.Rngs(0)))
    if lacking_of_head(checkpoint, family, network):
        return None
    names = checkpoint.fields.get("id2label") or {}
    return tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(config.num_labels))


def classifier_checkpoint(
    folder: Path,
    classes: Sequence[str],
    pad_token_id: int,
    key: jax.Array,
    *,
    accept_fields: tuple[str, ...] = (),
) -> HeadedCheckpoint:
    """A checkpoint to load the family's classifier of these classes from.

    A decoder finds a row's last token by what it is padded with, which config.json often leaves
    unsaid.

    Args:
        folder: the checkpoint's.
        classes: names, in the order of the logits.
        pad_token_id: what rows are padded with.
        key: for what of the head is not there.
        accept_fields: unknown fields of config.json to ignore.

    Raises:
        ValueError, FileNotFoundError: as of `HeadedCheckpoint`.
    """
    checkpoint = HeadedCheckpoint(folder, NETWORK, classes, key, accept_fields=accept_fields)
    if "causal_lm" in family_of(checkpoint.fields["model_type"]).networks:
        checkpoint.fields["pad_token_id"] = pad_token_id
    return checkpoint


def load_classifier(
    folder: str | Path,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    *,
    accept_fields: tuple[str, ...] = (),
) -> TextClassifier | PublishedClassifier:
    """A checkpoint with its own head, in either form; see `published_classes` for the classes.

    Raises:
        ValueError: it has no head; or as of `load_model`.
    """
    head, name = read_head(folder), NETWORK
    if head is not None:
        name = backbone_name(family_of(read_config(folder).get("model_type", "")))
    network = load_model(folder, name, compute, accept_fields=accept_fields)
    return PublishedClassifier(network) if head is None else with_head(network, head)


def export_classifier(
    network: TextClassifier | PublishedClassifier,
    base: str | Path,
    folder: str | Path,
    *,
    classes: Sequence[str],
    problem_type: str,
    pad_token: str,
    longest_row: int,
    expected: Outputs,
    accept_fields: tuple[str, ...] = (),
) -> None:
    """Writes a classifier, names of classes and tokenizer included; whole or not at all.

    A published head, and ours on a published pooler, are written as the family's own
    `...ForSequenceClassification`; ours on pooled tokens in sentence-transformers' layout. What was
    written is loaded again, and must compute the same.

    Args:
        network: without adapters; changed in place.
        base: the checkpoint folder it came from.
        folder: to be made.
        classes: their names, in the order of the logits.
        problem_type: as transformers has it, "single_label_classification" or another.
        pad_token: what rows are padded with, for a tokenizer that does not say it.
        longest_row: tokens that a text is cut to.
        expected: `outputs_on_example` of the network before its adapters were merged.
        accept_fields: unknown fields of config.json to ignore.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: reloaded, it is not the same network (it is then not kept).
    """
    base = Path(base)
    fields = with_classes(read_config(base), classes)
    fields["problem_type"] = problem_type
    family = family_of(fields["model_type"])
    model = _published_form(network, family)
    as_modules = isinstance(model, TextClassifier)
    written = model.backbone
    if hasattr(written.config, "num_labels"):
        written.config = dataclasses.replace(written.config, num_labels=len(classes))
    own = "EncoderModel" if backbone_name(family) == "encoder" else "Model"
    head = own if as_modules else "ForSequenceClassification"
    fields["architectures"] = [architecture(family.model_type, head)]
    if "causal_lm" in family.networks and not as_modules:
        fields["pad_token_id"] = written.config.pad_token_id
    with new_folder(folder, "The export") as new:
        write_checkpoint(written, base, new, fields)
        _name_padding(new / "tokenizer_config.json", pad_token)
        if as_modules:
            write_modules(new, model, longest_row)
        again = load_classifier(new, compute_of(written), accept_fields=accept_fields)
        refuse_another(written, again.backbone)
        found = outputs_on_example(again, new)
        refuse_difference(expected, found, written.compute.dtype, "Written and loaded again")


def _published_form(
    network: TextClassifier | PublishedClassifier, family: Family
) -> TextClassifier | PublishedClassifier:
    """Our head on a published pooler as the family's own classifier; any other network as it is."""
    if isinstance(network, PublishedClassifier) or network.pooling != "pooler":
        return network
    backbone, head = network.backbone, network.classifier
    config = dataclasses.replace(backbone.config, num_labels=head.kernel.shape[1])
    build = family.networks[NETWORK]
    model: Any = nnx.eval_shape(lambda: build(config, backbone.compute, rngs=nnx.Rngs(0)))
    if isinstance(model, PooledClassifier):
        model.classifier = head
    elif isinstance(model, SequenceClassifier) and model.classifier.activation == "tanh":
        # RoBERTa has its pooler's layer in the head.
        model.classifier.dense, model.classifier.out_proj = backbone.pooler.dense, head
        backbone.pooler = nnx.data(None)
    else:
        raise ValueError(
            f"The family {family.model_type} has no form for a head on its pooler; train with "
            "config.model.pooling = 'mean', 'first' or 'last'."
        )
    model.backbone = backbone
    return PublishedClassifier(model)


def _name_padding(file: Path, pad_token: str) -> None:
    """What the network was trained with, for a tokenizer that names no token to pad with."""
    if file.is_file() and not (settings := read_json(file)).get("pad_token"):
        write_json_atomically(file, settings | {"pad_token": pad_token})
