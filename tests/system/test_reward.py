"""A reward model learned by a tiny network, and used."""

import itertools
import json
import shutil

import numpy as np
import pytest
from tiny import quiet, write_splits

from ftjax.config import base_config, override, validate
from ftjax.models.heads import PublishedClassifier
from ftjax.runs.report import print_result
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.finished import load_finished_run
from ftjax.use.predict import Predictor

TEMPLATE = """\
{% for m in messages %}{{ 'word50 ' if m.role == 'user' else 'word51 ' }}{{ m.content }} [SEP] \
{% endfor %}{% if add_generation_prompt %}word51 {% endif %}"""
LIKED = [f"word{number}" for number in range(30)]
OTHERS = [f"word{number}" for number in range(30, 50)]


def preferred(index):
    """Answers of low words are liked, whatever is asked."""
    return {
        "prompt": f"word{index % 50}",
        "chosen": f" {LIKED[(7 * index) % 30]}",
        "rejected": f" {OTHERS[(3 * index) % 20]} word52",
        "ahead": 0.5 * (index % 2),
    }


def as_messages(index):
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    record = preferred(index)
    return {n: [{"role": role, "content": record[n].strip()}] for n, role in roles.items()}


@pytest.fixture
def config_of(tiny_llama, tmp_path):
    write_splits(tmp_path, preferred, train=48, validation=10, test=11)

    def make(**fields):
        settings = {
            "name": "tiny",
            "model.reference": str(tiny_llama),
            "data.source": str(tmp_path / "{split}.jsonl"),
            "data.max_length": 10,
            "data.batch_size": 8,
            "evaluation.batch_size": 8,
            "optimizer.learning_rate": 1e-2,
            "training.epochs": 4,
        }
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config("reward"), settings | fields)

    return make


@pytest.mark.parametrize("method", ["full", "lora", "linear_probe"])
def test_a_run_learns_what_is_preferred(config_of, tmp_path, method):
    console = quiet()
    settings = {"data__margin_field": "ahead", "tuning__method": method}
    result = run(config_of(**settings), tmp_path / "run", console)
    metrics = result.metrics
    assert metrics["test/accuracy"] >= (0.6 if method == "linear_probe" else 0.9)
    # The longer answer was always the other one.
    assert metrics["test/longer_answer/accuracy"] == 0.0
    assert metrics["test/min_reward"] < metrics["test/mean_reward"] < metrics["test/max_reward"]
    assert result.intervals["test/accuracy"][1] <= 1.0
    print_result(console, result, "run")
    predictor = Predictor(tmp_path / "run")
    answers = [" word3", " word33 word52", " word8"]
    found = predictor([{"text": "word40", "second_text": answer} for answer in answers])
    rewards = [one["reward"] for one in found]
    if method != "linear_probe":
        assert min(rewards[0], rewards[2]) > rewards[1]
    # Each alone, as beside others.
    alone = predictor([{"text": "word40", "second_text": answers[1]}])[0]["reward"]
    assert alone == pytest.approx(rewards[1], abs=1e-5)
    with pytest.raises(ValueError, match="give the prompt as text, and the answer"):
        predictor([{"text": "word40"}])


def test_texts_are_asked_as_chats_where_chats_were_learned(config_of, tmp_path, tiny_llama):
    folder = tmp_path / "talkative"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    chats = tmp_path / "chats"
    chats.mkdir()
    source = write_splits(chats, as_messages, train=48, validation=10, test=11)
    config = config_of(model__reference=str(folder), data__source=str(source), training__epochs=1)
    run(config, tmp_path / "run")
    predictor = Predictor(tmp_path / "run")
    asked = [{"role": "user", "content": "word40"}]
    said = [{"role": "assistant", "content": "word3"}]
    records = [{"text": "word40", "second_text": "word3"}, {"text": asked, "second_text": said}]
    first, second = predictor(records)
    assert first == second


def test_an_export_has_the_run_s_rewards(config_of, tmp_path):
    run(config_of(tuning__method="lora", training__epochs=1), tmp_path / "run")
    finished = load_finished_run(tmp_path / "run")
    finished.objective.export(finished.network, tmp_path / "export")
    fields = json.loads((tmp_path / "export" / "config.json").read_text())
    assert fields["architectures"] == ["LlamaForSequenceClassification"]
    assert list(fields["id2label"].values()) == ["reward"]
    # The head that was written is one to start from.
    parts = build(config_of(model__reference=str(tmp_path / "export")))
    head = next(p for p in parts.trainable if p.endswith("score.kernel"))
    kept = np.asarray(parts.trainable[head])
    assert np.abs(kept).max() > 0 and kept.shape[1] == 1


@pytest.mark.parametrize("method", ["full", "lora", "prefix"])
def test_a_pair_in_a_row_is_two_texts(config_of, method):
    """Rewards are those of the published classifier over each text alone."""
    parts = build(config_of(tuning__method=method))
    noise = np.random.default_rng(0)
    moved = {p: v + 0.1 * noise.normal(size=v.shape) for p, v in parts.trainable.items()}
    network = parts.rebuild(moved, parts.frozen)
    batch = parts.objective.examples["train"].batch(np.arange(5), rows=5, length=20)
    found = np.asarray(parts.objective.outputs(network, batch))
    alone = PublishedClassifier(network.backbone)
    for row, text in itertools.product(range(5), (1, 2)):
        ids = batch["input_ids"][row, batch["segment_ids"][row] == text][None]
        expected = alone({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        assert found[row, text - 1] == pytest.approx(float(expected[0, 0]), abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"penalties__kl_to_base": 0.1}, "a new head gives at random"),
        ({"data__margin_field": "prompt"}, r"train\.jsonl, line 1: the margin is 'word0'"),
        ({"tuning__method": "prompt"}, "puts tokens in front of a text"),
    ],
)
def test_refused(config_of, fields, message):
    config = config_of(**fields)
    with pytest.raises(ValueError, match=message):
        validate(config)
        build(config)


def test_an_encoder_is_refused(config_of, tiny_bert):
    with pytest.raises(ValueError, match="is no decoder with a published classifier"):
        build(config_of(model__reference=str(tiny_bert)))
