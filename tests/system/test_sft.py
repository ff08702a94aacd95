"""Chats learned by a tiny network, from file to result, answers and export."""

import functools
import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from stopped import whole_and_continued
from tiny import quiet

from ftjax.config import base_config, override, validate
from ftjax.data.asked import draw_asked
from ftjax.data.dialogues import read_chats
from ftjax.models.heads import LanguageModel
from ftjax.objectives.sft import SupervisedFineTuning
from ftjax.pretrained.load import load_model
from ftjax.runs.report import print_result
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.chat import Conversation, load_writer, load_writer_of_run
from ftjax.use.finished import load_finished_run
from ftjax.use.predict import Predictor

TEMPLATE = """\
{% for m in messages %}{{ 'word50 ' if m.role == 'user' else 'word51 ' }}{{ m.content }} [SEP] \
{% endfor %}{% if add_generation_prompt %}word51 {% endif %}"""


def answer_to(number):
    """One to four words, which follow from the question."""
    return " ".join(f"word{10 + number + step}" for step in range(1 + number % 4))


def chat(numbers):
    messages = []
    for number in numbers:
        messages.append({"role": "user", "content": f"word{number}"})
        messages.append({"role": "assistant", "content": answer_to(number)})
    return {"messages": messages}


@pytest.fixture(scope="module")
def talkative(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("talkative") / "llama"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("chats"), np.random.default_rng(0)
    for split, count in (("train", 48), ("validation", 9), ("test", 10)):
        sizes = random.integers(1, 4, count)
        lines = [json.dumps(chat(random.integers(0, 8, size).tolist())) for size in sizes]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder / "{split}.jsonl"


@pytest.fixture
def config_of(talkative, chats, tiny_texts):
    """Fields -> config."""

    def make(**fields):
        settings = {
            "name": "tiny",
            "model.reference": str(talkative),
            "data.source": str(chats),
            "data.max_length": 32,
            "data.batch_size": 8,
            "evaluation.batch_size": 8,
            "optimizer.learning_rate": 2e-2,
            "training.log_every": 1,
            "retention.enabled": False,
            "retention.source": str(tiny_texts),
        }
        if not fields.get("retention__enabled"):
            del settings["retention.source"]
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config("sft"), settings | fields)

    return make


def logged(folder, name):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_learns_answers_says_how_well_and_exports(tmp_path, config_of):
    console = quiet()
    config = config_of(
        training__epochs=25,
        evaluation__every=75,
        evaluation__answers=9,
        generation__max_new_tokens=6,
        retention__enabled=True,
    )
    result = run(config, tmp_path / "run", console)
    metrics = result.metrics
    assert metrics["test/mean_token_accuracy"] > 0.9
    assert metrics["test/loss"] < 0.3 * metrics["test/pretrained/loss"]
    assert metrics["test/perplexity"] == pytest.approx(np.exp(metrics["test/loss"]))
    assert 0 < metrics["test/entropy"] < metrics["test/pretrained/entropy"]
    assert metrics["retention/change"] < 0
    examples = build(config).objective.examples["test"]
    learned = examples.text.supervised.sum()
    assert metrics["test/share_supervised"] == pytest.approx(learned / len(examples.token_ids()))
    text = Path(config.data.source.format(split="test")).read_text()
    lines = map(json.loads, text.splitlines())
    said = [m["content"] for line in lines for m in line["messages"] if m["role"] == "assistant"]
    # Each word and the space before it.
    size = sum(len(text.encode()) + 1 for text in said)
    bits = metrics["test/loss"] * learned / np.log(2) / size
    assert metrics["test/bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    told = console.file.getvalue()
    assert "train.jsonl, line 1, as it is read" in told and "⟦word1" in told
    assert "train: 48 records" in told and "tokens left out" not in told
    _check_answers(result)
    share = logged(tmp_path / "run", "train/share_supervised")
    assert 0.3 < min(share) <= max(share) < 0.8
    conversation = Conversation(load_writer_of_run(tmp_path / "run"))
    assert conversation.answer("word3") == answer_to(3)
    with pytest.raises(ValueError, match=r"scripts/chat\.py talks with it"):
        Predictor(tmp_path / "run")([{"text": "word3"}])
    finished = load_finished_run(tmp_path / "run")
    finished.objective.export(finished.network, tmp_path / "export")
    assert Conversation(load_writer(str(tmp_path / "export"))).answer("word3") == answer_to(3)


def _check_answers(result):
    answers = result.details["answers"]
    assert len(answers) == 9
    expected = [answer_to(int(answer["question"].removeprefix("word"))) for answer in answers]
    assert [answer["person"] for answer in answers] == expected
    assert sum(answer["after"] == answer["person"] for answer in answers) >= 8
    assert not any(answer["before"] == answer["person"] for answer in answers)
    metrics = result.metrics
    assert metrics["tone/before"] < metrics["tone/after"]
    assert metrics["tone/after"] == pytest.approx(metrics["tone/people"], abs=0.12)
    assert metrics["answers/chrf_after"] > 90 > metrics["answers/chrf_before"]
    assert result.intervals["test/loss"][1] < result.intervals["test/pretrained/loss"][0]
    console = Console(file=io.StringIO(), width=80)
    print_result(console, result, "runs/tiny")
    told = console.file.getvalue()
    assert f"asked    │ {answers[0]['question']}" in told and "5 of the answers" in told
    assert "95 % interval" in told and max(map(len, told.splitlines())) <= 80


def test_what_asks_for_answers_is_what_chat_asks_with(config_of, talkative):
    objective = SupervisedFineTuning(
        config_of(evaluation__answers=100, data__max_length=16), talkative
    )
    objective.read()
    asked = objective.answers().asked["test"]
    draw = functools.partial(
        draw_asked,
        read_chats(objective.load("test", {"messages": "messages"}), "messages"),
        objective.tokenizer,
        objective.template,
        str,
        count=100,
        seed=objective.config.data.split_seed,
    )
    assert draw(most=16) == asked
    # All chats but those that ask for nothing within so many tokens.
    assert 5 < len(asked) < 10 and max(len(one.prompt) for one in asked) <= 16
    assert any(f"test: {len(asked)} answers are written" in note for note in objective.notes)
    assert draw(most=3) == []
    alone = next(one for one in asked if len(one.prompt) == 4)
    message = {"role": "user", "content": alone.question}
    assert Conversation(load_writer(str(talkative)))._prompt([message]) == alone.prompt


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"evaluation__answers": 2, "data__format": "text"}, "ask for none"),
        ({"generation__max_new_tokens": 6}, "evaluation.answers"),
        (
            {"evaluation__answers": 9, "generation__max_new_tokens": 30},
            "do not fit the 32 positions",
        ),
    ],
)
def test_answers_that_cannot_be_written(config_of, fields, problem):
    with pytest.raises((ValueError, AttributeError, KeyError), match=problem):
        validate(config := config_of(**fields))
        build(config)


def test_micro_batches_devices_and_packing_make_the_same_step(tmp_path, config_of):
    """Chats with unequal numbers of tokens to learn."""
    found = []
    for steps, parallel in ((1, "mesh"), (4, "mesh"), (2, "pmap")):
        config = config_of(
            optimizer__accumulation_steps=steps,
            optimizer__schedule="constant",
            training__parallel=parallel,
            training__max_steps=3,
            data__batch_size=16,
        )
        folder = tmp_path / f"{parallel}{steps}"
        run(config, folder, quiet())
        names = ("loss", "gradient_norm", "mean_token_accuracy", "entropy")
        found.append([logged(folder, f"train/{name}") for name in names])
    assert np.shape(found) == (3, 4, 3)
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=2e-5)


def test_packed_rows_have_the_loss_of_the_chats_alone(config_of, talkative):
    network = LanguageModel(load_model(talkative, "causal_lm"))
    sums = {}
    for strategy, fields in PACKINGS.items():
        objective = SupervisedFineTuning(config_of(**fields), talkative)
        examples = objective.read_split("train")
        rows = len(examples.rows)
        batch = examples.batch(np.arange(rows), rows=rows + 1, length=32)
        sums[strategy] = np.asarray(jax.jit(objective.outputs)(network, batch))
        assert (sums[strategy][-1] == 0).all()
    assert len(sums["bfd"]) < len(sums["alone"])
    for strategy in ("bfd", "bfd_split"):
        np.testing.assert_allclose(sums[strategy].sum(0), sums["alone"].sum(0), rtol=1e-5)
    # In order: what begins a row anew has nothing before it.
    assert 0.8 < sums["wrapped"][:, 1].sum() / sums["alone"][:, 1].sum() < 1


PACKINGS = {
    "alone": {},
    **{
        name: {"data__packing": True, "data__packing_strategy": name}
        for name in ("bfd", "bfd_split", "wrapped")
    },
}


def test_stopped_and_started_again_ends_with_the_same_bits(tmp_path, config_of, monkeypatch):
    config = config_of(
        training__epochs=2,
        data__packing=True,
        evaluation__every=2,
        evaluation__answers=2,
        generation__max_new_tokens=4,
    )
    whole_and_continued(config, tmp_path, monkeypatch, batch=5, step=4)


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_methods_and_penalties(tmp_path, config_of, tiny_texts, method):
    config = config_of(
        tuning__method=method,
        **({"tuning__virtual_tokens": 4} if method == "prompt" else {}),
        data__max_length=28,
        training__max_steps=2,
        penalties__kl_to_base=0.1,
        penalties__replay=0.5,
        penalties__source=str(tiny_texts),
        penalties__split="train",
    )
    result = run(config, tmp_path / "run", quiet())
    assert result.metrics["test/loss"] != result.metrics["test/pretrained/loss"]
    assert logged(tmp_path / "run", "train/kl_to_base")[0] == pytest.approx(0.0, abs=1e-5)


def write(tmp_path, *records):
    for number, split in enumerate(("train", "validation", "test")):
        # The splits must differ.
        lines = [json.dumps(record) for record in records * (number + 1)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "{split}.jsonl")


LONG = {
    "messages": [
        {"role": "user", "content": "word1 " * 40},
        {"role": "assistant", "content": "word2"},
    ]
}


def test_what_is_too_long(tmp_path, config_of):
    source = write(tmp_path, chat([1, 2]), LONG)
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: the first 32 of its 45 tokens h"):
        build(config_of(data__source=source))
    # The rest of it is a piece of its own; the first piece teaches nothing.
    config = config_of(data__source=source, **PACKINGS["bfd_split"])
    objective = build(config).objective
    assert [piece.tolist() for piece in objective.examples["train"].pieces] == [[0, 15], [47, 60]]
    assert any("1 longer than 32 tokens were divided" in note for note in objective.notes)
    late = {"messages": [*chat([3])["messages"], *LONG["messages"]]}
    config = config_of(data__source=write(tmp_path, chat([1, 2]), late))
    notes = build(config).objective.notes
    assert any("longer than 32 tokens were cut" in note for note in notes)


def test_the_same_chat_in_every_form(tmp_path, config_of, talkative):
    ask, say = ({"role": r, "content": c} for r, c in (("user", "word1"), ("assistant", "word2")))
    turns = [{"from": "human", "value": "word1"}, {"from": "gpt", "value": "word2"}]
    forms = {
        "messages": {"messages": [ask, say]},
        "sharegpt": {"conversations": turns},
        "prompt_completion": {"prompt": [ask], "completion": [say]},
        "alpaca": {"instruction": "word1", "input": "", "output": "word2"},
    }
    for form, record in forms.items():
        config = config_of(data__source=write(tmp_path, record), data__format=form)
        text = SupervisedFineTuning(config, talkative).read_split("train").text
        # word50 word1 [SEP] word51 word2 [SEP]
        assert text.input_ids.tolist() == [54, 5, 3, 55, 6, 3]
        assert text.supervised.tolist() == [0, 0, 0, 0, 1, 1]
    config = config_of(
        data__source=write(tmp_path, forms["messages"]), objective__assistant_only_loss=False
    )
    assert SupervisedFineTuning(config, talkative).read_split("train").text.supervised.all()
    pair = {"prompt": "word1", "completion": " word2"}
    config = config_of(data__source=write(tmp_path, pair), data__format="prompt_completion")
    objective = SupervisedFineTuning(config, talkative)
    text = objective.read_split("train").text
    assert (text.input_ids.tolist(), text.supervised.tolist()) == ([5, 6, 3], [0, 1, 1])
    assert "prompts are texts as they are" in objective.notes[0]
    config = config_of(data__source=write(tmp_path, {"text": "word1 word2"}), data__format="text")
    objective = SupervisedFineTuning(config, talkative)
    assert objective.read_split("train").text.input_ids.tolist() == [5, 6, 3]
    assert len(objective.notes) == 1


def test_what_cannot_be_learned(tmp_path, config_of, tiny_llama):
    alone = {"messages": [{"role": "user", "content": "word1"}]}
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: no turn of the assistant answers"):
        build(config_of(data__source=write(tmp_path, chat([1]), alone)))
    with pytest.raises(FileNotFoundError, match=r"data\.chat_template: there is no file mine"):
        build(config_of(data__chat_template="mine.jinja"))
    with pytest.raises(ValueError, match="has no chat template"):
        build(config_of(model__reference=str(tiny_llama)))
    form = {"data__format": "prompt_completion"}
    pairs = [{"prompt": f"word{n}", "completion": f"word{n + 1}"} for n in range(3)]
    whole = {"prompt": "", "completion": "word3"}
    with pytest.raises(ValueError, match=r"line 4: all of its tokens.*completion_only_loss is to"):
        build(config_of(data__source=write(tmp_path, *pairs, whole), **form))
    objective = build(
        config_of(
            data__source=write(tmp_path, *pairs, whole),
            objective__completion_only_loss=False,
            **form,
        )
    ).objective
    assert objective.examples["train"].text.supervised.all()
    with pytest.raises(ValueError, match=r"read only with data\.format"):
        config_of(objective__completion_only_loss=False)
    with pytest.raises(ValueError, match=r"read only with data\.packing = True"):
        config_of(data__packing_strategy="bfd")


def test_a_template_of_ones_own(tmp_path, config_of, tiny_llama):
    """A network that was never made for chats, and what is exported of it."""
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    config = config_of(
        model__reference=str(tiny_llama),
        data__chat_template=str(tmp_path / "mine.jinja"),
        tuning__method="lora",
        training__max_steps=2,
    )
    run(config, tmp_path / "run", quiet())
    (tmp_path / "mine.jinja").unlink()
    finished = load_finished_run(tmp_path / "run")
    finished.objective.export_adapter(finished.network, tmp_path / "adapter")
    writers = [
        load_writer_of_run(tmp_path / "run"),
        load_writer(str(tiny_llama), adapter=tmp_path / "adapter"),
    ]
    for writer in writers:
        assert writer.template.text == TEMPLATE
    dated = "{{ strftime_now('word') }} " + TEMPLATE
    (tmp_path / "endless.jinja").write_text(dated.replace("[SEP]", "word52"))
    changed = {"data.chat_template": str(tmp_path / "endless.jinja")}
    notes = build(override(config, changed)).objective.notes
    assert any("write the date of today" in note for note in notes)
    assert any("([SEP]) is learned: a finished network will not" in n for n in notes)
