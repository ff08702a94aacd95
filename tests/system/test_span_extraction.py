"""Finding answers: whole runs, what they keep, and refusals."""

import json
import random

import numpy as np
import pytest
from stopped import whole_and_continued
from tiny import TINY, WORDS, quiet, write_splits

from ftjax.config import base_config, override, validate
from ftjax.evaluation.spans import span_metrics
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.finished import load_finished_run
from ftjax.use.predict import Predictor

SMALL = {
    "retention.enabled": False,
    "training.epochs": 4,
    "data.buckets": (16,),
    "data.doc_stride": 4,
    "objective.max_answer_length": 3,
    "objective.n_best_size": 5,
}


def question(generator, index, *, null_share=0.25):
    """Asks for the name in a text: a word of the first ten and one of the next; some have none."""
    words = generator.choices(WORDS[30:], k=generator.randrange(4, 18))
    name = f"{generator.choice(WORDS[:10])} {generator.choice(WORDS[10:20])}"
    answers = [] if generator.random() < null_share else [name]
    for text in answers:
        words.insert(generator.randrange(len(words) + 1), text)
    context = " ".join(words)
    found = {"text": answers, "answer_start": [context.index(text) for text in answers]}
    return {"id": f"q{index}", "question": WORDS[25], "context": context, "answers": found}


def write(folder, **options):
    generator = random.Random(0)
    counts = {"train": 96, "validation": 30, "test": 31}
    return write_splits(folder, lambda index: question(generator, index, **options), **counts)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def config(tiny_bert, questions):
    files = {"model.reference": str(tiny_bert), "data.source": str(questions)}
    return override(base_config("span_extraction"), TINY | SMALL | files)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    """Folder, result and what was shown."""
    folder, console = tmp_path_factory.mktemp("finished") / "run", quiet()
    return folder, run(config, folder, console), console.file.getvalue()


def rows_of(source, split):
    return list(map(json.loads, (source.parent / f"{split}.jsonl").read_text().splitlines()))


def test_answers_are_found_and_scored(finished, questions):
    folder, result, shown = finished
    assert result.metrics["test/f1"] > 80
    assert result.metrics["test/HasAns_exact"] > 70 and result.metrics["test/NoAns_exact"] > 70
    assert result.metrics["test/f1"] > result.metrics["test/no_answer/f1"] + 20
    assert result.metrics["test/overlapping_sentence/f1"] < 50
    assert "of them without an answer, in" in shown and "windows" in shown
    # What the official script reads, scored.
    said, rows = json.loads((folder / "predictions.json").read_text()), rows_of(questions, "test")
    assert list(said) == [row["id"] for row in rows]
    again = span_metrics([row["answers"]["text"] for row in rows], list(said.values()))
    assert again == {name: result.metrics[f"test/{name}"] for name in again}


def test_predictions_are_those_of_the_test_scores(finished, questions):
    folder, _, _ = finished
    predict, rows = Predictor(folder), rows_of(questions, "test")
    found = predict(rows)
    said = json.loads((folder / "predictions.json").read_text())
    assert [one["answer"] for one in found] == list(said.values())
    for one, row in zip(found, rows, strict=True):
        assert row["context"][one["start"] : one["end"]] == one["answer"]
        assert 0 < one["score"] <= 1
    assert {"(no answer)" in " ".join(predict.objective.describe_prediction(o)) for o in found} == {
        True,
        False,
    }
    assert predict([{"text": rows[0]["question"], "second_text": rows[0]["context"]}]) == found[:1]


def test_the_windows_of_a_long_context_give_one_answer(finished):
    words = [WORDS[40]] * 50 + [WORDS[3], WORDS[12]] + [WORDS[41]] * 50
    found, none = Predictor(finished[0])(
        [
            {"question": WORDS[25], "context": " ".join(words)},
            {"question": WORDS[25], "context": " ".join(words[:50])},
        ]
    )
    assert found["answer"] == f"{WORDS[3]} {WORDS[12]}"
    assert found["start"] == len(" ".join(words[:50])) + 1
    assert none["answer"] == "" and (none["start"], none["end"]) == (0, 0)


def test_stopped_and_started_again(tmp_path, config, monkeypatch):
    few = {"training.max_steps": 4, "training.checkpoint_every": 2, "evaluation.baselines": False}
    config = override(config, few)
    whole_and_continued(config, tmp_path, monkeypatch, batch=4, step=2)


def test_micro_batches_and_devices_make_the_same_step(tmp_path, config):
    losses = []
    for steps, parallel in ((1, "mesh"), (2, "mesh"), (1, "pmap")):
        variant = {"optimizer.accumulation_steps": steps, "training.parallel": parallel}
        settings = {"training.max_steps": 2, "model.dropout": 0.0, "training.log_every": 1}
        settings |= {"evaluation.baselines": False}
        folder = tmp_path / f"{parallel}{steps}"
        run(override(config, variant | settings), folder, quiet())
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        found = [line for line in lines if "train/loss" in line]
        losses.append([(x["train/loss"], x["train/gradient_norm"]) for x in found])
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=2e-5)


def test_a_head_that_is_there_is_kept_and_compared_with(tmp_path, config, finished, tiny_texts):
    loaded = load_finished_run(finished[0])
    loaded.objective.export(loaded.network, tmp_path / "tuned")
    settings = {
        "penalties.kl_to_base": 0.1,
        "penalties.feature_distillation": 0.1,
        "penalties.replay": 0.5,
        "penalties.source": str(tiny_texts),
        "penalties.limit": 8,
        "tuning.method": "lora",
        "model.dropout": 0.0,
        "training.max_steps": 1,
    }
    with pytest.raises(ValueError, match=r"kl_to_base .* has no head for spans"):
        build(override(config, settings))
    settings["model.reference"] = str(tmp_path / "tuned")
    result = run(override(config, settings), tmp_path / "run", quiet())
    # Before tuning, the threshold of the null answer is run_qa's.
    assert result.metrics["test/pretrained/HasAns_exact"] > 50
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (line,) = [line for line in lines if "train/kl_to_base" in line]
    assert line["train/kl_to_base"] == pytest.approx(0.0, abs=1e-6)


def test_without_null_answers_every_question_has_one(tmp_path, config):
    source = write(tmp_path, null_share=0)
    settings = {
        "data.source": str(source),
        "training.max_steps": 1,
        "tuning.method": "linear_probe",
    }
    result = run(override(config, settings), tmp_path / "run", quiet())
    assert not any("NoAns" in name or "no_answer" in name for name in result.metrics)
    found = Predictor(tmp_path / "run")(rows_of(source, "test"))
    assert all(one["answer"] for one in found)


def test_what_cannot_be_found_is_said_before_training(tmp_path, config):
    rows = rows_of(write(tmp_path, null_share=0), "train")
    for row, text in zip(rows, ("a b c d", "x" * 3, "1 2 3"), strict=False):
        row["context"] = f"{row['context']} {text}"
        start = len(row["context"]) - len(text)
        row["answers"] = {"text": [text[:-1]], "answer_start": [start]}
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = override(config, {"data.source": str(tmp_path / "{split}.jsonl")})
    notes = " ".join(build(config).objective.notes)
    assert "3 answers (3.1%) cannot be found exactly" in notes
    assert "1 longer than 3 tokens" in notes and "2 begin or end inside a token" in notes


def test_what_is_refused(tmp_path, config):
    with pytest.raises(ValueError, match="doc_stride = 16 must be below the 16 tokens"):
        validate(override(config, {"data.doc_stride": 16}))
    rows = rows_of(write(tmp_path), "train")
    rows[7]["id"] = rows[3]["id"]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = override(config, {"data.source": str(tmp_path / "{split}.jsonl")})
    with pytest.raises(ValueError, match=r"train\.jsonl, line 8: the id 'q3' .*line 4"):
        build(config)
    build(override(config, {"data.id_field": None}))
