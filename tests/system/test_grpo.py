"""A tiny network learns what is rewarded, from file to result, and goes on where it was stopped."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from stopped import whole_and_continued
from tiny import quiet, write_splits

from ftjax.config import base_config, override, validate
from ftjax.files import read_checked_json
from ftjax.losses.forward import START, forward
from ftjax.models.rollout import NOTHING, log_probabilities
from ftjax.objectives.grpo import Grpo
from ftjax.runs.report import print_result
from ftjax.training.build import build
from ftjax.training.loop import Progress
from ftjax.training.rollouts import make_rollouts
from ftjax.training.run import run
from ftjax.training.step import TrainState
from ftjax.use.chat import Conversation, load_writer_of_run

REWARDS = '''\
def likes(prompts, completions, answer, **columns):
    """A share of the completion's words is the answer."""
    assert len(prompts) == len(completions) == len(answer)
    return [text.split().count(word) / 4 for text, word in zip(completions, answer)]
def short(prompts, completions, **columns):
    return [-0.01 * len(text.split()) for text in completions]
def messages(prompts, completions, **columns):
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    return [float("word1" in message["content"]) for (message,) in completions]
def raises(prompts, completions, **columns):
    raise KeyError("nothing")
'''
TEMPLATE = """\
{% for m in messages %}{{ 'word50 ' if m.role == 'user' else 'word51 ' }}{{ m.content }} [SEP] \
{% endfor %}{% if add_generation_prompt %}word51 {% endif %}"""


def asked(index):
    """The answer is one of two words, and which does not show in the prompt's length."""
    words = " ".join(f"word{(7 * index + step) % 40}" for step in range(1 + 2 * (index % 3)))
    return {"prompt": words, "answer": f"word{45 + index % 2}"}


@pytest.fixture
def config_of(tiny_llama, tmp_path):
    source = write_splits(tmp_path, asked, train=24, validation=6, test=7)
    (tmp_path / "rewards.py").write_text(REWARDS)

    def make(*functions, **fields):
        functions = functions or ("likes",)
        settings = {
            "name": "tiny",
            "model.reference": str(tiny_llama),
            "model.dropout": 0.0,
            "data.source": str(source),
            "data.reward_columns": ("answer",),
            "data.max_prompt_length": 8,
            "data.batch_size": 4,
            "evaluation.batch_size": 4,
            "objective.reward_funcs": tuple(f"{tmp_path}/rewards.py:{name}" for name in functions),
            "objective.num_generations": 4,
            "objective.max_completion_length": 4,
            "optimizer.learning_rate": 1e-2,
            "training.log_every": 1,
            "retention.enabled": False,
        }
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config("grpo"), settings | fields)

    return make


def rolled_out(config, done=0):
    """Parts of a run, and the batch of its first step."""
    parts = build(config)
    state = TrainState(jax.numpy.int32(done), jax.numpy.uint32(0), parts.trainable, None, {})
    prepare = make_rollouts(config.seed, parts, Progress())
    prompts = parts.objective.examples["train"].batch(np.arange(3), rows=4, length=8)
    return parts, prompts, prepare(state, done, prompts)


def loss_of(parts, batch):
    frozen = parts.frozen | {START + path: value for path, value in parts.trainable.items()}

    def network(parameters, key):
        return parts.rebuild(parameters, parts.frozen)

    total, weight, metrics = parts.objective.loss(
        forward(network, parts.trainable, frozen, batch, None)
    )
    return float(total / weight), {name: float(s / w) for name, (s, w) in metrics.items()}


def test_a_run_learns_what_is_rewarded(config_of, tmp_path, tiny_texts):
    config = config_of(
        "likes",
        "short",
        training__epochs=40,
        evaluation__every=60,
        retention__enabled=True,
        retention__source=str(tiny_texts),
    )
    console = quiet()
    result = run(config, tmp_path / "run", console)
    metrics = result.metrics
    assert metrics["test/pretrained/reward"] < 0.1
    assert metrics["test/reward"] > 0.4
    assert metrics["test/rewards/likes"] + metrics["test/rewards/short"] == pytest.approx(
        metrics["test/reward"]
    )
    low, high = result.intervals["test/reward"]
    assert low <= metrics["test/reward"] <= high
    assert {"retention/before", "retention/after"} <= metrics.keys()
    shown = result.details["completions"]
    assert len(shown) == 7
    assert set(shown[0]) == {"prompt", "completion", "reward"}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    last = [step for step in steps if "train/reward" in step][-1]
    assert last["train/reward"] > 0.3
    # What the cache says is what a whole pass says.
    assert last["train/sampling/logp_difference/max"] < 4e-4
    names = {"reward_std", "frac_reward_zero_std", "completions/mean_length", "entropy"}
    assert {f"train/{name}" for name in names} <= last.keys()
    manifest = read_checked_json(tmp_path / "run" / "manifest.json")
    assert len(manifest["datasets_sha256"]["reward functions"]) == 64
    print_result(console, result, "run")
    assert "24 prompts of 3.0 tokens" in console.file.getvalue()
    writer = load_writer_of_run(tmp_path / "run")
    assert Conversation(writer, max_new_tokens=4)


@pytest.mark.parametrize("sampling", ["cached", "exact"])
def test_a_rollout_is_what_the_network_would_say(config_of, sampling):
    parts, prompts, batch = rolled_out(
        config_of(objective__sampling=sampling, objective__temperature=0.7)
    )
    assert batch["input_ids"].shape == (16, 12)
    lengths = np.repeat(prompts["attention_mask"].sum(1), 4)
    for row in range(16):
        real = batch["segment_ids"][row] > 0
        own = batch["input_ids"][row, : lengths[row]]
        np.testing.assert_array_equal(own, prompts["input_ids"][row // 4, : lengths[row]])
        learned = batch["weights"][row] > 0
        if row >= 12:
            # No prompt at all: a row that fills up.
            assert not learned.any()
            continue
        # Each token of the completion, its end included, is predicted by the one before it.
        places = np.arange(lengths[row] - 1, real.sum() - 1)
        np.testing.assert_array_equal(np.flatnonzero(learned), places)
        np.testing.assert_array_equal(
            batch["labels"][row, places], batch["input_ids"][row, places + 1]
        )
    network = parts.rebuild(parts.trainable, parts.frozen)
    logps, _ = log_probabilities(network(batch), batch["labels"], 0.7)
    apart = np.abs(np.asarray(logps) - batch["sampling_logps"])[batch["weights"] > 0]
    assert apart.max() < (1e-6 if sampling == "exact" else 4e-4)
    value, metrics = loss_of(parts, batch)
    assert metrics["clip_ratio/region_mean"] == 0
    # The ratio is 1, so that the loss is the mean advantage of all tokens.
    weights = batch["weights"].sum(1)
    expected = -np.sum(weights * batch["advantages"]) / weights.sum()
    assert value == pytest.approx(expected, abs=1e-6)
    gains = batch["advantages"].reshape(4, 4)
    np.testing.assert_allclose(gains.sum(1), 0, atol=1e-5)


def test_rows_are_drawn_by_step_and_place(config_of):
    """So a prompt's completions differ, and another step's are others."""
    config = config_of()
    first, again, later = (rolled_out(config, done)[2]["input_ids"] for done in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != later).any()
    assert len({tuple(row) for row in first[:4]}) > 1


def test_what_does_not_end_may_be_left_out(config_of):
    _, _, batch = rolled_out(config_of(objective__max_completion_length=2))
    _, _, masked = rolled_out(
        config_of(objective__max_completion_length=2, objective__mask_truncated_completions=True)
    )
    ended = batch["truncated"][:12] == 0
    assert 0 < ended.sum() < 12
    learned = masked["weights"][:12].any(1)
    np.testing.assert_array_equal(learned, ended)
    np.testing.assert_array_equal(batch["advantages"], masked["advantages"])


def test_nothing_stands_behind_an_end(config_of):
    parts, prompts, _ = rolled_out(config_of())
    stops = parts.objective._defaults.stop_token_ids
    rows = {name: np.repeat(array, 40, axis=0) for name, array in prompts.items()}
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(3), n))(np.arange(160))
    found = parts.objective.rollout().outputs(
        parts.rebuild(parts.trainable, parts.frozen), rows, keys
    )
    tokens, logps = np.asarray(found.tokens), np.asarray(found.logps)
    ended = 0
    for row, logs in zip(tokens, logps, strict=True):
        places = np.flatnonzero(np.isin(row, stops))
        if len(places):
            ended += 1
            assert (row[places[0] + 1 :] == NOTHING).all()
        assert (row[: places[0] + 1 if len(places) else None] != NOTHING).all()
        np.testing.assert_array_equal(logs[row == NOTHING], 0.0)
        assert (logs[row != NOTHING] < 0).all()
    assert ended


def test_several_updates_learn_from_what_was_drawn_once(config_of):
    parts, _, batch = rolled_out(config_of(objective__num_iterations=2))
    apart = np.abs(batch["old_logps"] - batch["sampling_logps"])[batch["weights"] > 0]
    assert apart.max() < 4e-4
    noise = np.random.default_rng(0)
    parts.trainable = {
        path: value + 0.3 * noise.normal(size=value.shape).astype(np.float32)
        for path, value in parts.trainable.items()
    }
    _, metrics = loss_of(parts, batch)
    assert metrics["clip_ratio/region_mean"] > 0


def test_the_network_before_tuning_holds_it_back(config_of):
    parts, _, batch = rolled_out(config_of(objective__beta=0.5))
    assert parts.objective.compares_live
    value, metrics = loss_of(parts, batch)
    assert metrics["kl"] == 0
    start = parts.trainable
    frozen = parts.frozen | {START + path: array for path, array in start.items()}
    noise = np.random.default_rng(0)
    moved = {p: v + 0.1 * noise.normal(size=v.shape).astype(np.float32) for p, v in start.items()}

    def network(parameters, key):
        return parts.rebuild(parameters, parts.frozen)

    total, weight, metrics = parts.objective.loss(forward(network, moved, frozen, batch, None))
    kl = float(metrics["kl"][0] / metrics["kl"][1])
    assert kl > 0
    assert float(total / weight) == pytest.approx(value + 0.5 * kl, abs=1e-5)


@pytest.mark.parametrize(("updates", "batch", "step"), [(1, 4, 2), (3, 6, 4)])
def test_stopped_and_started_again_ends_with_the_same_bits(
    config_of, tmp_path, monkeypatch, updates, batch, step
):
    """Also between the updates that learn from one rollout."""
    config = config_of(
        training__epochs=1, objective__num_iterations=updates, evaluation__every=step
    )
    whole_and_continued(config, tmp_path, monkeypatch, batch=batch, step=step)


def test_messages_are_asked_in_the_template_and_answered_in_messages(config_of, tmp_path):
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    for split, count in (("train", 8), ("validation", 4), ("test", 5)):
        rows = [{"prompt": [{"role": "user", "content": f"word{n}"}]} for n in range(count)]
        (tmp_path / f"said_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = config_of(
        "messages",
        data__source=str(tmp_path / "said_{split}.jsonl"),
        data__reward_columns=(),
        data__chat_template=str(tmp_path / "chat.jinja"),
        training__max_steps=1,
    )
    result = run(config, tmp_path / "run")
    assert 0 <= result.metrics["test/reward"] <= 1


@pytest.mark.parametrize(
    ("functions", "fields", "message"),
    [
        (("raises",), {}, "The reward function raises of .* raised KeyError: 'nothing'"),
        (("likes",), {"data__reward_columns": ()}, "raised TypeError: .*'answer'"),
        (("missing",), {}, "has no function 'missing'"),
        (("likes",), {"data__reward_columns": ("wrong",)}, "no field 'wrong'"),
        (
            ("likes",),
            {"data__max_prompt_length": 4},
            r"train\.jsonl, line 3: .* has 5 tokens",
        ),
        (("likes",), {"objective__reward_weights": (1.0, 2.0)}, "has 2 numbers for 1 functions"),
        (("likes",), {"data__reward_columns": ("prompts",)}, "names 'prompts', which reward"),
        (("likes",), {"objective__max_completion_length": 9999}, "do not fit the .* positions"),
    ],
)
def test_refused(config_of, tmp_path, functions, fields, message):
    config = config_of(*functions, **fields)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        validate(config)
        run(config, tmp_path / "run")


def test_bad_prompts(config_of, tmp_path):
    bad = [
        {"prompt": " ", "answer": "a"},
        {"prompt": 5, "answer": "a"},
        {"prompt": [{"role": "assistant", "content": "word1"}], "answer": "a"},
    ]
    for number, record in enumerate(bad):
        for split in ("train", "validation", "test"):
            rows = [asked(index) for index in range(12 + len(split))]
            if split == "train":
                rows.insert(3, record)
            (tmp_path / f"bad{number}_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = config_of(data__source=str(tmp_path / f"bad{number}_{{split}}.jsonl"))
        with pytest.raises(ValueError, match=r"_train\.jsonl, line 4: "):
            Grpo(config, Path(config.model.reference)).read()
        config = override(config, {"data.on_bad_record": "skip"})
        objective = Grpo(config, Path(config.model.reference))
        objective.read()
        assert objective.left_out == 1


def test_devices_draw_what_one_draws(config_of, tmp_path):
    """A mesh of all devices, and pmap over them: the same rewards, step by step."""
    logs = []
    for parallel in ("mesh", "pmap"):
        config = config_of(
            training__parallel=parallel,
            training__max_steps=2,
            training__epochs=2,
            data__batch_size=8,
            evaluation__batch_size=8,
            objective__num_iterations=2,
        )
        run(config, tmp_path / parallel)
        lines = (tmp_path / parallel / "metrics.jsonl").read_text().splitlines()
        logs.append([step for step in map(json.loads, lines) if "train/reward" in step])
    for mesh, pmap in zip(*logs, strict=True):
        for name in ("train/reward", "train/loss", "train/gradient_norm"):
            assert mesh[name] == pytest.approx(pmap[name], abs=1e-4), name
