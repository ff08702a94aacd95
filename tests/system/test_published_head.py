"""Runs that begin from the head a checkpoint was published with, and what is said of it."""

import io

import jax
import numpy as np
import pytest
from rich.console import Console

from ftjax.config import override
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.tuning import METHODS
from ftjax.tuning.masks import is_new

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


@pytest.fixture
def config_of(tiny_config, tiny_checkpoint):
    """(family, names of its head's classes, what is changed) -> config."""

    def make(family, names, **changes):
        fields = SIZES | {"id2label": {str(i): name for i, name in enumerate(names)}}
        if family == "roberta":
            fields |= {"pad_token_id": 0}
        folder = tiny_checkpoint(family, fields, "sequence_classification")
        quick = {"model.reference": str(folder), "training.epochs": 1, "retention.enabled": False}
        quick |= {"evaluation.baselines": False, "model.head": "published"}
        return override(tiny_config, quick | changes)

    return make


def said_by(config):
    sentences = []
    parts = build(config, sentences.append)
    return parts, "\n".join(sentences)


def test_a_head_of_the_same_classes_is_kept(config_of):
    parts, said = said_by(config_of("bert", ["C", "a", "b"]))
    assert "own head is kept, for c, a, b" in said
    assert "begin at random" not in said
    assert parts.objective.classes == ["c", "a", "b"]
    assert not parts.objective.has_new_head


def test_a_head_for_more_classes_keeps_them(config_of):
    parts, _ = said_by(config_of("bert", ["d", "c", "b", "a"]))
    assert parts.objective.classes == ["d", "c", "b", "a"]
    assert parts.trainable["backbone.classifier.kernel"].shape == (16, 4)


def test_a_head_for_fewer_classes_gets_a_last_layer(config_of):
    parts, said = said_by(config_of("roberta", ["a", "b"]))
    assert "head is for 2 classes (a, b), the data have 3: a new one learns them" in said
    assert "of the head, classifier.out_proj.bias, classifier.out_proj.weight begin" in said
    assert parts.objective.has_new_head


def test_classes_of_other_names_are_refused(config_of):
    with pytest.raises(ValueError, match="labels a, b, c, and the checkpoint's head those of x, y"):
        build(config_of("bert", "xyz"))


def test_a_head_that_is_dropped_is_said(config_of):
    _, said = said_by(config_of("bert", "cab", **{"model.head": "new"}))
    assert "own head, for c, a, b, is not used; config.model.head = 'published'" in said
    _, said = said_by(config_of("roberta", "xyz", **{"model.head": "new"}))
    assert "own head, for x, y, z, is not used." in said


def test_a_family_without_such_a_head(config_of, tiny_checkpoint):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    folder = tiny_checkpoint("t5", sizes, "seq2seq_lm")
    config = override(config_of("bert", "abc"), {"model.reference": str(folder)})
    with pytest.raises(ValueError, match=r"no network 'sequence_classification'.*head to 'new'"):
        build(config)


def test_agreement_with_a_head_at_random_is_refused(config_of):
    agreement = {"penalties.kl_to_base": 1.0}
    build(config_of("bert", "abc", **agreement))
    with pytest.raises(ValueError, match=r"kl_to_base compares .* a new head makes at random"):
        build(config_of("roberta", "ab", **agreement))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_published_head_as_it_is(config_of, method):
    """RoBERTa's `out_proj` has the name of a layer of attention, and gets no adapter."""
    changes = {"tuning.method": method}
    if "tuning.virtual_tokens" in METHODS[method].fields:
        changes["tuning.virtual_tokens"] = 4
    parts, _ = said_by(config_of("roberta", "abc", **changes))
    layers = {f"backbone.classifier.{layer}" for layer in ("dense", "out_proj")}
    head = {f"{layer}.{leaf}" for layer in layers for leaf in ("kernel", "bias")}
    assert {path for path in (*parts.trainable, *parts.frozen) if is_new(path)} == head
    assert head <= parts.trainable.keys()
    batch = parts.objective.examples["test"].batch(np.arange(4), rows=4, length=16)
    network = parts.rebuild(parts.trainable, parts.frozen)
    logits = network(batch)
    assert logits.shape == (4, 3)
    again = network({"features": network.features(batch)})
    np.testing.assert_allclose(again, logits, atol=1e-6)


def test_the_pooler_is_a_part_of_the_head(config_of):
    parts, _ = said_by(config_of("bert", "abc", **{"tuning.method": "linear_probe"}))
    assert {path.rpartition(".")[0] for path in parts.trainable} == {
        "backbone.classifier",
        "backbone.backbone.pooler.dense",
    }


def test_a_probe_moves_the_published_head_on_cached_features(tmp_path, config_of):
    changes = {"tuning.method": "linear_probe", "optimizer.learning_rate": 0.05}
    config = config_of("bert", "abc", **changes, **{"training.epochs": 8})
    metrics = run(config, tmp_path / "run", Console(file=io.StringIO())).metrics
    # The checkpoint's own head is scored before; the first token of a random BERT knows little.
    assert abs(metrics["test/loss"] - metrics["test/pretrained/loss"]) > 1e-3
    assert jax.tree.all(jax.tree.map(np.isfinite, metrics))
