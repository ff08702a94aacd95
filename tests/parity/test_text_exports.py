"""Classifiers of several labels, and of numbers, as transformers loads them."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy.special import expit
from tiny import TINY, WORDS, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ftjax.config import base_config, override  # noqa: E402
from ftjax.training.run import run  # noqa: E402
from ftjax.use.finished import load_finished_run  # noqa: E402
from ftjax.use.predict import Predictor  # noqa: E402

TEXTS = ["word1 word2 word3", "word21 word22 " * 4, "word50 word7"]
BERT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
FIELDS = {
    "multi_label": {
        "data.label_format": "columns",
        "data.label_columns": ("low", "even"),
    },
    "regression": {"data.label_field": "number"},
}


@pytest.fixture
def trained(tmp_path):
    """(objective, head) -> a predictor of a finished run, and its export."""
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base", with_end=False)
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 16), ("test", 16)):
        with open(tmp_path / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "low", "even", "number"])
            for index in range(count):
                words = random.integers(0, 60, 4)
                low, even = int(words[0] < 30), index % 2
                rows.writerow([" ".join(WORDS[i] for i in words), low, even, 100 + words[0]])

    def make(objective, **changes):
        settings = {
            "model.reference": str(tmp_path / "base"),
            "data.source": str(tmp_path / "{split}.csv"),
            "retention.enabled": False,
            "evaluation.baselines": False,
            "training.epochs": 1,
        }
        config = override(base_config(objective), TINY | settings | FIELDS[objective] | changes)
        run(config, tmp_path / "run", Console(file=io.StringIO()))
        finished = load_finished_run(tmp_path / "run")
        finished.objective.export(finished.network, tmp_path / "out")
        return Predictor(tmp_path / "run"), tmp_path / "out"

    return make


def torchs_logits(folder):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in TEXTS]
    return np.stack(rows), model.config


PUBLISHED = {"model.head": "published"}
POOLER = {"model.head": "new", "model.pooling": "pooler"}


def test_several_labels(trained):
    predict, folder = trained("multi_label", **PUBLISHED)
    theirs, config = torchs_logits(folder)
    records = [{"text": text} for text in TEXTS]
    np.testing.assert_allclose(predict.outputs(records), theirs, atol=1e-5)
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == {0: "low", 1: "even"}
    # The pipeline takes the sigmoid, as we do.
    pipe = transformers.pipeline("text-classification", str(folder), top_k=None)
    for row, found in zip(predict(records), pipe(TEXTS), strict=True):
        for score in found:
            assert row["probabilities"][score["label"]] == pytest.approx(score["score"], abs=1e-4)
    thresholds = json.loads((folder / "thresholds.json").read_text())
    chances = expit(theirs)
    for row, share in zip(predict(records), chances, strict=True):
        names = {n for n, chance in zip(thresholds, share, strict=True) if chance >= thresholds[n]}
        assert {*row["labels"]} == names


@pytest.mark.parametrize("head", [PUBLISHED, POOLER], ids=["published", "pooler"])
def test_a_number_in_the_unit_of_the_file(trained, head):
    predict, folder = trained("regression", **head)
    theirs, config = torchs_logits(folder)
    values = [row["value"] for row in predict([{"text": text} for text in TEXTS])]
    np.testing.assert_allclose(theirs[:, 0], values, rtol=1e-4)
    assert (theirs > 90).all() and np.ptp(theirs) > 0.1
    assert (config.problem_type, config.num_labels) == ("regression", 1)
