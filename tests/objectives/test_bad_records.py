"""Records that cannot be learned from, of every objective: refused with their line, or counted."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny import TINY, WORDS, write_subword_tokenizer

from ftjax.config import base_config, override, validate
from ftjax.objectives import OBJECTIVES
from ftjax.training.run import run

NO_JSON = '{"text": "word'
TEMPLATE = """\
{% for m in messages %}{{ m.role + ' ' + m.content + ' [SEP] ' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"""


def text_and(**answers):
    def row(index):
        words = [WORDS[index % 50], WORDS[index % 7], WORDS[index % 11]]
        return {"text": " ".join(words)} | {n: of(index) for n, of in answers.items()}

    return row


def labelled(index):
    return "ab"[index % 2]


def tagged(index):
    return {"tokens": [WORDS[index % 50], WORDS[index % 7]], "ner_tags": ["O", "B-X"]}


def asked(index):
    answers = {"text": [WORDS[index % 7]], "answer_start": [0]}
    context = f"{WORDS[index % 7]} {WORDS[index % 50]}"
    return {"id": index, "question": WORDS[9], "context": context, "answers": answers}


def paired(index):
    return {"source": f"{WORDS[index % 50]} {WORDS[index % 7]}", "target": WORDS[index % 11]}


def said(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


def chatted(index):
    return {"messages": said(WORDS[index % 50], WORDS[index % 7], WORDS[index % 11], WORDS[9])}


def preferred(index):
    answers = {
        name: [{"role": "assistant", "content": WORDS[(index + by) % 50]}]
        for name, by in (("chosen", 1), ("rejected", 2))
    }
    return {"prompt": said(WORDS[index % 7]), **answers}


# Objective -> a good record of a number, and bad ones (what changes of it, or a line as it is).
CASES = {
    "classification": (text_and(label=labelled), [{"label": ""}, {"label": None}, {"text": 5}]),
    "multi_label": (
        text_and(label=lambda index: ["a", "b"][: index % 3]),
        [{"label": "a, b"}, {"label": [0.5]}, {"label": None}, {"text": ["a"], "label": ["z"]}],
    ),
    "regression": (text_and(label=lambda index: index % 5), [{"label": "many"}, {"text": None}]),
    "ordinal": (text_and(label=lambda index: index % 3), [{"label": [1]}, NO_JSON]),
    "causal_lm": (text_and(), [{"text": ["a"]}, {"text": None}, "[]", NO_JSON]),
    "sft": (
        chatted,
        [
            {"messages": said("word1")},
            {"messages": said("word1", " ")},
            {"messages": said("word1 " * 20, "word2")},
            {"messages": [{"role": "user", "content": 5}, *said("word1", "word2")]},
            {"messages": None},
            NO_JSON,
        ],
    ),
    "preference": (
        preferred,
        [
            {"chosen": said("a", "word1")[1:], "rejected": said("a", "word1")[1:]},
            {"chosen": said("a", " ")[1:]},
            {"prompt": said("word1 " * 20)},
            {"chosen": None},
        ],
    ),
    "kto": (
        lambda index: {
            "prompt": said(WORDS[index % 7]),
            "completion": [{"role": "assistant", "content": WORDS[index % 50]}],
            "label": index % 2 == 0,
        },
        [
            {"label": "good"},
            {"label": None},
            {"prompt": []},
            {"completion": said("a", " ")[1:]},
        ],
    ),
    "reward": (
        preferred,
        [
            {"chosen": said("a", "word1")[1:], "rejected": said("a", "word1")[1:]},
            {"rejected": said("a", " ")[1:]},
            {"prompt": said("word1 " * 20)},
        ],
    ),
    "masked_lm": (text_and(), [{"text": 5}, {"text": None}, {"text": "\ud83d"}]),
    "token_classification": (
        tagged,
        [{"tokens": []}, {"ner_tags": ["O"]}, {"ner_tags": [1, 2]}, {"tokens": None}],
    ),
    "seq2seq": (
        paired,
        [{"source": " "}, {"target": ""}, {"target": 5}, {"source": ["a"]}, {"target": None}],
    ),
    "embedding": (
        lambda index: {"anchor": WORDS[index % 50], "positive": f"{WORDS[index % 7]} word9"},
        [{"anchor": " "}, {"positive": None}, {"anchor": 5}],
    ),
    "setfit": (text_and(label=labelled), [{"label": ""}, {"label": None}, {"text": 5}]),
    "span_extraction": (
        asked,
        [
            {"answers": {"text": ["word"], "answer_start": [3]}},
            {"answers": {"text": ["word1"], "answer_start": [99]}},
            {"question": f"{WORDS[0]} " * 20},
            {"id": 3},
        ],
    ),
}
CHATS = ("sft", "preference", "kto", "reward")
# Of a bad record in the validation split only: it was never seen in training.
UNSEEN = {
    "classification": {"label": "c"},
    "setfit": {"label": "c"},
    "multi_label": {"label": ["c"]},
    "ordinal": {"label": 9},
    "token_classification": {"ner_tags": ["O", "B-Y"]},
}


def line_of(good, index, bad):
    if isinstance(bad, str):
        return bad
    return json.dumps(good(index) | bad)


def write(folder, name, bad, unseen=None, counts=(40, 30, 30)):
    """A file for each split, with bad records among the good ones of training and validation."""
    good = CASES[name][0]
    folder.mkdir()
    for at, (split, count) in enumerate(zip(("train", "validation", "test"), counts, strict=True)):
        lines = [json.dumps(good(100 * at + index)) for index in range(count)]
        for number, changes in enumerate(bad if split == "train" else ()):
            lines.insert(7 * number + 7, line_of(good, 100 * at + 50 + number, changes))
        if unseen is not None and split == "validation":
            lines.insert(4, line_of(good, 100 * at + 50, unseen))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return str(folder / "{split}.jsonl")


@pytest.fixture
def objective_of(tiny_bert, tiny_llama, tiny_t5, tmp_path):
    """(name, source, fields) -> objective, not read yet."""

    def make(name, source, **fields):
        folders = dict.fromkeys(("causal_lm", *CHATS), tiny_llama) | {"seq2seq": tiny_t5}
        folder = folders.get(name, tiny_bert)
        if name == "masked_lm":
            (folder := tmp_path / "masked").mkdir(exist_ok=True)
            write_subword_tokenizer(folder)
        settings = {"model.reference": str(folder), "data.source": source}
        settings |= {n.replace("__", "."): v for n, v in fields.items()}
        settings |= {n: v for n, v in TINY.items() if n != "data.buckets"}
        config = base_config(name)
        for field, small in (("data.buckets", (16,)), ("data.stride", 2), ("data.doc_stride", 2)):
            if field in config.fields:
                settings[field] = small
        if name in CHATS:
            (tmp_path / "chat.jinja").write_text(TEMPLATE)
            settings |= {"data.chat_template": str(tmp_path / "chat.jinja")}
            settings |= {"data.max_length": 16}
        config = override(config, settings)
        validate(config)
        return OBJECTIVES[name](config, Path(folder))

    return make


# Read no file for each split, need functions or see images: tests/system has theirs.
OTHERS = {"recommendation", "grpo", "image_classification"}


def test_every_objective_is_tried():
    assert set(CASES) | OTHERS == set(OBJECTIVES)


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_learned_from_is_refused_or_left_out(tmp_path, objective_of, name):
    bad, unseen = CASES[name][1], UNSEEN.get(name)
    source = write(tmp_path / "all", name, bad, unseen)
    clean = objective_of(name, write(tmp_path / "good", name, []))
    clean.read()
    for changes in bad:
        one = write(tmp_path / f"one{bad.index(changes)}", name, [changes])
        with pytest.raises(ValueError, match=r"train\.jsonl, line 8\b"):
            objective_of(name, one).read()

    objective = objective_of(name, source, data__on_bad_record="skip")
    objective.read()
    prints = [{n: e.fingerprint for n, e in o.examples.items()} for o in (objective, clean)]
    assert prints[0] == prints[1]
    assert objective.facts == clean.facts
    assert objective.left_out == len(bad) + (unseen is not None)
    told = [note for note in objective.notes if "left out" in note]
    assert "train.jsonl, line" in " ".join(told)
    assert sum(int(note.split(": ", 1)[1].split(" ")[0]) for note in told) == objective.left_out
    # Nothing is told twice, nor of what was left out.
    others = [note for note in objective.notes if note not in told]
    assert others == [note for note in clean.notes if "left out" not in note]


def test_too_many_are_refused(tmp_path, objective_of):
    skip = {"data__on_bad_record": "skip"}
    bad = [{"label": ""}] * 5
    with pytest.raises(ValueError, match=r"train: 5 of 45 .* too many .*train\.jsonl, line 8: the"):
        objective_of("classification", write(tmp_path / "a", "classification", bad), **skip).read()
    bad = [{"label": None}] * 5
    with pytest.raises(ValueError, match=r"5 of 45 .* too many .*line 8: the field 'label' is nu"):
        objective_of("classification", write(tmp_path / "b", "classification", bad), **skip).read()
    bad = [{"label": "", "text": 5}] * 3
    source = write(tmp_path / "c", "classification", bad, counts=(0, 3, 3))
    with pytest.raises(ValueError, match="3 of 3 records cannot be learned from, too many"):
        objective_of("classification", source, **skip).read()


def test_what_is_wrong_with_all_records_is_refused_all_the_same(tmp_path, objective_of):
    skip = {"data__on_bad_record": "skip"}
    source = write(tmp_path / "a", "classification", [])
    with pytest.raises(ValueError, match="no field 'stars'"):
        objective_of("classification", source, data__label_field="stars", **skip).read()
    # The only record of a second class cannot be learned from.
    rows = [{"text": WORDS[n], "label": "a"} for n in range(40)] + [{"text": 5, "label": "b"}]
    (tmp_path / "a" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"single label \['a'\]"):
        objective_of("classification", source, **skip).read()


def test_records_of_one_file_are_left_out_before_it_is_divided(tmp_path, objective_of):
    rows = [CASES["classification"][0](index) for index in range(100)]
    rows[11]["label"] = None
    rows[12]["label"] = ""
    (tmp_path / "all.csv").write_text(
        "text,label\n" + "\n".join(f"{row['text']},{row['label'] or 'NaN'}" for row in rows)
    )
    source = str(tmp_path / "all.csv")
    with pytest.raises(ValueError, match="line 13: the field 'label' is 'NaN'"):
        objective_of("classification", source).read()
    objective = objective_of("classification", source, data__on_bad_record="skip")
    objective.read()
    assert sum(len(examples.lengths) for examples in objective.examples.values()) == 98
    assert objective.left_out == 2


def test_the_count_is_shown_and_in_the_result(tmp_path, objective_of):
    source = write(tmp_path / "a", "classification", [{"label": ""}, {"label": None}])
    config = objective_of("classification", source, data__on_bad_record="skip").config
    settings = {"training.max_steps": 1, "retention.enabled": False, "evaluation.baselines": False}
    console = Console(file=io.StringIO(), width=400)
    result = run(override(config, settings), tmp_path / "run", console)
    assert result.details["records_left_out"] == 2
    told = "train: 1 of 41 records cannot be learned from and are left out; the first: "
    assert told in console.file.getvalue() and told in " ".join(result.notes)
