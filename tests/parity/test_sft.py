"""Masks, rows, loss, accuracy, entropy and gradients of chats against trl."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from compare import assert_same_gradients
from tiny import byte_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from ftjax.data.chat import ChatTemplate, Dialogue  # noqa: E402
from ftjax.data.dialogues import Chat  # noqa: E402
from ftjax.data.supervised import (  # noqa: E402
    SupervisedExamples,
    SupervisedText,
    fill_rows,
    tokenize_marked,
)
from ftjax.data.turns import Marked, mark_turns  # noqa: E402
from ftjax.losses import tokens  # noqa: E402
from ftjax.losses.forward import forward  # noqa: E402
from ftjax.models import FAMILIES  # noqa: E402
from ftjax.models.heads import LanguageModel  # noqa: E402
from ftjax.pretrained.export import published_tensors  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402
from ftjax.tuning.partition import partition  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is “4”."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "user"},
]
# What trl's training templates learn is what we find in the published ones, token for token.
EQUAL = (
    *("cohere", "cohere2", "diffusion_gemma", "gemma", "gemma3", "lfm2", "lfm2_v2", "llama3"),
    *("phi3", "phi3_5", "qwen2_5_vl", "qwen3_instruct_2507", "qwen3_vl"),
)
# trl learns the prompt that asks for the answer, too, or the line end of it.
LEARNS_PROMPTS = ("muse_glimmer", "qwen2_5", "qwen3_8")
# Published templates that write an earlier answer otherwise than a last one: each is learned as the
# last, where trl has changed the template.
EACH_AS_THE_LAST = ("gptoss", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")
# They ask for an answer with what does not stand before it in the whole conversation.
ASKS_OTHERWISE = (
    *("deepseek_r1_distill", "deepseekv3", "nemotron_3_5_lightning", "nemotron_3_nano"),
    *("nemotron_3_super", "nemotron_3_ultra"),
)
# Of trl's own, with tags, those that can be used as they are.
TAGGED = (*EQUAL, "glm4moe", "qwen2_5", "qwen3")


def case(name):
    """The text of a template, and a tokenizer with its special tokens."""
    text = (TEMPLATES / f"{name}.jinja").read_text()
    return text, byte_tokenizer(*sorted(set(re.findall(r"<[|/｜]?[\w▁]+[|｜]?>", text))))


def ours(text, tokenizer):
    template = ChatTemplate(text, "chat_template.jinja", dict(tokenizer.special_tokens_map))
    special = tokenizer.get_added_vocab()
    (examples,) = mark_turns(template, [Chat(Dialogue(CHAT))], lambda _: "the chat", special)
    return tokenize_marked(examples, tokenizer, lambda _, problem: ValueError(problem))


def theirs(name, tokenizer):
    found = tokenizer.apply_chat_template(
        CHAT,
        chat_template=(TEMPLATES / f"{name}_training.jinja").read_text(),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return np.asarray(found["input_ids"]), np.asarray(found["assistant_masks"], bool)


@pytest.mark.parametrize("name", [*EQUAL, *LEARNS_PROMPTS])
def test_masks_of_published_templates(name):
    text, tokenizer = case(name)
    found, (ids, mask) = ours(text, tokenizer), theirs(name, tokenizer)
    np.testing.assert_array_equal(found.input_ids, ids)
    # Each answer begins behind exactly what asks for it.
    starts = np.flatnonzero(np.diff(found.supervised.astype(int)) > 0) + 1
    for start, end in zip(starts, (1, 3), strict=True):
        asked = tokenizer.apply_chat_template(
            CHAT[:end], chat_template=text, add_generation_prompt=True
        )["input_ids"]
        assert found.input_ids[:start].tolist() == asked
    if name in EQUAL:
        np.testing.assert_array_equal(found.supervised, mask)
        return
    assert not (found.supervised & ~mask).any()
    # The same before both answers.
    beyond = tokenizer.decode(ids[mask & ~found.supervised])
    asked = tokenizer.apply_chat_template(
        CHAT[:1], chat_template=text, tokenize=False, add_generation_prompt=True
    )
    assert len(beyond) and asked.endswith(beyond[: len(beyond) // 2])


@pytest.mark.parametrize("name", TAGGED)
def test_masks_of_templates_with_tags(name):
    _, tokenizer = case(name)
    training = (TEMPLATES / f"{name}_training.jinja").read_text()
    found, (ids, mask) = ours(training, tokenizer), theirs(name, tokenizer)
    np.testing.assert_array_equal(found.input_ids, ids)
    np.testing.assert_array_equal(found.supervised, mask)


@pytest.mark.parametrize("name", EACH_AS_THE_LAST)
def test_templates_that_write_the_last_answer_otherwise(name):
    text, tokenizer = case(name)
    found = ours(text, tokenizer)
    assert len(found.offsets) == 3
    learned = np.split(found.input_ids, found.offsets[1:-1])
    flags = np.split(found.supervised, found.offsets[1:-1])
    for ids, flag, end in zip(learned, flags, (2, 4), strict=True):
        rendered = tokenizer.apply_chat_template(CHAT[:end], chat_template=text)["input_ids"]
        assert ids.tolist() == rendered
        asked = tokenizer.apply_chat_template(
            CHAT[: end - 1], chat_template=text, add_generation_prompt=True
        )["input_ids"]
        assert np.flatnonzero(flag).tolist() == list(range(len(asked), len(ids)))


@pytest.mark.parametrize("name", ASKS_OTHERWISE)
def test_templates_that_ask_otherwise_than_they_write(name):
    with pytest.raises(ValueError, match="would be asked otherwise than it was taught"):
        ours(*case(name))


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_rows(strategy):
    random = np.random.default_rng(0)
    # Of 33 tokens the last is alone in its row: trl keeps it, though nothing can be predicted.
    sizes = random.choice([*range(2, 33), *range(34, 40)], 300)
    offsets = np.append(0, np.cumsum(sizes))
    ids = np.arange(offsets[-1], dtype=np.int32)
    text = SupervisedText(ids, offsets, np.ones(len(ids), bool), np.ones(len(ids), np.int32))
    pieces, rows = fill_rows(text, 32, strategy)
    found = [[pieces[piece].tolist() for piece in row] for row in rows]
    table = datasets.Dataset.from_dict({"input_ids": np.split(ids, offsets[1:-1])})
    packed = trl.pack_dataset(table, 32, strategy)
    rows = [row["input_ids"] for row in packed]
    assert [[n for start, end in row for n in range(start, end)] for row in found] == rows
    if strategy != "wrapped":
        sizes = [[end - start for start, end in row] for row in found]
        assert sizes == [row["seq_lengths"] for row in packed]


PAIRS = [
    {"prompt": "one two", "completion": " three"},
    {"prompt": "four", "completion": " five six seven eight"},
    {"prompt": "nine ten eleven", "completion": " twelve"},
]
FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """trl's, over a tiny network and the pairs."""
    folder, tokenizer = tmp_path_factory.mktemp("trl"), byte_tokenizer()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **FIELDS)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    settings = trl.SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        max_length=64,
        gradient_checkpointing=False,
    )
    table = datasets.Dataset.from_list(PAIRS)
    found = trl.SFTTrainer(model, settings, train_dataset=table, processing_class=tokenizer)
    return found, folder, tokenizer


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_loss_accuracy_entropy_and_gradients(trainer, packed):
    trainer, folder, tokenizer = trainer
    marked = [
        Marked(p["prompt"] + p["completion"], ((len(p["prompt"]), 10**6),), rendered=False)
        for p in PAIRS
    ]
    text = tokenize_marked(marked, tokenizer, lambda _, problem: ValueError(problem))
    rows = list(trainer.train_dataset)
    assert [row["input_ids"] for row in rows] == [
        part.tolist() for part in np.split(text.input_ids, text.offsets[1:-1])
    ]
    labels = np.concatenate([row["labels"] for row in rows])
    np.testing.assert_array_equal(labels, np.where(text.supervised, text.input_ids, -100))

    batch = trainer.data_collator(rows)
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    metrics = {
        name: trainer._metrics["train"][name][-1] for name in ("mean_token_accuracy", "entropy")
    }

    pieces, filled = fill_rows(text, 64, "bfd" if packed else None)
    assert len(filled) == (1 if packed else 3)
    examples = SupervisedExamples(text, pieces, filled, (64,), "")
    arrays = examples.batch(np.arange(len(filled)), rows=len(filled), length=64)
    network = LanguageModel(load_model(folder, "causal_lm"))
    rebuild, parameters, frozen = partition(network, lambda path: True)

    def mean(parameters):
        passed = forward(lambda p, _: rebuild(p, frozen), parameters, frozen, arrays, None)
        total, weight, found = tokens.loss_and_entropy(passed.outputs, passed.batch)
        return total / weight, {name: value / n for name, (value, n) in found.items()}

    (value, found), gradients = jax.value_and_grad(mean, has_aux=True)(parameters)
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    for name, expected in metrics.items():
        assert float(found[name]) == pytest.approx(expected, rel=1e-5)
    found = dict(published_tensors(rebuild(gradients, frozen).backbone, FAMILIES["llama"]))
    assert_same_gradients(found, trainer.model)
