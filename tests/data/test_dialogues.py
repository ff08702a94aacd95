"""Forms in which chats are published, and records that have none."""

import json

import pytest

from ftjax.data.chat import Dialogue
from ftjax.data.dialogues import Chat, Plain, read_chats
from ftjax.data.sources import load_records

ASK = {"role": "user", "content": "One?"}
SAY = {"role": "assistant", "content": "Two."}
TOOL = {"type": "function", "function": {"name": "add"}}


def read(tmp_path, form, *rows, **fields):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    fields = fields or {name: name for name in rows[0]}
    return read_chats(load_records(str(path), split="", fields=fields), form)


def test_messages(tmp_path):
    rows = [
        {"messages": [ASK, SAY], "tools": None},
        {"messages": json.dumps([ASK, SAY]), "tools": json.dumps([TOOL])},
        {"messages": [{**ASK, "content": [{"type": "text", "text": "One?"}]}, SAY], "tools": []},
        {
            "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": []}],
            "tools": None,
        },
    ]
    found = read(tmp_path, "messages", *rows)
    assert found[0] == found[2] == Chat(Dialogue([ASK, SAY]))
    assert found[1] == Chat(Dialogue([ASK, SAY], [TOOL]))
    assert found[3].dialogue.messages[1]["content"] is None


def test_sharegpt(tmp_path):
    said = [("system", "s"), ("human", "One?"), ("gpt", "Two."), ("observation", "3")]
    row = {"conversations": [{"from": name, "value": value} for name, value in said]}
    (found,) = read(tmp_path, "sharegpt", row)
    assert [m["role"] for m in found.dialogue.messages] == ["system", "user", "assistant", "tool"]
    assert found.dialogue.messages[1] == ASK and found.first == 0
    row["conversations"][2]["weight"] = 0
    (found,) = read(tmp_path, "sharegpt", row)
    assert [m.get("weight") for m in found.dialogue.messages] == [None, None, 0, None]


def test_prompts_and_completions(tmp_path):
    rows = [
        {"prompt": [ASK], "completion": [SAY]},
        {"prompt": "One? ", "completion": '[{"two": 2}]'},
    ]
    found = read(tmp_path, "prompt_completion", *rows)
    assert found == [Chat(Dialogue([ASK, SAY]), 1), Plain("One? ", '[{"two": 2}]')]


def test_alpaca(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1, 1", "output": "Two."},
        {"instruction": "One?", "input": "", "output": "Two."},
        {"instruction": "One?", "input": None, "output": "Two."},
    ]
    first, second, third = read(tmp_path, "alpaca", *rows)
    assert first.dialogue.messages == [{"role": "user", "content": "Add.\n\n1, 1"}, SAY]
    assert second == third == Chat(Dialogue([ASK, SAY]), 1)
    names = {"instruction": "instruction", "output": "output"}
    assert read(tmp_path, "alpaca", *rows, **names)[1] == second


def test_texts(tmp_path):
    assert read(tmp_path, "text", {"text": "One. Two."}) == [Plain("", "One. Two.")]


@pytest.mark.parametrize(
    ("form", "row", "sentence"),
    [
        ("messages", {"messages": "One?"}, "messages is 'One\\?', which is not a list"),
        ("messages", {"messages": {"role": "user"}}, "which is not a list"),
        ("messages", {"messages": [ASK, "Two."]}, "turn 2 of messages needs a role"),
        (
            "messages",
            {"messages": [{"role": "user", "content": 5}]},
            r"turn 1 \(user\): its conten",
        ),
        (
            "messages",
            {"messages": [ASK, {**SAY, "weight": -1}]},
            r"turn 2 \(assistant\) has the weight -1; it may be 0 \(not learned\) or 1",
        ),
        ("messages", {"messages": [ASK], "tools": "add"}, "tools is 'add', which is not a list"),
        ("sharegpt", {"conversations": [{"from": "gpt"}]}, "turn 1 .*needs from and value"),
        (
            "sharegpt",
            {"conversations": [{"from": "bot", "value": "x"}]},
            "turn 1 is from 'bot'; known are human, user",
        ),
        ("prompt_completion", {"prompt": "a", "completion": [SAY]}, "must be both texts, or both"),
        ("prompt_completion", {"prompt": "a", "completion": " "}, "the completion is empty"),
        (
            "prompt_completion",
            {"prompt": [ASK], "completion": [{**SAY, "content": ""}]},
            "the completion is empty",
        ),
        (
            "alpaca",
            {"instruction": "a", "input": 3, "output": "b"},
            "input is 3, which is not a te",
        ),
        ("alpaca", {"instruction": "a", "output": ""}, "the output is empty"),
        ("text", {"text": "\n"}, "the text is empty"),
        ("text", {"text": ["a"]}, "which is not a text"),
    ],
)
def test_a_record_that_has_no_such_form_is_named(tmp_path, form, row, sentence):
    good = {
        "messages": [ASK, SAY],
        "conversations": [{"from": "human", "value": "x"}],
        "prompt": "a",
        "completion": "b",
        "instruction": "a",
        "input": "",
        "output": "b",
        "text": "a",
        "tools": [],
    }
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 2: .*" + sentence):
        read(tmp_path, form, {name: good[name] for name in row}, row)
