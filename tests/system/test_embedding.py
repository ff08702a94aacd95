"""Embeddings learned by a tiny network, from file to result."""

import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import quiet, write_splits

from ftjax.config import base_config, override, validate
from ftjax.losses import contrastive
from ftjax.objectives.embedding import Embedding
from ftjax.runs.report import print_result
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.predict import Predictor


def question(index):
    """Which word answers which does not show in the words."""
    number = (7 * index) % 30
    return {
        "anchor": f"word{number} word{index % 3}",
        "positive": f"word{30 + (number * 11) % 30}",
        "other": f"word{30 + (number * 11 + 1) % 30}",
        "score": (index * 3) % 5,
    }


@pytest.fixture
def config_of(tiny_bert, tmp_path):
    source = write_splits(tmp_path, question, train=90, validation=20, test=21)

    def make(**fields):
        settings = {
            "name": "tiny",
            "model.reference": str(tiny_bert),
            "data.source": str(source),
            "data.max_length": 8,
            "data.batch_size": 16,
            "evaluation.batch_size": 8,
            "optimizer.learning_rate": 1e-2,
            "training.epochs": 8,
            "retention.enabled": False,
        }
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config("embedding"), settings | fields)

    return make


def test_a_run_learns_what_belongs_together(config_of, tmp_path, tiny_texts):
    config = config_of(
        retention__enabled=True, retention__source=str(tiny_texts), retention__max_length=16
    )
    console = quiet()
    result = run(config, tmp_path / "run", console)
    metrics = result.metrics
    assert metrics["test/cosine_accuracy@1"] > metrics["test/pretrained/cosine_accuracy@1"] + 0.3
    # Words that texts share do not help here.
    assert metrics["test/tfidf/cosine_accuracy@1"] < 0.3
    assert all(0 <= metrics[f"test/{name}"] <= 1 for name in ("cosine_ndcg@10", "cosine_map@100"))
    low, high = result.intervals["test/cosine_ndcg@10"]
    assert low <= metrics["test/cosine_ndcg@10"] <= high
    assert "retention/change" in metrics
    print_result(console, result, "run")
    assert "90 groups of 2 texts" in console.file.getvalue()
    (found,) = Predictor(tmp_path / "run")([{"text": "word1 word2"}])
    assert np.linalg.norm(found["embedding"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"data__negative_fields": ("other",)},
        {"data__negative_fields": ("other",), "objective__loss": "triplet"},
        {"objective__matryoshka_dims": (4, 16), "model__pooling": "first"},
    ],
)
def test_other_ways(config_of, tmp_path, fields):
    metrics = run(config_of(**fields), tmp_path / "run").metrics
    assert metrics["test/cosine_mrr@10"] > metrics["test/pretrained/cosine_mrr@10"]


def test_a_search_knows_labels(config_of):
    """Texts of one label answer each other; those that are only wrong answer nobody."""
    config = config_of(data__label_field="label", data__negative_fields=("other",))
    objective = Embedding(config, Path(config.model.reference))
    ids = np.array([[0, 1, 4], [2, 3, 1], [5, 6, 3], [0, 7, 8]])
    labels = np.array([0, 1, 0, 0])
    groups = types.SimpleNamespace(text_ids=ids, columns={"labels": labels})
    objective._groups["test"] = groups
    # Each anchor beside all candidates 1, 3, 4, 6, 7, 8: all equally near, so in their order.
    found = objective._search("test", np.ones((12, 4)))
    # Of 0, 2 and 5: those of label 0 are 1, 6 and 7, at the ranks 1, 4 and 5; 3 is at rank 2.
    assert found["cosine_accuracy@1"].tolist() == [1.0, 0.0, 1.0]
    assert found["cosine_mrr@10"].tolist() == [1.0, 0.5, 1.0]
    expected = (1 + 2 / 4 + 3 / 5) / 3
    np.testing.assert_allclose(found["cosine_map@100"], [expected, 0.5, expected])


def test_scores(config_of, tmp_path):
    config = config_of(
        data__format="scores", data__anchor_field="anchor", data__positive_field="positive"
    )
    metrics = run(config, tmp_path / "run").metrics
    assert -1 <= metrics["test/spearman_cosine"] <= 1
    assert metrics["test/spearman_cosine"] != metrics["test/pretrained/spearman_cosine"]


def test_texts_in_a_row_are_texts_alone(config_of):
    parts = build(config_of(data__negative_fields=("other",)))
    network = parts.rebuild(parts.trainable, parts.frozen)
    batch = parts.objective.examples["train"].batch(np.arange(4), rows=4, length=24)
    found = np.asarray(network(batch))
    for row in range(4):
        for text in range(3):
            ids = batch["input_ids"][row, batch["segment_ids"][row] == text + 1][None]
            alone = network.features({"input_ids": ids, "attention_mask": np.ones_like(ids)})
            np.testing.assert_allclose(found[row, text], alone[0], atol=1e-5)


def test_no_text_is_a_negative_of_itself():
    """Neither of an equal positive, nor of an equal anchor, nor within a label."""
    random = np.random.default_rng(0)
    vectors = jnp.asarray(random.normal(size=(5, 2, 8)), jnp.float32)
    real = jnp.asarray([True, True, True, True, False])
    ids = jnp.asarray([[0, 1], [2, 1], [3, 4], [4, 5], [6, 7]])
    found, _ = contrastive.multiple_negatives(vectors, ids, real, scale=1.0)
    unit = np.asarray(contrastive.unit(vectors), np.float64)
    cosines = unit[:, 0] @ unit[:, 1].T
    negatives = [[2, 3], [2, 3], [0, 1, 3], [0, 1]]
    for row, others in enumerate(negatives):
        scores = cosines[row, [row, *others]]
        assert float(found[row]) == pytest.approx(np.log(np.exp(scores).sum()) - scores[0], 1e-5)
    labels = jnp.asarray([0, 1, 0, 1, 0])
    found, _ = contrastive.multiple_negatives(vectors, ids, real, scale=1.0, labels=labels)
    scores = cosines[0, [0, 3]]
    assert float(found[0]) == pytest.approx(np.log(np.exp(scores).sum()) - scores[0], 1e-5)


def test_embeddings_of_zeros_have_a_gradient_of_numbers():
    def of_triplets(vectors):
        return contrastive.triplet(vectors, margin=1.0)[0]

    for function in (contrastive.unit, of_triplets):
        found = jax.grad(lambda x, function=function: function(x).sum())(jnp.zeros((2, 3, 4)))
        assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer__accumulation_steps": 2}, "accumulation_steps > 1 would divide it"),
        ({"training__parallel": "pmap"}, "config.training.parallel would divide it"),
        ({"data__batch_size": 1}, "batch_size = 1: texts are compared"),
        ({"objective__loss": "triplet"}, "'triplet' needs negatives"),
        ({"objective__matryoshka_dims": (17,)}, "the network's vectors have 16 numbers"),
        ({"data__negative_fields": ("wrong",)}, "no field 'wrong'"),
        ({"data__format": "scores", "data__score_field": "anchor"}, "the score is 'word0 word0'"),
    ],
)
def test_refused(config_of, fields, message):
    if fields.get("data__format") == "scores":
        fields = fields | {"data__anchor_field": "anchor", "data__positive_field": "positive"}
    config = config_of(**fields)
    with pytest.raises(ValueError, match=message):
        validate(config)
        build(config)
