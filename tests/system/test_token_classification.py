"""Tagging words: whole runs, what they keep, and refusals."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY, WORDS, dotted, quiet, write_splits

from ftjax.config import base_config, override
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.finished import load_finished_run
from ftjax.use.predict import Predictor

SMALL = {
    "retention.enabled": False,
    "training.epochs": 6,
    "optimizer.learning_rate": 2e-2,
    "data.stride": 2,
}


def sentence(generator):
    """Names of one or two words: what begins with a word of the first ten goes on with the next."""
    words, tags, size = [], [], generator.randrange(2, 24)
    while len(words) < size:
        if generator.random() < 0.3:
            words += [generator.choice(WORDS[:10]), generator.choice(WORDS[10:20])]
            tags += ["B-NAME", "I-NAME"]
        elif generator.random() < 0.2:
            words.append(generator.choice(WORDS[20:25]))
            tags.append("B-PLACE")
        else:
            words.append(generator.choice(WORDS[30:]))
            tags.append("O")
    return {"tokens": words, "ner_tags": tags}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("sentences"), random.Random(0)
    counts = {"train": 96, "validation": 30, "test": 31}
    return write_splits(folder, lambda _: sentence(generator), **counts)


@pytest.fixture
def config_of(tiny_bert, sentences):
    """Fields -> config."""

    def make(**fields):
        files = {"model.reference": str(tiny_bert), "data.source": str(sentences)}
        return override(base_config("token_classification"), TINY | SMALL | files | dotted(fields))

    return make


def test_names_are_found_scored_and_predicted(tmp_path, config_of):
    console = quiet()
    result = run(config_of(), tmp_path / "run", console)
    assert result.metrics["test/f1"] > 0.95
    assert result.metrics["test/accuracy"] > 0.95
    assert result.metrics["test/most_frequent_tag/f1"] > 0.9
    assert set(result.details["per_class"]) == {"NAME", "PLACE"}
    assert "windows" in console.file.getvalue()
    words = [WORDS[30], WORDS[3], WORDS[12], WORDS[22]]
    predict = Predictor(tmp_path / "run")
    for wrong in ("", 5, None):
        with pytest.raises(ValueError, match="record 1: the words must be a list of texts"):
            predict([{"text": wrong}])
    (found,) = predict([{"tokens": words}])
    assert found["tags"] == ["O", "B-NAME", "I-NAME", "B-PLACE"]
    assert len(found["scores"]) == 4 and min(found["scores"]) > 0.5
    assert predict([{"text": " ".join(words)}]) == [found]
    (tmp_path / "new.conll").write_text("\n".join(words) + f"\n\n{WORDS[31]}\n")
    script = Path(__file__).parents[2] / "scripts" / "predict.py"
    flags = {"run": "run", "file": "new.conll", "conll": "tagged.conll"}
    subprocess.run(
        [sys.executable, script, *(f"--{name}={tmp_path / file}" for name, file in flags.items())],
        check=True,
    )
    lines = [f"{word} {tag}" for word, tag in zip(words, found["tags"], strict=True)]
    tagged = (tmp_path / "tagged.conll").read_text()
    assert tagged == "\n".join([*lines, "", f"{WORDS[31]} O", "", ""])


def test_a_long_sentence_has_a_tag_for_each_word(tmp_path, config_of):
    run(config_of(), tmp_path / "run", quiet())
    words = [WORDS[3], WORDS[12], WORDS[40]] * 20
    (found,) = Predictor(tmp_path / "run")([{"tokens": words}])
    right = sum(a == b for a, b in zip(found["tags"], ["B-NAME", "I-NAME", "O"] * 20, strict=True))
    assert right >= 57

    finished = load_finished_run(tmp_path / "run")
    finished.objective.export(finished.network, tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(fields["id2label"].values()) == ["O", "B-NAME", "I-NAME", "B-PLACE"]
    assert fields["architectures"] == ["BertForTokenClassification"]


@pytest.mark.parametrize("method", ["linear_probe", "lora"])
def test_methods(tmp_path, config_of, method):
    config = config_of(tuning__method=method, training__epochs=2)
    result = run(config, tmp_path / "run", quiet())
    assert 0 < result.metrics["test/accuracy"] <= 1


def test_general_text_is_read_for_its_features(config_of, tiny_texts):
    build(config_of(penalties__replay=0.5, penalties__source=str(tiny_texts)))


def test_tags_that_name_no_entities_have_an_accuracy(tmp_path, config_of, sentences):
    for split in ("train", "validation", "test"):
        lines = (sentences.parent / f"{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        kinds = [{**row, "ner_tags": [tag[0] for tag in row["ner_tags"]]} for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, kinds)))
    source = {"data__source": str(tmp_path / "{split}.jsonl")}
    with pytest.raises(ValueError, match="not in IOB2's form"):
        run(config_of(**source), tmp_path / "refused", quiet())
    config = config_of(evaluation__metric="accuracy", **source)
    result = run(config, tmp_path / "run", quiet())
    assert result.metrics["test/accuracy"] > 0.9
    assert "test/f1" not in result.metrics
