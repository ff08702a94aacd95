"""Chat templates rendered as transformers renders them, and what no template may do unseen."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import jinja2
import pytest
import tokenizers
import transformers
from chat_templates import TEMPLATES
from transformers.utils.chat_template_utils import render_jinja_template

from ftjax.data import chat
from ftjax.data.chat import ChatTemplate, Dialogue, fold_system, render, template_of
from ftjax.data.tokenizer import load_tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

USER = {"role": "user", "content": "  What is 2 + 2 < 5?\n"}
ANSWER = {"role": "assistant", "content": "It is “4”. "}
SYSTEM = {"role": "system", "content": "Be brief, 请."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "<é>"}}}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds <b>.", "parameters": {"type": "object"}},
}
CONVERSATIONS = {
    "question": [USER],
    "three turns": [USER, ANSWER, USER],
    "ends with an answer": [USER, ANSWER],
    "system": [SYSTEM, USER, ANSWER, USER],
    "two questions": [USER, USER],
    "begins with an answer": [ANSWER, USER],
    "unknown role": [USER, {"role": "critic", "content": "No."}],
    "empty content": [{"role": "user", "content": ""}],
    "none": [USER | {"name": None}, {"role": "assistant", "content": None}],
    "thoughts": [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"},
        USER,
        {"role": "assistant", "content": "4", "reasoning": "as before"},
    ],
    "tool call": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "name": "add"},
        ANSWER,
    ],
}


def made(text, **names):
    return ChatTemplate(text, "chat_template.jinja", NAMES | names)


@pytest.fixture(scope="module")
def tokenizer():
    """Special tokens only; what is compared is text."""
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, "<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **NAMES)


def outcome(call):
    """What is written, or the sentence."""
    try:
        return call()
    except (ValueError, TypeError, jinja2.TemplateError) as error:
        return error


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["", "tools"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_same_text_as_transformers(tokenizer, name, conversation, tools):
    messages, template = CONVERSATIONS[conversation], made(TEMPLATES[name])
    for prompt in (False, True):
        theirs = outcome(
            lambda prompt=prompt: tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template.text,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        )
        dialogues = [Dialogue(messages, tools)]
        ours = outcome(
            lambda prompt=prompt, d=dialogues: render(template, d, add_generation_prompt=prompt)
        )
        if isinstance(ours, ValueError) and re.search("does not use tools|passes over", str(ours)):
            # transformers says nothing; that what is given changes nothing is tested below.
            continue
        if isinstance(theirs, str):
            assert ours[0].text == theirs
        else:
            assert isinstance(ours, ValueError) and str(theirs) in str(ours)


def test_options_and_several_dialogues(tokenizer):
    messages = [[USER], [SYSTEM, USER, ANSWER], [USER, ANSWER, USER]]
    template = made(TEMPLATES["qwen"])
    dialogues = [Dialogue(m, options={"enable_thinking": False}) for m in messages]
    ours = render(template, dialogues, add_generation_prompt=True)
    theirs = tokenizer.apply_chat_template(
        messages,
        chat_template=template.text,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert [one.text for one in ours] == theirs
    assert "</think>" in theirs[0]


def test_marked_texts_have_their_places():
    messages = [USER, ANSWER, USER, {"role": "assistant", "content": "5\n"}]
    (ours,) = render(made(TEMPLATES["marked"]), [Dialogue(messages)])
    _, theirs = render_jinja_template(
        [messages],
        chat_template=TEMPLATES["marked"],
        return_assistant_tokens_mask=True,
        **NAMES,
    )
    assert list(ours.generated) == theirs[0]
    marked = [ours.text[start:end] for start, end in ours.generated]
    assert marked == [m["content"] + "</s>" for m in messages if m["role"] == "assistant"]
    assert render(made(TEMPLATES["chatml"]), [Dialogue(messages)])[0].generated == ()


def test_a_place_that_is_not_known_is_not_told():
    inside = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    late = made("ab {% set x %}" + inside + "{% endset %}c{{ x }}")
    (rendered,) = render(late, [Dialogue([USER])])
    assert rendered.text == "ab c" + USER["content"]
    assert rendered.generated is None


def test_parts_that_are_texts_are_joined():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    (rendered,) = render(made(TEMPLATES["chatml"]), [Dialogue([{**USER, "content": parts}])])
    assert rendered.text == "<|im_start|>user\none\ntwo<|im_end|>\n"


IMAGE = {"type": "image", "url": "https://example.org/a.png"}


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "Conversation 1 has no messages"),
        ([{"content": "hi"}], "Conversation 1, turn 1: a message needs a role"),
        ([USER, "hi"], "Conversation 1, turn 2: a message needs a role"),
        ([{"role": "user", "content": 5}], r"turn 1 \(user\): its content is 5, which is not a"),
        ([{**USER, "content": [IMAGE]}], "a part of type image; ftjax chats in texts only"),
        ([{**USER, "extra": {1, 2}}], "Conversation 1 holds what JSON cannot hold"),
    ],
)
def test_what_is_no_conversation(messages, sentence):
    with pytest.raises(ValueError, match=sentence):
        render(made(TEMPLATES["chatml"]), [Dialogue(messages)])


def test_the_first_turn_that_fails_is_named():
    dialogues = [Dialogue([USER])] * 300 + [Dialogue([USER, ANSWER, USER, USER, ANSWER])]
    with pytest.raises(ValueError) as raised:
        render(made(TEMPLATES["gemma"]), dialogues, where=lambda i: f"train, record {i + 1}")
    assert str(raised.value) == (
        "train, record 301, turn 4 (user): the chat template in chat_template.jinja refuses it: "
        "Conversation roles must alternate user/assistant/user/assistant/..."
    )


def test_a_system_turn_that_a_template_refuses_may_be_folded():
    messages, template = [SYSTEM, {"role": "user", "content": "Hi"}], made(TEMPLATES["gemma"])
    with pytest.raises(ValueError, match=r"turn 1 \(system\).*System role not.*fold_system\), it"):
        render(template, [Dialogue(messages)])
    (rendered,) = render(template, [Dialogue(fold_system(messages))])
    assert rendered.text == "<s><turn>user\nBe brief, 请.\n\nHi</turn>\n"
    assert messages[1]["content"] == "Hi", "the caller's messages stay"


def test_folding():
    assert fold_system([USER, ANSWER]) == [USER, ANSWER]
    folded = fold_system([SYSTEM, {"role": "developer", "content": "B"}, USER, ANSWER])
    assert folded == [{**USER, "content": f"Be brief, 请.\n\nB\n\n{USER['content']}"}, ANSWER]
    with pytest.raises(ValueError, match="none follows it"):
        fold_system([SYSTEM, ANSWER])


def test_a_turn_that_a_template_passes_over_is_found():
    only_users = "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}"
    with pytest.raises(ValueError, match=r"turn 1 \(system\): .* passes over it\. Folded"):
        render(made(only_users), [Dialogue([SYSTEM, USER])])
    with pytest.raises(ValueError, match=r"turn 2 \(critic\): .* passes over it\.$"):
        render(made(only_users), [Dialogue([USER, {"role": "critic", "content": "No."}])])
    # What it writes in another way is not passed over.
    loud = "{% for m in messages %}{{ m.content | upper | tojson }}{% endfor %}"
    assert render(made(loud), [Dialogue([SYSTEM, USER])])[0].text.startswith('"BE BRIEF')


def test_tools_and_options_that_a_template_does_not_use():
    with pytest.raises(ValueError, match=r"Conversation 1: .* does not use tools; leave it out"):
        render(made(TEMPLATES["chatml"]), [Dialogue([USER], [TOOL])])
    with pytest.raises(ValueError, match="does not use enable_thinking"):
        render(made(TEMPLATES["gemma"]), [Dialogue([USER], options={"enable_thinking": False})])
    assert render(made(TEMPLATES["chatml"]), [Dialogue([USER], [])])
    assert "add" in render(made(TEMPLATES["llama_3"]), [Dialogue([USER], [TOOL])])[0].text


def files_of(tiny_llama, tmp_path, **files):
    """A copy of the tokenizer with template files."""
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    settings = json.loads((tiny_llama / "tokenizer_config.json").read_text())
    for name, content in files.items():
        if name == "settings":
            settings["chat_template"] = content
        else:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(tmp_path)


def test_where_templates_stand(tiny_llama, tmp_path):
    def found(tools=False, **files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        template = template_of(files_of(tiny_llama, folder, **files), tools=tools)
        return template and (template.text, str(template.file.relative_to(folder)))

    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    more = {"chat_template.jinja": "d", "additional_chat_templates/tool_use.jinja": "e"}
    old = {"chat_template.json": json.dumps({"chat_template": "c"})}
    assert found() is None
    assert found(settings="a") == ("a", "tokenizer_config.json")
    assert found(settings=named) == ("a", "tokenizer_config.json")
    assert found(settings=named, tools=True) == ("b", "tokenizer_config.json")
    assert found(settings="a", **more) == ("d", "chat_template.jinja")
    assert found(tools=True, **more) == ("e", "additional_chat_templates/tool_use.jinja")
    assert found(**old) == ("c", "chat_template.json")
    assert found(settings="a", **old) == ("a", "tokenizer_config.json")
    with pytest.raises(ValueError, match=r"several chat templates \(rag, tool_use\) and none is"):
        found(settings=[{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}])
    with pytest.raises(ValueError, match=r"json: chat_template is a int, not a text"):
        found(**{"chat_template.json": json.dumps({"chat_template": 7})})


def test_the_names_are_the_tokenizers(tiny_llama, tmp_path):
    tokenizer = files_of(tiny_llama, tmp_path, settings="{{ eos_token }}{{ messages[0].content }}")
    (rendered,) = render(template_of(tokenizer), [Dialogue([USER])])
    assert rendered.text == "[SEP]" + USER["content"]


def test_the_process_starts_anew_when_it_was_ended():
    template = made(TEMPLATES["chatml"])
    before = render(template, [Dialogue([USER])])
    pid = chat._process()._worker._process.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ValueError, match="needs too much memory or depth"):
        render(template, [Dialogue([USER])])
    assert render(template, [Dialogue([USER])]) == before
    assert chat._process()._worker._process.pid != pid


def render_and_send(pipe):
    pipe.send(render(made(TEMPLATES["chatml"]), [Dialogue([USER])])[0].text)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_has_its_own():
    (before,) = render(made(TEMPLATES["chatml"]), [Dialogue([USER])])
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=render_and_send, args=[theirs])
    child.start()
    assert ours.poll(60) and ours.recv() == before.text
    child.join(60)
    assert render(made(TEMPLATES["chatml"]), [Dialogue([USER])]) == [before]


def test_thousands_are_rendered_in_seconds():
    start = time.process_time()
    dialogues = [Dialogue([SYSTEM, USER, ANSWER, USER])] * 3000
    rendered = render(made(TEMPLATES["qwen"]), dialogues)
    assert len(rendered) == 3000 and len(set(rendered)) == 1
    assert time.process_time() - start < 3.0


def test_the_process_ends_with_its_parent():
    script = (
        "from ftjax.data import chat\n"
        "chat.render(chat.ChatTemplate('{{ messages }}', 'x', {}), [chat.Dialogue("
        "[{'role': 'user', 'content': 'a'}])])\n"
        "print(chat._process()._worker._process.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
