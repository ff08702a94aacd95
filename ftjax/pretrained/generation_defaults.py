"""How a checkpoint wants its texts to be written: generation_config.json, each field of it.

A field is used, or cannot change the text, or is named so that a person knows that it was passed
over (reference: transformers/generation/configuration_utils.py).
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.files import read_json
from ftjax.models.sampling import Sampling
from ftjax.pretrained.checkpoint import read_config

# transformers draws among so many tokens where neither checkpoint nor caller says otherwise.
TOP_K = 50

USED = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "min_new_tokens", "min_length"),
    *("max_new_tokens", "max_length", "stop_strings", "eos_token_id", "decoder_start_token_id"),
    "forced_bos_token_id",
)

# What counts in config.json, too, if generation_config.json does not say it.
TOKENS = ("eos_token_id", "decoder_start_token_id", "forced_bos_token_id")

# What is not done, and the values with which nothing would be done.
PASSED_OVER = {
    "begin_suppress_tokens": ([],),
    "constraints": (),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1,),
    "max_time": (),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": (),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}

# How fast, what else is returned, what only beams or drafts read, what ends a text anyway.
HARMLESS = (
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight"),
    *("assistant_lookbehind", "bos_token_id", "cache_config", "cache_implementation"),
    *("compile_config", "continuous_batching_config", "disable_compile", "diversity_penalty"),
    *("early_stopping", "forced_eos_token_id", "is_assistant", "length_penalty", "low_memory"),
    *("max_cache_len", "max_matching_ngram_size", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "num_beam_groups", "output_attentions"),
    *("output_hidden_states", "output_logits", "output_scores", "pad_token_id"),
    *("prefill_chunk_size", "prompt_lookup_num_tokens", "remove_invalid_values"),
    *("renormalize_logits", "return_dict_in_generate", "speculation_type", "target_lookbehind"),
    *("transformers_version", "use_cache", "use_mtp"),
)


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """How texts are written unless the caller says otherwise.

    Attributes:
        draws: whether tokens are drawn; else the likeliest is taken.
        drawing: how they are drawn if they are, which may be asked for.
        stop_token_ids: what ends a text.
        stop_strings: what else does.
        decoder_prompt: what the target of an encoder-decoder begins with.
        max_new_tokens: most tokens of a text; None where nothing is said.
        passed_over: what the file asks for and is not done, as "num_beams=4".
        file: where this stands.
    """

    draws: bool
    drawing: Sampling
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    decoder_prompt: tuple[int, ...]
    max_new_tokens: int | None
    passed_over: tuple[str, ...]
    file: Path

    def sampling(self, **changes: Any) -> Sampling:
        """How tokens are chosen.

        Args:
            **changes: fields of `Sampling` that the caller wants otherwise; None is none. With a
                temperature tokens are drawn, at 0 they are not; a top_k of 0 draws among all.

        Raises:
            ValueError: as `Sampling`.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if changes.get("top_k") == 0:
            changes["top_k"] = None
        if not changes.get("temperature", self.draws):
            # The likeliest token is taken: what says how to draw does not count.
            greedy = {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None}
            return dataclasses.replace(self.drawing, **(greedy | changes))
        return dataclasses.replace(self.drawing, **changes)

    def texts(self, tokenizer: Any, written: np.ndarray) -> list[str]:
        """What was written, without stop strings and what stands behind them.

        Args:
            tokenizer: the checkpoint's.
            written: token ids, int or float [rows, tokens], below 0 behind the end of a row.
        """
        rows = [[int(token) for token in row if token >= 0] for row in written]
        found = tokenizer.batch_decode(rows, skip_special_tokens=True)
        for stop in self.stop_strings:
            found = [text.partition(stop)[0] for text in found]
        return [text.strip() for text in found]


def generation_defaults(
    folder: Path, tokenizer_stops: tuple[int, ...] = (), *, is_encoder_decoder: bool
) -> GenerationDefaults:
    """What a checkpoint says.

    Args:
        folder: with config.json and perhaps generation_config.json. Old checkpoints have its fields
            in config.json, which counts if there is no such file.
        tokenizer_stops: end tokens of the tokenizer, which count as well.
        is_encoder_decoder: whether the network is one.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: a file that is no JSON object, a field of the wrong type or out of range, or an
            encoder-decoder without a first token.
    """
    file = folder / "config.json"
    fields = config = {n: value for n, value in read_config(folder).items() if value is not None}
    if (folder / "generation_config.json").is_file():
        file = folder / "generation_config.json"
        fields = {name: config[name] for name in TOKENS if name in config} | _object(file)
    try:
        return _defaults(_Fields(fields), tokenizer_stops, is_encoder_decoder, file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not an object of fields.")
    return {name: value for name, value in content.items() if value is not None}


def _defaults(fields, tokenizer_stops, is_encoder_decoder, file) -> GenerationDefaults:
    stops = tuple(dict.fromkeys((*fields.ids("eos_token_id"), *tokenizer_stops)))
    decoder_prompt: tuple[int, ...] = ()
    if is_encoder_decoder:
        decoder_prompt = fields.ids("decoder_start_token_id")
        if not decoder_prompt:
            raise ValueError("there is no decoder_start_token_id to begin with.")
        decoder_prompt += fields.ids("forced_bos_token_id")
    banned, longer = _banned(fields, stops)
    # A forced first token counts as new there, and is part of the prompt here.
    least = fields.number("min_new_tokens", int, 0) - max(len(decoder_prompt) - 1, 0)
    most = fields.number("max_new_tokens", int, None)
    if is_encoder_decoder:
        least = max(least, fields.number("min_length", int, 0) - len(decoder_prompt))
        if most is None and (whole := fields.number("max_length", int, None)) is not None:
            most = whole - len(decoder_prompt)
    if most is not None and most < 1:
        raise ValueError(f"a text may have {most} new tokens (max_new_tokens, max_length).")
    temperature = fields.number("temperature", float, 1.0)
    draws = fields.truth("do_sample", False) and temperature > 0
    drawing = Sampling(
        repetition_penalty=fields.number("repetition_penalty", float, 1.0),
        no_repeat_ngram_size=fields.number("no_repeat_ngram_size", int, 0),
        banned_tokens=banned,
        min_new_tokens=max(least, 0),
        temperature=temperature or 1.0,
        top_k=fields.number("top_k", int, TOP_K) or None,
        top_p=fields.number("top_p", float, None),
        min_p=fields.number("min_p", float, None),
    )
    passed_over = fields.passed_over() + longer
    if not is_encoder_decoder and fields.number("min_length", int, 0):
        passed_over += (f"min_length={fields['min_length']}",)
    strings = fields.strings("stop_strings")
    return GenerationDefaults(
        draws, drawing, stops, strings, decoder_prompt, most, passed_over, file
    )


def _banned(fields: "_Fields", stops: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Tokens that are never chosen, and what is said of sequences, which are not looked for."""
    words = fields.get("bad_words_ids", [])
    if not isinstance(words, list) or not all(_are_ids(word) and word for word in words):
        raise ValueError("bad_words_ids is not a list of lists of token ids.")
    # An end token cannot be a bad word.
    single = {word[0] for word in words if len(word) == 1} - set(stops)
    longer = sum(len(word) > 1 for word in words)
    said = (f"{longer} bad_words_ids of several tokens",) if longer else ()
    return tuple(sorted(single | set(fields.ids("suppress_tokens")))), said


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value)


class _Fields(dict):
    """Fields of a JSON file, none of them None, read by type."""

    def number(self, name: str, kind: type, default: Any) -> Any:
        """A finite number; of an int, no other."""
        value = self.get(name, default)
        if value is None:
            return None
        if type(value) not in (int, kind) or not math.isfinite(value):
            word = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name} is {value!r}, not {word}.")
        return value

    def truth(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, neither true nor false.")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id, or several; a negative one stands for none."""
        value = self.get(name, [])
        value = [value] if type(value) is int else value
        if not _are_ids(value):
            raise ValueError(f"{name} is {value!r}, neither a token id nor a list of them.")
        return tuple(one for one in value if one >= 0)

    def strings(self, name: str) -> tuple[str, ...]:
        """A text, or several; none of them empty."""
        value = self.get(name, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            raise ValueError(f"{name} is {value!r}, neither a text nor a list of texts.")
        return tuple(value)

    def passed_over(self) -> tuple[str, ...]:
        """What asks for something that is not done."""
        return tuple(
            f"{name}={self[name]!r}"
            for name, neutral in PASSED_OVER.items()
            if name in self and self[name] not in neutral
        )
