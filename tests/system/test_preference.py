"""Preferences learned by a tiny network, from file to result, answers and export."""

import json
import shutil

import jax
import numpy as np
import pytest
from stopped import whole_and_continued
from tiny import quiet, write_splits

from ftjax.config import base_config, override
from ftjax.files import read_checked_json
from ftjax.losses.forward import START, forward
from ftjax.objectives.preference import Preference
from ftjax.pretrained.load import load_model
from ftjax.runs.report import print_result
from ftjax.training.build import build
from ftjax.training.checkpoint import host_copy
from ftjax.training.run import run
from ftjax.use.chat import Conversation, load_writer_of_run

TEMPLATE = """\
{% for m in messages %}{{ 'word50 ' if m.role == 'user' else 'word51 ' }}{{ m.content }} [SEP] \
{% endfor %}{% if add_generation_prompt %}word51 {% endif %}"""
SETTINGS = {
    "name": "tiny",
    "data.max_length": 16,
    "data.batch_size": 8,
    "evaluation.batch_size": 8,
    "optimizer.learning_rate": 1e-2,
    "training.log_every": 1,
    "retention.enabled": False,
}


def preferred(index):
    """The word after the question's is liked better than the one before."""
    number = (7 * index) % 40 + 1
    question = {"role": "user", "content": f"word{number}"}
    return {
        name: [question, {"role": "assistant", "content": f"word{number + step}{more}"}]
        for name, step, more in (("chosen", 1, " word9" * (index % 3)), ("rejected", -1, ""))
    }


@pytest.fixture(scope="module")
def talkative(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("talkative") / "llama"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def config_of(talkative, tmp_path):
    source = write_splits(tmp_path, preferred, train=48, validation=9, test=10)

    def make(**fields):
        places = {"model.reference": str(talkative), "data.source": str(source)}
        places |= {"data.prompt_field": None}
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config("preference"), SETTINGS | places | fields)

    return make


def test_a_run_learns_what_is_preferred(config_of, tmp_path, tiny_texts):
    config = config_of(
        training__epochs=6,
        evaluation__answers=3,
        generation__max_new_tokens=4,
        retention__enabled=True,
        retention__source=str(tiny_texts),
    )
    console = quiet()
    result = run(config, tmp_path / "run", console)
    metrics = result.metrics
    # Before tuning it is the reference, to the bit.
    assert metrics["test/pretrained/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert metrics["test/pretrained/rewards/margins"] == 0.0
    assert metrics["test/pretrained/logps/chosen_change"] == 0.0
    assert metrics["test/rewards/accuracies"] > 0.8
    assert metrics["test/rewards/margins"] > 0.1
    assert metrics["test/loss"] < metrics["test/pretrained/loss"]
    low, high = result.intervals["test/rewards/margins"]
    assert low < metrics["test/rewards/margins"] < high
    assert len(result.details["answers"]) == 3
    assert {"retention/before", "retention/after"} <= metrics.keys()
    manifest = read_checked_json(tmp_path / "run" / "manifest.json")
    assert len(manifest["reference"]["sha256"]) == 64
    print_result(console, result, "run")
    said = console.file.getvalue()
    assert "rewards/margins" in said.replace("\n", "") or "rewards" in said
    assert "48 pairs; chosen answers have" in said
    writer = load_writer_of_run(tmp_path / "run")
    assert Conversation(writer, max_new_tokens=4).answer("word3")


def test_stopped_and_started_again_ends_with_the_same_bits(config_of, tmp_path, monkeypatch):
    config = config_of(training__epochs=1, tuning__method="lora")
    config = override(config, {"evaluation.every": 2})
    whole_and_continued(config, tmp_path, monkeypatch, batch=4, step=2)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_kept_and_live_reference_are_one(config_of, method):
    """Loss and gradient away from the start."""
    sums = []
    for kept in (True, False):
        config = config_of(
            objective__precompute_ref_log_probs=kept, tuning__method=method, model__dropout=0.0
        )
        parts = build(config)
        objective, examples = parts.objective, parts.objective.examples["train"]
        batch = examples.batch(np.arange(6), rows=8, length=32)
        if kept:
            start = objective.outputs(parts.rebuild(parts.trainable, parts.frozen), batch)
            names = ("train", "validation", "test")
            assert tuple(objective.reference().examples) == names
            everywhere = np.zeros((48, 2), np.float32)
            everywhere[:6] = np.asarray(start)[:6, (0, 3)]
            # What stands behind the last must not be read for rows that only fill up.
            everywhere[6:] = np.nan
            objective = objective.with_reference({"train": everywhere})
            batch = objective.examples["train"].batch(np.arange(6), rows=8, length=32)
        else:
            assert tuple(objective.reference().examples) == ("validation", "test")
        noise = np.random.default_rng(0)
        moved = {p: v + 0.1 * noise.normal(size=v.shape) for p, v in parts.trainable.items()}
        frozen = parts.frozen | {START + p: v for p, v in parts.trainable.items()}

        def loss(trainable, objective=objective, batch=batch, parts=parts, frozen=frozen):
            passed = forward(
                lambda values, _: parts.rebuild(values, parts.frozen),
                *(trainable, frozen, batch, None),
            )
            total, weight, _ = objective.loss(passed)
            return total / weight

        sums.append(jax.value_and_grad(loss)(moved))
    (kept, kept_gradient), (live, live_gradient) = host_copy(sums)
    assert np.isfinite(kept) and abs(kept - np.log(2)) > 1e-3
    assert kept == pytest.approx(live, rel=1e-6)
    for path, gradient in kept_gradient.items():
        np.testing.assert_allclose(gradient, live_gradient[path], rtol=1e-5, atol=1e-7)


def test_a_pair_in_a_row_is_two_texts(config_of):
    """Log-probabilities are those of each text alone, by the plain network."""
    config = config_of()
    parts = build(config)
    batch = parts.objective.examples["train"].batch(np.arange(5), rows=5, length=32)
    network = parts.rebuild(parts.trainable, parts.frozen)
    found = np.asarray(parts.objective.outputs(network, batch))
    plain = load_model(config.model.reference, "causal_lm")
    for row in range(5):
        for segment, at in ((1, 0), (2, 3)):
            (here,) = np.nonzero(batch["segment_ids"][row] == segment)
            logits = plain(batch["input_ids"][row : row + 1, here]).logits[0]
            logs = np.asarray(jax.nn.log_softmax(logits))
            learned = np.flatnonzero(batch["weights"][row, here[:-1]] > 0)
            ids = batch["input_ids"][row, here]
            expected = sum(logs[place, ids[place + 1]] for place in learned)
            assert found[row, at] == pytest.approx(expected, abs=1e-4)
            assert found[row, at + 1] == len(learned)


def test_an_alarm_where_chosen_answers_are_lost(config_of, tmp_path):
    config = config_of(
        training__epochs=3,
        objective__chosen_alarm=0.01,
        objective__beta=5.0,
        optimizer__learning_rate=0.3,
    )
    console = quiet()
    run(config, tmp_path / "run", console)
    assert "Answers that people liked have become less likely by" in console.file.getvalue()


def test_replayed_text_is_read_as_text(config_of, tmp_path, tiny_texts):
    """General text has its own loss, and weighs as much as the pairs."""
    config = config_of(training__epochs=1, penalties__replay=1.0, penalties__source=str(tiny_texts))
    result = run(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first = next(m for m in map(json.loads, lines) if "train/replay" in m)
    # Both are per pair: of a random network, about ln 2 and the log of its vocabulary.
    assert first["train/replay"] == pytest.approx(np.log(64), rel=0.1)
    assert first["train/loss"] == pytest.approx(np.log(2) + first["train/replay"], rel=0.05)
    assert np.isfinite(result.metrics["test/loss"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__max_length": 4}, r"train\.jsonl, line 1: the rejected answer: the first 4 of"),
        ({"data__prompt_field": "question"}, "no field 'question'"),
        ({"data__chosen_field": "better"}, "no field 'better'"),
    ],
)
def test_refused(config_of, fields, message):
    with pytest.raises(ValueError, match=message):
        build(config_of(**fields))


def test_losses_without_reference_ask_for_none(config_of):
    for name in ("orpo", "simpo", "cpo"):
        config = config_of(objective__loss_type=name)
        assert "objective.precompute_ref_log_probs" not in config.fields
        assert Preference(config, config.model.reference).reference() is None
