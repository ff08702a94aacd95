"""SetFit on a tiny network, from a few texts to a result, and what is made of it."""

import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from stopped import whole_and_continued
from tiny import TINY, WORDS, quiet, write_splits

from ftjax.config import base_config, override, validate
from ftjax.evaluation.solved_head import solve_head
from ftjax.losses.forward import forward
from ftjax.objectives.setfit import SetFit
from ftjax.pretrained.classifier import load_classifier
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.finished import load_finished_run
from ftjax.use.predict import Predictor

SMALL = {"retention.enabled": False, "training.log_every": 1, "training.epochs": 2}
CLASSES = ("blue", "green", "red")


def about(index):
    """Words of a kind among others."""
    generator, kind = random.Random(index), index % 3
    words = generator.choices(WORDS[20 * kind : 20 * kind + 8], k=2)
    words += generator.choices(WORDS[8:20], k=2)
    generator.shuffle(words)
    return {"text": " ".join(words), "label": CLASSES[kind]}


@pytest.fixture
def config_of(tiny_bert, tmp_path):
    """(fields) -> config."""
    offsets = {"train": 0, "validation": 1000, "test": 2000}
    counts = {"train": 90, "validation": 40, "test": 41}
    for split, count in counts.items():
        write_splits(tmp_path, lambda n, split=split: about(n + offsets[split]), **{split: count})

    def make(objective="setfit", **fields):
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        files = {
            "model.reference": str(tiny_bert),
            "data.source": str(tmp_path / "{split}.jsonl"),
            "data.shots": 6,
        }
        return override(base_config(objective), TINY | SMALL | files | fields)

    return make


def test_a_run_learns_and_is_used(config_of, tmp_path):
    """The head is scikit-learn's on the embeddings of the drawn texts, and exported with them."""
    console = quiet()
    result = run(config_of(), tmp_path / "run", console)
    metrics = result.metrics
    assert metrics["test/accuracy"] > metrics["test/frozen_linear_head/accuracy"] + 0.05
    assert metrics["test/accuracy"] > metrics["test/majority/accuracy"] + 0.3
    assert {"test/tfidf_logistic_regression/accuracy", "test/macro_f1"} <= metrics.keys()
    told = " ".join(result.notes)
    # 6 x 12 x 3 pairs of two classes, and as many of one.
    assert "216 pairs of texts in an epoch" in told and "train: 18 texts" in told
    low, high = result.intervals["test/accuracy"]
    assert low <= metrics["test/accuracy"] <= high

    finished, predict = load_finished_run(tmp_path / "run"), Predictor(tmp_path / "run")
    objective = build(finished.config).objective
    features = {}
    for split, texts in objective.texts.items():
        examples = predict.objective.prediction_examples([{"text": text} for (text,) in texts])
        batch = examples.batch(np.arange(len(texts)), rows=len(texts), length=16)
        features[split] = np.asarray(finished.network.features(batch), np.float64)
    reference = LogisticRegression(tol=1e-12, max_iter=10_000)
    reference.fit(features["train"], objective.labels["train"])
    records = [{"text": text} for (text,) in objective.texts["test"]]
    chances = softmax(np.asarray(predict.outputs(records), np.float64), axis=-1)
    np.testing.assert_allclose(chances, reference.predict_proba(features["test"]), atol=1e-5)
    right = reference.predict(features["test"]) == objective.labels["test"]
    assert metrics["test/accuracy"] == pytest.approx(right.mean(), abs=0.03)
    assert predict(records)[0]["label"] in CLASSES

    finished.objective.export(finished.network, tmp_path / "export")
    files = {file.name for file in (tmp_path / "export").rglob("*")}
    assert not {name for name in files if name.endswith((".pkl", ".bin", ".pt"))}
    kernel = load_file(tmp_path / "export" / "2_Dense" / "model.safetensors")["linear.weight"]
    head = reference.coef_ - reference.coef_.mean(0)
    np.testing.assert_allclose(kernel - kernel.mean(0), head, atol=1e-4)
    again = load_classifier(tmp_path / "export")
    batch = objective.examples["test"].batch(np.arange(41), rows=41, length=16)
    np.testing.assert_allclose(
        np.asarray(again(batch)), np.asarray(predict.outputs(records)), atol=1e-5
    )


def test_stopped_and_started_again_is_the_same_run(config_of, tmp_path, monkeypatch):
    config = config_of(
        data__shots=3,
        objective__sampling="undersampling",
        evaluation__every=2,
        tuning__method="lora",
        optimizer__learning_rate=0.1,
        averaging__method="ema",
        averaging__wise_ft_alphas=(0.0, 1.0),
        penalties__kl_to_base=0.1,
    )
    whole, _ = whole_and_continued(config, tmp_path, monkeypatch, batch=4, step=2)
    start, tuned = (row["metrics"] for row in whole.wise_ft)
    assert tuned["test/accuracy"] == whole.metrics["test/accuracy"]
    # Each network on the way has its own head; the first of them is the one before tuning.
    parts = build(config)
    network, objective = parts.rebuild(parts.trainable, parts.frozen), parts.objective
    features = {
        split: network.features(objective.examples[split].batch(np.arange(n), rows=n, length=16))
        for split, n in (("train", 9), ("test", 41))
    }
    kernel, bias = solve_head(np.asarray(features["train"]), objective.labels["train"])
    chances = log_softmax(np.asarray(features["test"]) @ kernel + bias, axis=-1)
    loss = -chances[np.arange(41), objective.labels["test"]].mean()
    assert start["test/loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"model__pooling": "last", "model__dtype": "bfloat16", "model__param_dtype": "bfloat16"},
        {"model__pooling": "first", "objective__sampling": "unique", "penalties__r_drop": 0.1},
    ],
)
def test_other_ways(config_of, tmp_path, fields):
    metrics = run(config_of(training__max_steps=2, **fields), tmp_path / "run").metrics
    assert 0 <= metrics["test/accuracy"] <= 1
    (found,) = Predictor(tmp_path / "run")([{"text": "word1 word2"}])
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_rows_that_fill_up_reach_no_gradient(config_of):
    parts = build(config_of())

    def loss(outputs):
        batch = {"weights": jnp.array([1.0, 1.0, 0.0]), "labels": jnp.array([1.0, 0.0, jnp.nan])}
        passed = forward(lambda *_: lambda *_, **__: outputs, {}, {}, batch, None)
        total, weight, _ = parts.objective.loss(passed)
        return total / weight

    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4))).at[2].set(jnp.nan)
    value, gradient = jax.value_and_grad(loss)(outputs)
    first, second = np.asarray(outputs[:2]).swapaxes(0, 1)
    cosines = (first * second).sum(-1)
    cosines /= np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    assert float(value) == pytest.approx(((cosines - [1, 0]) ** 2).mean(), rel=1e-5)
    assert np.isfinite(gradient).all() and not np.asarray(gradient[2]).any()


def test_over_several_devices_by_pmap(config_of, tmp_path):
    """The head is solved there, too."""
    settings = {"training__max_steps": 4, "evaluation__baselines": False, "model__dropout": 0.0}
    found = [
        run(config_of(training__parallel=how, **settings), tmp_path / how, quiet()).metrics
        for how in ("mesh", "pmap")
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_the_same_texts_are_drawn_for_all_objectives(config_of):
    found = [
        build(config_of(name, data__split_seed=seed)).objective.texts["train"]
        for name, seed in (("setfit", 3), ("classification", 3), ("setfit", 4))
    ]
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 18


def test_a_class_of_one_text_is_said(config_of, tmp_path):
    rows = [about(index) for index in range(5)] + [{"text": "word3", "label": "grey"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    objective = SetFit(config := config_of(), Path(config.model.reference))
    objective.read()
    told = " ".join(objective.notes)
    assert "train: grey, red have a single text, so that no pair of one" in told
    with pytest.raises(ValueError, match="each of the 4 classes has one text to learn from"):
        SetFit(config := config_of(data__shots=1), Path(config.model.reference)).read()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tuning__method": "linear_probe"}, "SetFit's head is solved"),
        ({"tuning__method": "prompt", "tuning__virtual_tokens": 2}, "here a row has several texts"),
        ({"data__train_limit": 5}, r"config.data.shots = 6 and config.data.train_limit = 5 both"),
        ({"objective__sampling": "some"}, "objective.sampling is 'some'"),
        (
            {"objective__sampling": "unique", "objective__num_iterations": 2},
            "objective.sampling is not read with objective.num_iterations = 2; leave it out",
        ),
        ({"objective__label_smoothing": 0.1}, "label_smoothing is read only with objective.name"),
        ({"evaluation__metric": "f1"}, "and there are 3; choose 'macro_f1'"),
        ({"data__shots": None, "data__train_split": "many"}, "texts make .* pairs, of which"),
    ],
)
def test_refused(config_of, tmp_path, fields, message):
    if fields.get("data__train_split"):
        write_splits(tmp_path, about, many=3000)
    with pytest.raises(ValueError, match=message):
        config = config_of(**fields)
        validate(config)
        build(config)


def test_a_pickled_head_is_refused(config_of, tiny_bert, tmp_path):
    """A folder as setfit writes it: the network is used, its head is not."""
    folder = tmp_path / "published"
    folder.mkdir()
    for file in tiny_bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config_setfit.json").write_text('{"labels": null, "normalize_embeddings": false}')
    fields = {"model__reference": str(folder), "model__head": "published"}
    with pytest.raises(ValueError, match=r"model is a pickle \(model_head.pkl\), and opening one"):
        build(config_of("classification", **fields))
    build(config_of(model__reference=str(folder)))
