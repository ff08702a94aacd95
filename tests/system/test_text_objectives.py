"""Several labels, numbers and levels of texts: whole runs, what they keep, and refusals."""

import csv
import json
import random

import numpy as np
import pytest
from scipy.special import expit
from stopped import whole_and_continued
from tiny import TINY, WORDS, quiet

from ftjax.config import base_config, override, validate
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.finished import load_finished_run
from ftjax.use.predict import Predictor

SMALL = {
    "retention.enabled": False,
    "training.epochs": 6,
    "training.log_every": 1,
    "optimizer.learning_rate": 2e-2,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Texts of three kinds of words: which there are, how many of one, and grades of that."""
    folder = tmp_path_factory.mktemp("texts")
    generator = random.Random(0)
    for split, count in (("train", 96), ("validation", 40), ("test", 41)):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "tags", "red", "blue", "score", "grade", "second"])
            for _ in range(count):
                red, blue = generator.random() < 0.5, generator.random() < 0.4
                words = generator.choices(WORDS[:10], k=3) * red
                words += generator.choices(WORDS[20:30], k=3) * blue
                words += generator.choices(WORDS[40:], k=generator.randrange(1, 5))
                generator.shuffle(words)
                tags = "|".join(["red"] * red + ["blue"] * blue)
                grade = ("low", "middle", "high")[red + (red and blue)]
                score = 250 + 40 * red - 10 * blue
                row = [" ".join(words), tags, int(red), float(blue), score, grade, words[0]]
                writer.writerow(row)
    return folder / "{split}.csv"


@pytest.fixture
def config_of(tiny_bert, texts):
    """(objective, fields) -> config."""

    def make(objective, **fields):
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        files = {"model.reference": str(tiny_bert), "data.source": str(texts)}
        return override(base_config(objective), TINY | SMALL | files | fields)

    return make


TAGS = {"data__label_field": "tags", "data__label_separator": "|"}
KINDS = {
    "multi_label": TAGS,
    "regression": {"data__label_field": "score"},
    "ordinal": {"data__label_field": "grade", "data__label_order": ("low", "middle", "high")},
}


def test_several_labels(tmp_path, config_of):
    config = config_of("multi_label", **TAGS)
    result = run(config, tmp_path / "run", quiet())
    assert result.metrics["test/macro_f1"] > 0.7
    assert result.metrics["test/no_label/micro_f1"] == 0
    assert result.metrics["test/tfidf_logistic_regression/macro_f1"] > 0.7
    # Of a random network.
    assert result.metrics["test/frozen_linear_head/macro_f1"] > 0
    thresholds = {name: row["threshold"] for name, row in result.details["per_class"].items()}
    assert thresholds.keys() == {"blue", "red"}
    predict = Predictor(tmp_path / "run")
    records = [{"text": "word1 word2 word5"}, {"text": "word22 word1 word23 word2"}]
    found, chances = predict(records), expit(predict.outputs(records))
    for row, share in zip(found, chances, strict=True):
        expected = {name for k, name in enumerate(("blue", "red")) if share[k] >= thresholds[name]}
        assert {*row["labels"]} == expected
        assert row["probabilities"]["red"] == pytest.approx(share[1], abs=1e-4)
    for row in found:
        lines = predict.objective.describe_prediction(row)
        assert [line[0] == "*" for line in lines] == [
            name in row["labels"] for name in row["probabilities"]
        ]


def test_thresholds_come_from_validation_alone(tmp_path, config_of):
    """Other test texts change no threshold; and it is they that predictions are made with."""
    config = config_of("multi_label", **TAGS, training__max_steps=3, evaluation__baselines=False)
    first = run(config, tmp_path / "one", quiet())
    objective = build(config).objective
    validation = np.random.default_rng(0).normal(size=(40, 2))
    one, other = (
        objective.learned_facts({"validation": validation, "test": test})
        for test in (np.zeros((41, 2)), np.ones((41, 2)))
    )
    assert one == other
    kept = load_finished_run(tmp_path / "one").objective.facts["thresholds"]
    rows = first.details["per_class"]
    assert kept == [rows["blue"]["threshold"], rows["red"]["threshold"]]
    assert kept != [0.5, 0.5]


def test_all_forms_of_labels_are_one(config_of):
    names = ("blue", "red")
    lists = build(config_of("multi_label", **TAGS)).objective.labels
    columns = {"data__label_format": "columns", "data__label_columns": names}
    found = build(config_of("multi_label", **columns)).objective.labels
    for split, labels in lists.items():
        np.testing.assert_array_equal(found[split], labels)


def test_a_number_in_the_unit_of_the_file(tmp_path, config_of):
    config = config_of("regression", data__label_field="score", evaluation__metric="pearson")
    result = run(config, tmp_path / "run", quiet())
    metrics = result.metrics
    assert metrics["test/rmse"] < 0.6 * metrics["test/mean/rmse"] < 20
    assert metrics["test/pearson"] > 0.8
    assert metrics["test/tfidf_ridge/rmse"] < metrics["test/mean/rmse"]
    predict = Predictor(tmp_path / "run")
    records = [{"text": "word1 word2 word5"}, {"text": "word45"}]
    values = [row["value"] for row in predict(records)]
    assert values[0] == pytest.approx(290, abs=15) and values[1] == pytest.approx(250, abs=15)
    # R2 by its definition, with the deviation that the test split has.
    objective = build(config).objective
    facts, truth = objective.facts, objective.labels["test"]
    spread = (truth * facts["deviation"]).std()
    expected = 1 - metrics["test/rmse"] ** 2 / spread**2
    assert metrics["test/r2"] == pytest.approx(expected, rel=1e-4)
    assert metrics["test/loss"] == pytest.approx(
        (metrics["test/rmse"] / facts["deviation"]) ** 2, rel=1e-4
    )


def test_levels(tmp_path, config_of):
    result = run(config_of("ordinal", **KINDS["ordinal"]), tmp_path / "run", quiet())
    assert result.metrics["test/quadratic_weighted_kappa"] > 0.4
    assert result.metrics["test/mae"] < result.metrics["test/median/mae"]
    assert result.details["classes"] == ["low", "middle", "high"]
    predict = Predictor(tmp_path / "run")
    found = predict([{"text": "word45 word50"}, {"text": "word1 word22 word2 word23"}])
    for row in found:
        assert list(row["probabilities"]) == ["low", "middle", "high"]
        shares = np.array([*row["probabilities"].values()])
        assert shares.sum() == pytest.approx(1, abs=1e-3)
        assert row["label"] == result.details["classes"][(shares.cumsum() < 0.5).sum()]
    above = [1 - row["probabilities"]["low"] for row in found]
    assert above[0] < above[1]


@pytest.mark.parametrize("objective", KINDS)
def test_stopped_and_started_again_is_the_same_run(tmp_path, config_of, monkeypatch, objective):
    """With a head trained first, from kept features, and penalties on predictions."""
    config = config_of(
        objective,
        **KINDS[objective],
        evaluation__baselines=False,
        evaluation__every=4,
        training__epochs=1,
        tuning__head_epochs=1,
        penalties__kl_to_base=0.5,
        penalties__r_drop=0.5,
        optimizer__accumulation_steps=2,
    )
    # Behind it are twelve steps of the head, and six of all with a validation.
    whole_and_continued(config, tmp_path, monkeypatch, batch=19, step=4)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    trained = [row for row in map(json.loads, lines) if "train/r_drop" in row]
    assert all(row["train/r_drop"] > 0 for row in trained)
    assert trained[-1]["train/kl_to_base"] > 0


@pytest.mark.parametrize(
    ("objective", "fields", "message"),
    [
        ("multi_label", {"data__label_field": "tags"}, "line 5: the label is 'blue', which is no"),
        (
            "multi_label",
            {"data__label_format": "columns", "data__label_columns": ("red", "score")},
            "train.csv, line 2: score is .*; 0 or 1 is needed",
        ),
        (
            "multi_label",
            TAGS | {"objective__pos_weight": "green=2"},
            "config.objective.pos_weight = 'green=2': .* must be a class",
        ),
        ("regression", {"data__label_field": "grade"}, "line 2: the label is '.*'; a finite"),
        ("ordinal", {"data__label_field": "grade"}, "say in config.data.label_order"),
        (
            "ordinal",
            {"data__label_field": "grade", "data__label_order": ("low", "high")},
            "label_order has no 'middle'",
        ),
        (
            "ordinal",
            KINDS["ordinal"] | {"data__label_order": ("low", "middle", "high", "top")},
            "label_order has 'top', and no text",
        ),
        (
            "ordinal",
            KINDS["ordinal"] | {"data__label_order": ("low", "middle", "high", "low")},
            "label_order names a level twice",
        ),
    ],
)
def test_what_cannot_be_learned_from(config_of, objective, fields, message):
    with pytest.raises(ValueError, match=message):
        build(config_of(objective, **fields))


def test_splits_that_a_metric_cannot_choose_on(tmp_path, config_of):
    rows = {"train": "12", "validation": "22", "test": "12"}
    for split, scores in rows.items():
        lines = [f"{split} word{n},{score}," for n, score in enumerate(scores)]
        (tmp_path / f"{split}.csv").write_text("text,score,tags\n" + "\n".join(lines))
    source = {"data__source": str(tmp_path / "{split}.csv"), "evaluation__metric": "r2"}
    with pytest.raises(ValueError, match="'r2' needs labels that differ"):
        build(config_of("regression", data__label_field="score", **source))
    same = {"data__train_split": "validation", "data__validation_split": "train"}
    with pytest.raises(ValueError, match="all 2 labels are 2; there is nothing to learn"):
        build(config_of("regression", data__label_field="score", **source, **same))
    with pytest.raises(ValueError, match="no record has a label"):
        build(config_of("multi_label", **TAGS, data__source=source["data__source"]))


def test_fields_that_nobody_reads(config_of):
    with pytest.raises(ValueError, match="huber_delta is read only with objective"):
        config_of("regression", objective__huber_delta=2.0)
    config = config_of("regression", objective__loss="huber", objective__huber_delta=2.0)
    validate(config)
    with pytest.raises(ValueError, match="label_columns must be set"):
        validate(config_of("multi_label", data__label_format="columns"))
