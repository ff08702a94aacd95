"""What is learned of a chat, whatever its template: exactly the turns that were asked for."""

import re

import numpy as np
import pytest
from chat_templates import TEMPLATES
from tiny import byte_tokenizer

from ftjax.data.chat import ChatTemplate, Dialogue, render
from ftjax.data.dialogues import Chat
from ftjax.data.sources.records import BadRecordError
from ftjax.data.supervised import tokenize_marked
from ftjax.data.text import encode_rendered
from ftjax.data.turns import Marked, mark_all, mark_turns

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = sorted({tag for text in TEMPLATES.values() for tag in re.findall(r"<\|?/?\w+\|?>", text)})
TOKENIZER = byte_tokenizer(*SPECIAL, **NAMES)
SPECIAL += NAMES.values()

SYSTEM = {"role": "system", "content": "Be brief, 请."}
ASKED = [{"role": "user", "content": "What is 2 + 2 < 5?"}, {"role": "user", "content": "And?"}]
SAID = ["It is “4”.", "user"]
CHAT = [
    ASKED[0],
    {"role": "assistant", "content": SAID[0]},
    ASKED[1],
    {"role": "assistant", "content": SAID[1]},
]
# How each template writes what the assistant says, header outside and end of turn inside.
TURNS = {
    "llama_2": " {} </s>",
    "llama_3": "{}<|eot|>",
    "chatml": "{}<|im_end|>\n",
    "mistral": " {}</s>",
    "gemma": "{}</turn>\n",
    "phi_3": "{}<|end|>\n",
    # Earlier turns without thoughts, the last with empty ones: so each is learned as a last one.
    "qwen": "<think>\n\n</think>\n\n{}<|im_end|>\n",
    "zephyr": "{}</s>\n",
    "marked": "{}</s>",
}
WITH_SYSTEM = sorted(TURNS.keys() - {"gemma", "mistral"})


def made(text):
    return ChatTemplate(text, "chat_template.jinja", NAMES)


def where(index):
    return f"chats.jsonl, line {index + 1}"


def refused(index, problem):
    return ValueError(f"{where(index)}: {problem}")


def marked(text, *chats, first=0):
    return mark_turns(made(text), [Chat(Dialogue(chat), first) for chat in chats], where, SPECIAL)


def learned(examples):
    """Of each turn that is learned, its text, its tokens, and those before it."""
    found, text = [], tokenize_marked(examples, TOKENIZER, refused)
    for start, end in zip(text.offsets[:-1], text.offsets[1:], strict=True):
        ids, flags = text.input_ids[start:end].tolist(), text.supervised[start:end]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flags, [0]])))
        for first, last in edges.reshape(-1, 2):
            found.append((TOKENIZER.decode(ids[first:last]), ids[first:last], ids[:first]))
    return found


@pytest.mark.parametrize("name", TURNS)
def test_what_the_assistant_says_and_nothing_else(name):
    (examples,) = marked(TEMPLATES[name], CHAT)
    expected = [TURNS[name].format(said) for said in SAID]
    if name == "phi_3":
        # It ends a whole conversation with one more token.
        expected[-1] += "</s>"
    assert [text for text, _, _ in learned(examples)] == expected
    assert len(examples) == (2 if name == "qwen" else 1)


CASES = [*((name, False) for name in TURNS), *((name, True) for name in WITH_SYSTEM)]


@pytest.mark.parametrize(("name", "system"), CASES)
def test_four_properties(name, system):
    """Of tinker-cookbook's renderers: prompts as transformers', asked as taught, said as given,
    and a conversation that goes on begins with what it was."""
    chat, template = [SYSTEM, *CHAT] if system else CHAT, made(TEMPLATES[name])
    (examples,) = marked(template.text, chat)
    found = learned(examples)
    turns = [turn for turn, message in enumerate(chat) if message["role"] == "assistant"]
    for turn, (text, _, before) in zip(turns, found, strict=True):
        theirs = TOKENIZER.apply_chat_template(
            chat[:turn], chat_template=template.text, add_generation_prompt=True
        )["input_ids"]
        (prompt,) = render(template, [Dialogue(chat[:turn])], add_generation_prompt=True)
        assert encode_rendered(TOKENIZER, prompt.text) == theirs
        assert before == theirs
        pattern = re.escape(TURNS[name]).replace(r"\{\}", "(.*)")
        assert re.match(pattern, text)[1] == chat[turn]["content"]
    (_, turn, before), (_, _, following) = found
    extends = following[: len(before + turn)] == before + turn
    assert extends == (len(examples) == 1) == (name != "qwen")


def test_bos_stands_once():
    """Written by the template, and in the content of who copied it."""
    chat = [{"role": "user", "content": "<s>"}, CHAT[1]]
    for name in ("llama_3", "gemma", "mistral"):
        ids = tokenize_marked(marked(TEMPLATES[name], CHAT)[0], TOKENIZER, refused).input_ids
        assert (ids == TOKENIZER.bos_token_id).sum() == 1
    twice = "{{ bos_token }}{{ bos_token }}" + TEMPLATES["chatml"]
    (examples,) = marked(twice, chat)
    text = tokenize_marked(examples, TOKENIZER, refused)
    assert (text.input_ids[:2] == TOKENIZER.bos_token_id).tolist() == [True, False]
    assert [said for said, _, _ in learned(examples)] == [SAID[0] + "<|im_end|>\n"]


THOUGHTS = [
    ASKED[0],
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"},
    ASKED[1],
    {"role": "assistant", "content": "5", "reasoning": "as before"},
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLS = [
    ASKED[0],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "[4]", "name": "add"},
    CHAT[1],
]


def test_thoughts_are_learned_though_a_template_takes_them_out_of_earlier_turns():
    (examples,) = marked(TEMPLATES["qwen"], THOUGHTS)
    assert [text for text, _, _ in learned(examples)] == [
        "<think>\nhm\n</think>\n\n4<|im_end|>\n",
        "<think>\nas before\n</think>\n\n5<|im_end|>\n",
    ]
    assert "hm" in examples[0].text and "hm" not in examples[1].text


def test_calls_of_tools_are_learned_and_what_tools_say_is_not():
    chat = Chat(Dialogue(CALLS, [TOOL]))
    ((qwen,), (llama,)) = (
        mark_turns(made(TEMPLATES[name]), [chat], where, SPECIAL) for name in ("qwen", "llama_3")
    )
    assert (len(qwen), len(llama)) == (2, 1)
    call, answer = (text for text, _, _ in learned(qwen))
    assert call.endswith('"arguments": {"a": 2}}\n</tool_call><|im_end|>\n')
    assert "<tool_call>" in call and "[4]" not in call
    assert answer == "<think>\n\n</think>\n\nIt is “4”.<|im_end|>\n"
    texts = [text for text, _, _ in learned(llama)]
    assert texts == ['{"name": "add", "parameters": {"a": 2}}<|eot|>', "It is “4”.<|eot|>"]


def test_another_end_for_the_last_turn():
    """As of gpt-oss: what ends a turn is learned of each as of the last."""
    text = TEMPLATES["chatml"].replace(
        "'<|im_end|>'", "('<|eot|>' if loop.last and not add_generation_prompt else '<|im_end|>')"
    )
    (examples,) = marked(text, CHAT)
    assert len(examples) == 2
    assert [text for text, _, _ in learned(examples)] == [f"{said}<|eot|>\n" for said in SAID]


def test_only_completions_are_learned():
    """From a message on; what stands before is read."""
    (examples,) = marked(TEMPLATES["chatml"], CHAT, first=3)
    assert [text for text, _, _ in learned(examples)] == ["user<|im_end|>\n"]
    assert examples[0].text.startswith("<|im_start|>user\nWhat is 2")


def test_a_turn_that_nobody_asked_for_is_read_and_not_learned():
    for name in ("chatml", "marked"):
        (examples,) = marked(TEMPLATES[name], [{"role": "assistant", "content": "Hello!"}, *CHAT])
        assert [text for text, _, _ in learned(examples)] == [TURNS[name].format(x) for x in SAID]
        assert "Hello!" in examples[0].text
    (examples,) = marked(TEMPLATES["chatml"], [*CHAT, ASKED[0]])
    assert [text for text, _, _ in learned(examples)] == [TURNS["chatml"].format(x) for x in SAID]


@pytest.mark.parametrize("name", TURNS)
def test_an_answer_of_weight_0_is_read_and_not_learned(name):
    """OpenAI's field; the other answer's tokens are those that it has anyway."""
    everything = learned(marked(TEMPLATES[name], CHAT)[0])
    for kept, weights in enumerate(((1, 0), (None, 0.0), (0, 1))):
        kept = kept // 2
        chat = [dict(message) for message in CHAT]
        chat[1]["weight"], chat[3]["weight"] = weights
        (examples,) = marked(TEMPLATES[name], chat)
        assert learned(examples) == [everything[kept]]


def test_a_chat_needs_an_answer_that_is_learned():
    unlearned = [ASKED[0], {"role": "assistant", "content": "no", "weight": 0}]
    with pytest.raises(ValueError, match="line 2: no turn of the assistant answers anything"):
        marked(TEMPLATES["chatml"], CHAT, unlearned)
    with pytest.raises(ValueError, match="line 1: it has an answer of weight 0, and all"):
        mark_all(made(TEMPLATES["chatml"]), [Chat(Dialogue([*unlearned, *CHAT]))], where)


def test_the_whole_chat():
    ((whole,),) = mark_all(made(TEMPLATES["chatml"]), [Chat(Dialogue(CHAT))], where)
    assert tokenize_marked([whole], TOKENIZER, refused).supervised.all()


GENERATION = """\
{%- for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}BODY\
{% else %}{{ m.content }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def tagged(body):
    return GENERATION.replace(
        "BODY", body.replace("<<", "{% generation %}").replace(">>", "{% endgeneration %}")
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<<{{ m.content + '</s>' }}>>", "{}</s>"),
        ("<<{{ m.content + '</s>\\n' }}>>", "{}</s>\n"),
        ("<<{{ m.content + '</s>' }}>>{{ '\\n' }}", "{}</s>"),
        ("<<{{ m.content }}>><<{{ '</s>' }}>>", "{}</s>"),
        # Written where its place is not known: then as without tags.
        ("{% set x %}<<{{ m.content }}>>{% endset %}{{ '!' + x + '</s>' }}", "!{}</s>"),
    ],
)
def test_the_templates_own_tags_are_used(body, expected):
    (examples,) = marked(tagged(body), CHAT)
    assert [text for text, _, _ in learned(examples)] == [expected.format(said) for said in SAID]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("<<{{ m.content }}>>{{ '</s>' }}", r"leaves out '</s>', which the network has to write"),
        ("{{ m.content }}<<{{ '</s>' }}>>", r"leaves out 'It is “4”\.'"),
        (
            "<<{{ m.content + '</s>' }}>>{% elif true %}<<{{ m.content }}>>",
            r"holds 'And\?', which the network does not write",
        ),
    ],
)
def test_tags_that_mark_something_else_are_refused(body, sentence):
    with pytest.raises(
        ValueError, match=r"line 1, turn \d \(assistant\).* marks the .*" + sentence
    ):
        marked(tagged(body), CHAT)


ONCE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}|{% endfor %}"
REFUSED = {
    "another prompt": (TEMPLATES["deepseek"], CHAT, r"line 1, turn 2 .*asks for it with '<think>"),
    "thoughts left out": (
        TEMPLATES["chatml"],
        THOUGHTS,
        r"line 2, turn 4 .*leaves out its reasoning, 'as before'",
    ),
    "calls left out": (
        TEMPLATES["chatml"],
        [ASKED[0], {"role": "assistant", "content": "ok", "tool_calls": [CALL]}],
        r"line 2, turn 2 .*leaves out its call of a tool, 'add'",
    ),
    "a tool's answer left out": (
        TEMPLATES["phi_3"],
        CALLS,
        r"line 2, turn 3 \(tool\).*leaves it out",
    ),
    "an answer left out": (
        ONCE.replace("|", "{% if not loop.last %}|{% endif %}").replace(
            "m.content", "m.content if m.role == 'user'"
        ),
        CHAT,
        r"line \d, turn 2 \(assistant\).*leaves it out, and so with every chat",
    ),
    "repeated": (ONCE + "{{ messages[0].content }}", CHAT, r"turn 1 \(user\).*writes it 2 times"),
    "nobody answers": (ONCE, [ASKED[0]], r"line 2: no turn of the assistant .*roles: user\)"),
    "nobody asks": (ONCE, [CHAT[1]], "line 2: no turn of the assistant answers anything"),
    "empty": (
        ONCE,
        [ASKED[0], {"role": "assistant", "content": " "}],
        r"line 2, turn 2 \(assistant\) is empty",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_is_refused_with_its_line(case):
    text, chat, sentence = REFUSED[case]
    good = [ASKED[0], {"role": "assistant", "content": "fine"}]
    with pytest.raises(ValueError, match=sentence):
        marked(text, good, chat)


def test_tools_that_stand_at_the_last_question_stand_there_for_each_answer():
    ((first, last),) = mark_turns(
        made(TEMPLATES["mistral"]), [Chat(Dialogue(CHAT, [TOOL]))], where, SPECIAL
    )
    assert first.text.startswith("<s>[TOOLS]") and last.text.startswith("<s>[INST]")
    assert [text for text, _, _ in learned([first, last])] == [f" {said}</s>" for said in SAID]


def test_bytes_of_tokens_are_those_of_the_text():
    texts = ["It is “4”, 请.", "", "<s>a", "é" * 3]
    examples = [Marked(text, ((0, len(text)),)) for text in texts]
    found = tokenize_marked(examples, TOKENIZER, refused)
    sums = np.add.reduceat(np.append(found.byte_counts, 0), found.offsets[:-1])
    assert sums[[0, 2, 3]].tolist() == [len(texts[0].encode()), 1, 6]


def test_a_prompt_is_read_as_it_is_asked():
    """A token that would reach from it into what is learned is divided."""
    plain = [Marked("ab yes", ((3, 6),), rendered=False)]
    tokenizer = byte_tokenizer(merges=[("Ġ", "y"), ("e", "s")])
    found = tokenize_marked(plain, tokenizer, refused)
    tokens = tokenizer.convert_ids_to_tokens(found.input_ids)
    assert tokens == ["a", "b", "Ġ", "y", "es", "</s>"]
    assert found.supervised.tolist() == [False] * 3 + [True] * 3
    assert found.byte_counts.tolist() == [1, 1, 1, 1, 2, 0]
    # The same token inside of what is learned stays whole.
    found = tokenize_marked([Marked("ab yes", ((1, 6),), rendered=False)], tokenizer, refused)
    assert tokenizer.convert_ids_to_tokens(found.input_ids) == ["a", "b", "Ġy", "es", "</s>"]


def test_all_chats_that_fail_are_named_at_once():
    good = [ASKED[0], {"role": "assistant", "content": "fine"}]
    twice = [ASKED[0], *good]
    empty = [ASKED[0], {"role": "assistant", "content": ""}]
    with pytest.raises(BadRecordError) as raised:
        marked(TEMPLATES["gemma"], *[twice if n in (1, 10, 11) else good for n in range(12)])
    assert sorted(raised.value.problems) == [1, 10, 11]
    assert "line 12, turn 2 (user)" in raised.value.problems[11]
    with pytest.raises(BadRecordError) as raised:
        marked(TEMPLATES["chatml"], good, empty, [ASKED[0]], good, empty)
    assert sorted(raised.value.problems) == [1, 2, 4]
    with pytest.raises(BadRecordError) as raised:
        marked(TEMPLATES["chatml"], good, THOUGHTS, good, THOUGHTS)
    assert sorted(raised.value.problems) == [1, 3]
