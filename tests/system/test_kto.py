"""Answers that people liked or not, learned by a tiny network."""

import numpy as np
import pytest
from tiny import quiet, write_splits

from ftjax.config import base_config, override, validate
from ftjax.objectives.kto import partners_of
from ftjax.training.build import build
from ftjax.training.run import run


def judged(index):
    """Words above the question's are liked."""
    number, liked = (7 * index) % 40 + 1, index % 3 > 0
    answer = f"word{number + 1}" if liked else f"word{number - 1}"
    return {"prompt": f"word{number}", "completion": f" {answer}", "label": liked}


@pytest.fixture
def config_of(tiny_llama, tmp_path):
    source = write_splits(tmp_path, judged, train=48, validation=12, test=13)

    def make(**fields):
        settings = {
            "name": "tiny",
            "model.reference": str(tiny_llama),
            "data.source": str(source),
            "data.max_length": 8,
            "data.batch_size": 8,
            "evaluation.batch_size": 8,
            "optimizer.learning_rate": 1e-2,
            "training.log_every": 1,
            "retention.enabled": False,
        }
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config("kto"), settings | fields)

    return make


def test_a_run_learns_what_is_liked(config_of, tmp_path):
    console = quiet()
    result = run(config_of(training__epochs=6), tmp_path / "run", console)
    metrics = result.metrics
    assert metrics["test/pretrained/loss"] == pytest.approx(0.5, abs=1e-6)
    assert metrics["test/pretrained/rewards/margins"] == metrics["test/pretrained/kl"] == 0.0
    assert metrics["test/pretrained/rewards/roc_auc"] == 0.5
    assert metrics["test/rewards/roc_auc"] > 0.8
    assert metrics["test/rewards/margins"] > 0.02
    assert result.intervals["test/rewards/chosen"][0] < metrics["test/rewards/chosen"]
    said = " ".join(console.file.getvalue().split())
    assert "train: 48 answers, 32 of them liked" in said
    assert "liked answers weigh 2.00 times the others" in said
    assert "desirable_weight from 0.50 to 0.67" in said


def test_each_answer_is_once_beside_another_prompt():
    for count in (2, 3, 50):
        partners = partners_of(count, seed=1)
        assert sorted(partners) == list(range(count))
        assert (partners != np.arange(count)).all()
    assert partners_of(50, seed=1).tolist() == partners_of(50, seed=1).tolist()
    assert partners_of(50, seed=1).tolist() != partners_of(50, seed=2).tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer__accumulation_steps": 2}, "accumulation_steps > 1 would divide it"),
        ({"training__parallel": "pmap"}, "config.training.parallel would divide it"),
        ({"data__batch_size": 1}, "batch_size = 1: KTO compares answers"),
    ],
)
def test_a_batch_is_not_divided(config_of, fields, message):
    config = config_of(**fields)
    with pytest.raises(ValueError, match=message):
        validate(config)
        build(config)


def test_labels_of_one_kind_are_refused(config_of, tmp_path):
    source = write_splits(tmp_path, lambda n: judged(3 * n), train=20, validation=12, test=13)
    with pytest.raises(ValueError, match="all 20 labels are False"):
        build(config_of(data__source=str(source)))


def test_texts_and_messages_in_one_file_are_refused(config_of, tmp_path):
    def either(index):
        record = judged(index)
        if index % 2:
            return record
        asked = {"role": "user", "content": record["prompt"]}
        said = {"role": "assistant", "content": record["completion"]}
        return record | {"prompt": [asked], "completion": [said]}

    source = write_splits(tmp_path, either, train=20, validation=12, test=13)
    with pytest.raises(ValueError, match="Texts and messages cannot be mixed"):
        build(config_of(data__source=str(source)))
