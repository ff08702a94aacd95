"""Conversations with tiny random networks, and text that comes in pieces."""

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ftjax.config import base_config, override
from ftjax.models.generate import generate
from ftjax.models.heads import LanguageModel
from ftjax.models.sampling import Sampling
from ftjax.pretrained.adapter import save_adapter
from ftjax.pretrained.load import load_model
from ftjax.training.run import run
from ftjax.tuning.tune import tune
from ftjax.use.chat import Conversation, TextStream, load_writer, load_writer_of_run

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] == 'user' and 'word1' or 'word2' }} "
    "{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}word2{% endif %}"
)


@pytest.fixture
def talkative(tiny_llama, tmp_path):
    """A checkpoint with a chat template, as [user: word1 | otherwise: word2] content ..."""
    folder = shutil.copytree(tiny_llama, tmp_path / "talkative")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return folder


def test_without_a_template_a_message_is_continued(tiny_llama):
    writer = load_writer(str(tiny_llama))
    assert writer.template is None
    conversation = Conversation(writer, max_new_tokens=5)
    pieces = []
    answer = conversation.answer("word3 word4", pieces.append)
    prompt = writer.tokenizer("word3 word4")["input_ids"]
    (expected,) = generate(writer.network, [prompt], max_new_tokens=5)
    assert answer == "".join(pieces) == writer.tokenizer.decode(expected)
    # The next message does not see this one.
    assert conversation.answer("word3 word4") == answer
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


def test_with_a_template_the_network_sees_all_messages(talkative):
    writer = load_writer(str(talkative))
    conversation = Conversation(writer, max_new_tokens=3, system="word9")
    first = conversation.answer("word5")
    second = conversation.answer("word6 word7")
    text = f"word2 word9 word1 word5 word2 {first} word1 word6 word7 word2"
    prompt = writer.tokenizer(text)["input_ids"]
    (expected,) = generate(writer.network, [prompt], max_new_tokens=3)
    assert second == writer.tokenizer.decode(expected)


def test_an_answer_ends_with_the_positions_and_a_full_conversation_is_refused(talkative):
    writer = load_writer(str(talkative))
    conversation = Conversation(writer, max_new_tokens=100)
    answer = conversation.answer("word5")
    assert len(writer.tokenizer(answer)["input_ids"]) == 32 - 3
    with pytest.raises(ValueError, match=r"conversation has \d+ tokens, the network 32 positions"):
        conversation.answer("word6")
    assert len(conversation.messages) == 2


def test_the_end_token_ends_an_answer(tiny_llama, tmp_path):
    writer = load_writer(str(tiny_llama))
    prompt = writer.tokenizer("word3")["input_ids"]
    (free,) = generate(writer.network, [prompt], max_new_tokens=8)
    folder = shutil.copytree(tiny_llama, tmp_path / "stops")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, free[3]]}))
    stopped = load_writer(str(folder))
    assert stopped.defaults.stop_token_ids == (1, free[3], stopped.tokenizer.eos_token_id)
    answer = Conversation(stopped, max_new_tokens=8).answer("word3")
    assert answer == writer.tokenizer.decode(free[: free.index(free[3])])


def test_a_checkpoint_says_how_it_wants_to_write(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "draws")
    fields = {"do_sample": True, "temperature": 2.0, "top_k": 40, "max_new_tokens": 7}
    (folder / "generation_config.json").write_text(json.dumps(fields))
    writer = load_writer(str(folder))
    drawn = Conversation(writer, seed=3).answer("word3")
    same = Sampling(temperature=2.0, top_k=40)
    assert drawn == Conversation(writer, sampling=same, max_new_tokens=7, seed=3).answer("word3")
    assert drawn != Conversation(writer, seed=4).answer("word3")
    greedy = Conversation(load_writer(str(tiny_llama)), max_new_tokens=7).answer("word3")
    assert (
        Conversation(writer, sampling=writer.defaults.sampling(temperature=0)).answer("word3")
        == greedy
    )


def test_an_instruction_that_a_template_does_not_take_is_refused_or_folded(talkative):
    path = talkative / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}"
    path.write_text(json.dumps(settings | {"chat_template": refusing + TEMPLATE}))
    writer = load_writer(str(talkative))
    with pytest.raises(ValueError, match=r"turn 1 \(system\): .*tokenizer_config.json refuses it"):
        Conversation(writer, max_new_tokens=3, system="word9")
    conversation = Conversation(writer, max_new_tokens=3, system="word9", fold_system=True)
    first = conversation.answer("word5")
    second = conversation.answer("word6")
    text = f"word1 word9 word5 word2 {first} word1 word6 word2"
    prompt = writer.tokenizer(text)["input_ids"]
    (expected,) = generate(writer.network, [prompt], max_new_tokens=3)
    assert second == writer.tokenizer.decode(expected)
    assert conversation.messages[0] == {"role": "system", "content": "word9"}
    with pytest.raises(ValueError, match="fold_system needs an instruction"):
        Conversation(writer, fold_system=True)


def test_what_is_drawn_repeats_with_its_seed(tiny_llama):
    writer = load_writer(str(tiny_llama))

    def draw(seed):
        sampling = Sampling(temperature=2.0)
        conversation = Conversation(writer, max_new_tokens=9, sampling=sampling, seed=seed)
        return conversation.answer("word3"), conversation.answer("word3")

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert draw(0)[0] != draw(0)[1]


def test_an_interrupted_answer_is_remembered_as_far_as_it_went(tiny_llama):
    conversation = Conversation(load_writer(str(tiny_llama)), max_new_tokens=9)
    pieces = []

    def interrupt(text):
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.answer("word3", interrupt)
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    whole = Conversation(conversation.writer, max_new_tokens=9).answer("word3")
    assert whole.startswith("".join(pieces)) and whole != "".join(pieces)


def test_what_does_not_write(tiny_bert, tiny_llama):
    with pytest.raises(ValueError, match="bert network, which does not write text"):
        load_writer(str(tiny_bert))
    with pytest.raises(ValueError, match="no chat template, so it knows no system message"):
        Conversation(load_writer(str(tiny_llama)), max_new_tokens=1, system="word1")
    with pytest.raises(ValueError, match="A stop text is empty"):
        Conversation(load_writer(str(tiny_llama)), max_new_tokens=1, stop_strings=["x", ""])


def stream(pieces, stop_strings=()):
    """What is shown after each piece, with tokens that are bytes."""
    shown = []
    text = TextStream(
        lambda tokens: bytes(tokens).decode(errors="replace"), stop_strings, shown.append
    )
    after = []
    for piece in pieces:
        text.add(list(piece))
        after.append("".join(shown))
    return after, text.finish(), "".join(shown)


def test_half_a_character_is_not_shown():
    first, second, third = "é".encode()[:1], "é".encode()[1:], b"!"
    after, text, shown = stream([b"a" + first, second, third])
    assert after == ["a", "aé", "aé!"]
    assert text == shown == "aé!"


def test_a_stop_string_is_not_shown_not_even_its_beginning():
    after, text, shown = stream([b"ab", b"\nUs", b"er:", b" no"], ["\nUser:"])
    assert after == ["ab", "ab", "ab", "ab"]
    assert text == shown == "ab"


def test_what_only_looked_like_a_stop_string_is_shown():
    after, text, shown = stream([b"ab\nUs", b"eful"], ["\nUser:"])
    assert after == ["ab", "ab\nUseful"]
    assert text == shown == "ab\nUseful"
    assert stream([b"ab\nUs"], ["\nUser:"])[1] == "ab\nUs"


SCRIPT = Path(__file__).parents[2] / "scripts" / "chat.py"


def talk_to(folder, *flags, **options):
    command = [sys.executable, SCRIPT, f"--model={folder}", *flags]
    return subprocess.run(command, capture_output=True, check=False, timeout=300, **options)


def test_script_answers_once(tiny_llama):
    done = talk_to(tiny_llama, "--max_new_tokens=4", "--prompt=word3", text=True)
    assert done.returncode == 0, done.stderr
    answer = Conversation(load_writer(str(tiny_llama)), max_new_tokens=4).answer("word3")
    assert done.stdout == answer + "\n"
    assert "no chat template" in done.stderr
    done = talk_to(tiny_llama, "--top_k=3", text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: top_k, top_p and min_p need a temperature above 0; at 0 nothing is drawn.\n"
    )


def test_script_talks_to_its_end_and_tells_what_it_passes_over(talkative):
    fields = {"num_beams": 4, "do_sample": True, "temperature": 0.5}
    (talkative / "generation_config.json").write_text(json.dumps(fields))
    done = talk_to(
        talkative,
        *("--max_new_tokens=2", "--temperature=0", "--no_repeat_ngram_size=2", "--system=word9"),
        *("--fold_system", "--accept_fields=unheard_of"),
        input="word3\nword4\n",
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("> ") == 3
    assert done.stderr == (
        "config.json has no field to be accepted of the name unheard_of.\n"
        "generation_config.json also asks for num_beams=4; that is not done, tokens are chosen one "
        "by one.\n"
    )


def test_script_ends_quietly_when_nobody_reads(tiny_llama):
    command = f"{sys.executable} {SCRIPT} --model={tiny_llama} --prompt=word3 | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, len(done.stdout)) == (0, 1), done.stderr
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_script_ends_an_answer_on_ctrl_c(tiny_checkpoint):
    # Positions for a long answer.
    fields = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 100_000,
    }
    folder = tiny_checkpoint("llama", fields, "causal_lm")
    command = [sys.executable, "-u", SCRIPT, f"--model={folder}", "--prompt=word3"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Drawn, that no end token comes for long.
    process = subprocess.Popen([*command, "--max_new_tokens=60000", "--temperature=3"], **pipes)
    begun = process.stdout.read(12)
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=120)
    assert process.returncode == 130, said.decode()
    assert (begun + rest).endswith(b" ...\n")
    assert b"Traceback" not in said


def test_a_finished_run_talks(tiny_llama, tiny_texts, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("word1 word2 word3 word4" for _ in range(45)))
    changes = {
        "name": "tiny",
        "objective.name": "causal_lm",
        "model.reference": str(tiny_llama),
        "data.source": str(text),
        "data.max_length": 16,
        "data.batch_size": 4,
        "evaluation.batch_size": 4,
        "optimizer.learning_rate": 3e-2,
        "training.epochs": 12,
        "retention.source": str(tiny_texts),
    }
    run(override(base_config(), changes), tmp_path / "run", Console(file=io.StringIO()))
    conversation = Conversation(load_writer_of_run(tmp_path / "run"), max_new_tokens=8)
    assert conversation.answer("word1 word2") == "word3 word4"


def test_an_adapters_own_tokenizer_and_template_are_used(tiny_llama, talkative, tmp_path):
    network = LanguageModel(load_model(tiny_llama, "causal_lm"))
    rebuild, trainable, frozen = tune(network, base_config(method="lora").tuning, 0)
    folder = tmp_path / "adapter"
    save_adapter(rebuild(trainable, frozen), "causal_lm", tiny_llama, folder)
    assert load_writer(str(tiny_llama), adapter=folder).template is None
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    writer = load_writer(str(tiny_llama), adapter=folder)
    assert writer.tokenizer.chat_template == TEMPLATE
    (folder / "chat_template.jinja").unlink()
    # With a token that the network has no row for yet.
    tokenizer = load_writer(str(talkative)).tokenizer
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(folder)
    writer = load_writer(str(tiny_llama), adapter=folder)
    assert writer.template is not None
    assert writer.network.config.vocab_size == len(tokenizer)
    Conversation(writer, max_new_tokens=3).answer("word5 <|new|>")
    assert writer.tokenizer.encode("<|new|>")[0] == len(tokenizer) - 1


def test_an_adapter_of_virtual_tokens_answers(tiny_llama, tmp_path):
    network = LanguageModel(load_model(tiny_llama, "causal_lm"))
    settings = base_config(method="prompt").tuning
    settings.virtual_tokens = 3
    rebuild, trainable, frozen = tune(network, settings, 0)
    save_adapter(rebuild(trainable, frozen), "causal_lm", tiny_llama, tmp_path / "adapter")
    writer = load_writer(str(tiny_llama), adapter=tmp_path / "adapter")
    answer = Conversation(writer, max_new_tokens=5).answer("word3")
    prompt = writer.tokenizer("word3")["input_ids"]
    (expected,) = generate(rebuild(trainable, frozen).backbone, [prompt], max_new_tokens=5)
    assert answer == writer.tokenizer.decode(expected)
