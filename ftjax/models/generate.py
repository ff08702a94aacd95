"""Text from a causal language model or an encoder-decoder, with a key/value cache.

A prompt goes through the network once (prefill), then every new token once. Decoding runs inside a
compiled loop; the host looks at the tokens only as often as it has to, for stop strings or for a
reader who watches. Lengths are rounded up to a few sizes, so that few programs are compiled.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.decoder_heads import CausalLM
from ftjax.models.encoder_decoder import EncoderDecoderLM
from ftjax.models.layers import Network
from ftjax.models.prompt import use_prompt
from ftjax.models.sampling import Sampling, Written, choose_tokens

# Tokens between two looks at the text, where stop strings are given.
TOKENS_PER_LOOK = 16


def generate(
    network: Network,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    key: jax.Array | None = None,
    stop_token_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    decoder_prompt: Sequence[int] = (),
    on_tokens: Callable[[list[list[int]]], None] | None = None,
) -> list[list[int]]:
    """Continues each prompt; an encoder-decoder writes a target for each source.

    What a row gets does not depend on the other rows (but for the rope types "dynamic" and
    "longrope", where the longest row decides for all, as in the reference).

    Args:
        network: a "causal_lm" or "seq2seq_lm".
        prompts: token ids, of any lengths.
        max_new_tokens: most tokens to add.
        sampling: how tokens are chosen; by default always the likeliest.
        key: random key, needed where `sampling.temperature` is not 0.
        stop_token_ids: a row ends before any of these.
        stop_strings: a row ends with the token that completes any of these in its new text.
        decode: tokens -> text, needed for stop strings.
        decoder_prompt: what the target of an encoder-decoder begins with, its
            `decoder_start_token_id` first; no part of the result.
        on_tokens: called with the new tokens of each row, as soon as there are any, empty for a row
            that has ended. It costs a look at the device per token.

    Returns:
        The new tokens of each prompt.

    Raises:
        ValueError: an empty prompt, one that does not fit the network's positions together with the
            new tokens, a token outside the vocabulary, or an argument missing.
    """
    _check_call(sampling, key, stop_strings, decode)
    if isinstance(network, CausalLM) and getattr(network, "prompt", None) is not None:
        # A copy of the modules, not of their arrays: the caller's keeps its prompt.
        network = nnx.merge(*nnx.split(network))
        use_prompt(network)
    _check(network, prompts, decoder_prompt, max_new_tokens)
    if not prompts:
        return []
    rows = _Rows(len(prompts), stop_token_ids, stop_strings, decode)
    steps = _Steps(network, prompts, decoder_prompt, max_new_tokens, key)
    step = {"sampling": sampling, "stop_token_ids": tuple(stop_token_ids)}
    per_look = TOKENS_PER_LOOK if stop_strings else max_new_tokens
    steps.begin(**step)
    while True:
        new = rows.read(steps.new_tokens())
        if on_tokens is not None:
            on_tokens(new)
        if steps.at_end or all(rows.ended):
            return rows.tokens
        steps.go_on(rows.ended, 1 if on_tokens is not None else per_look, **step)


def write(
    network: Network,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    stop_token_ids: Sequence[int] = (),
    decoder_prompt: Sequence[int] = (),
) -> jax.Array:
    """What `generate` writes for each row, as one function to be compiled with what is around it.

    The likeliest token is taken each time. Rows of rope types "dynamic" and "longrope" must not be
    longer than in pretraining.

    Args:
        network: as of `generate`; of a decoder, a `prompt` is put to use for good.
        input_ids: int [batch, length], prompts or sources.
        attention_mask: [batch, length], nonzero where a token is real: the first ones of each row,
            at least one.
        max_new_tokens: as of `generate`.
        sampling: as of `generate`, without temperature.
        stop_token_ids: as of `generate`.
        decoder_prompt: as of `generate`.

    Returns:
        int32 [batch, max_new_tokens], -1 behind the end of a row.
    """
    (rows, length), first = input_ids.shape, len(decoder_prompt)
    if isinstance(network, EncoderDecoderLM):
        inputs = Inputs(jnp.zeros(rows, jnp.int32), None, input_ids, attention_mask)
        begun = jnp.broadcast_to(jnp.asarray(decoder_prompt, jnp.int32), (rows, first))
    else:
        if getattr(network, "prompt", None) is not None:
            use_prompt(network)
        padding = length - jnp.sum(attention_mask != 0, axis=1, dtype=jnp.int32)
        inputs, first = Inputs(padding, None, None, None), length
        begun = jax.vmap(jnp.roll)(input_ids, padding)
    tokens = jnp.pad(begun.astype(jnp.int32), ((0, 0), (0, max_new_tokens)))
    state = _State(tokens, jnp.int32(0), jnp.zeros(rows, bool), None)
    step = (sampling, tuple(stop_token_ids))
    state = _see_all(network, inputs, state, first, first, *step)
    state = _go_on(network, inputs, state, first + max_new_tokens, first, *step)
    new = state.tokens[:, first:]
    ended = jnp.cumsum(jnp.isin(new, jnp.asarray(stop_token_ids, jnp.int32)), axis=1) > 0
    return jnp.where(ended, -1, new)


def max_positions(network: Network) -> int | None:
    """Most tokens of a row: prompt and new ones, or source and target each.

    None where positions are relative, or the rope type follows the length.
    """
    most = getattr(network.config, "longest_row", None)
    return None if most is None else most - network.virtual_tokens


class Inputs(NamedTuple):
    """What stays the same over all steps.

    Attributes:
        padding: int32 [batch], slots before a row's first token.
        keys: a random key per row, or None.
        source: int32 [batch, source length] of an encoder-decoder, or None.
        source_mask: [batch, source length], or None.
    """

    padding: jax.Array
    keys: jax.Array | None
    source: jax.Array | None
    source_mask: jax.Array | None


class _State(NamedTuple):
    """What a step changes.

    Attributes:
        tokens: int32 [batch, slots], prompts padded on the left, then what was generated.
        length: int32 scalar, slots in use; the last of them was not yet seen by the network.
        ended: bool [batch].
        cache: of the slots before the last.
    """

    tokens: jax.Array
    length: jax.Array
    ended: jax.Array
    cache: dict | None


class _Steps:
    """A network and how far its rows have come."""

    def __init__(self, network, prompts, decoder_prompt, max_new_tokens, key):
        self._graphdef, self._parameters = nnx.split(network)
        layout = _lay_out(network, prompts, decoder_prompt, max_new_tokens, key)
        self._inputs, self._state, self._first = layout
        self._last = self._first + max_new_tokens
        self._turn = _rotary_turn(network, prompts, self._first)

    @property
    def at_end(self) -> bool:
        """Whether there are as many tokens as were asked for."""
        return int(self._state.length) == self._last

    def new_tokens(self) -> np.ndarray:
        """[batch, new]; what stands after the end of a row means nothing."""
        return np.asarray(self._state.tokens)[:, self._first : int(self._state.length)]

    def begin(self, **step) -> None:
        """Sees the prompts and adds the first token."""
        self._see_all(self._first, step)

    def go_on(self, ended: list[bool], most: int, **step) -> None:
        """Adds tokens, at most so many."""
        length, ahead = int(self._state.length), self._last
        if length == self._turn:
            self._see_all(length, step)
            return
        if self._turn is not None and length < self._turn:
            ahead = self._turn
        state = self._state._replace(ended=jnp.asarray(ended))
        until = min(length + most, ahead, self._last)
        work = (self._graphdef, self._parameters, self._inputs, state)
        self._state = _decode(*work, until, self._first, **step)

    def _see_all(self, length: int, step: dict) -> None:
        work = (self._graphdef, self._parameters, self._inputs, self._state)
        self._state = _prefill(*work, length=length, first=self._first, **step)


@functools.partial(
    jax.jit, static_argnames=("graphdef", "length", "first", "sampling", "stop_token_ids")
)
def _prefill(graphdef, parameters, inputs, state, *, length, first, sampling, stop_token_ids):
    network = nnx.merge(graphdef, parameters)
    return _see_all(network, inputs, state, length, first, sampling, stop_token_ids)


@functools.partial(
    jax.jit, static_argnames=("graphdef", "sampling", "stop_token_ids"), donate_argnames="state"
)
def _decode(graphdef, parameters, inputs, state, until, first, *, sampling, stop_token_ids):
    network = nnx.merge(graphdef, parameters)
    return _go_on(network, inputs, state, until, first, sampling, stop_token_ids)


def _see_all(network, inputs, state, length, first, sampling, stop_token_ids):
    """Sees the first `length` slots anew and adds a token."""
    batch, slots = state.tokens.shape
    encoded = ()
    if inputs.source is not None:
        encoded = (network.encode(inputs.source, inputs.source_mask),)
    cache = network.init_cache(batch, length, network.compute.dtype, *encoded)
    logits, cache = see(network, inputs, state.tokens[:, :length], cache)
    for layer in cache["layers"]:
        for name in ("key", "value"):
            room = ((0, 0), (0, slots - length), (0, 0), (0, 0))
            layer[name] = jnp.pad(layer[name], room)
    state = state._replace(cache=cache, length=jnp.int32(length))
    return _add_token(inputs, state, logits, first, sampling, stop_token_ids)


def _go_on(network, inputs, state, until, first, sampling, stop_token_ids):
    """Adds tokens until the slot `until` or until all rows have ended."""

    def goes_on(state):
        return (state.length < until) & ~jnp.all(state.ended)

    def add(state):
        token = jax.lax.dynamic_slice_in_dim(state.tokens, state.length - 1, 1, axis=1)
        logits, cache = see(network, inputs, token, state.cache)
        state = state._replace(cache=cache)
        return _add_token(inputs, state, logits, first, sampling, stop_token_ids)

    return jax.lax.while_loop(goes_on, add, state)


def see(network, inputs, tokens, cache):
    """One pass over new tokens of each row.

    Args:
        network: as of `generate`.
        inputs: what stays the same.
        tokens: int [batch, new], that the cache has not seen.
        cache: from `init_cache`, with room for them.

    Returns:
        Logits [batch, vocabulary] behind the last of them, and the cache with them.
    """
    if inputs.source is not None:
        mask = network.source_mask(inputs.source_mask)
        output = network.backbone.decode(tokens, None, mask, cache=cache)
    else:
        slots = jnp.arange(cache["layers"][0]["key"].shape[1])
        positions = cache["index"] + jnp.arange(tokens.shape[1])[None] - inputs.padding[:, None]
        # The positions before are those of a tuned prompt.
        positions = jnp.maximum(positions, 0) + network.virtual_tokens
        output = network.backbone(
            tokens,
            slots[None] >= inputs.padding[:, None],
            position_ids=positions,
            cache=cache,
        )
    return network.logits(output.last_hidden_state[:, -1:])[:, 0], output.cache


def _add_token(inputs, state, logits, first, sampling, stop_token_ids):
    length, keys = state.length, None
    if inputs.keys is not None:
        keys = jax.vmap(jax.random.fold_in, (0, None))(inputs.keys, length - first)
    written = Written(state.tokens, inputs.padding, length)
    stop_tokens = jnp.asarray(stop_token_ids, jnp.int32)
    # An index beyond the vocabulary holds nothing back.
    too_early = length - first < sampling.min_new_tokens
    held_back = jnp.where(too_early, stop_tokens, logits.shape[-1])
    token = choose_tokens(logits, written, sampling, keys, held_back)
    token = jnp.where(state.ended, 0, token)
    stops = jnp.isin(token, stop_tokens)
    return state._replace(
        tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, length)),
        length=length + 1,
        ended=state.ended | stops,
    )


def _lay_out(network, prompts, decoder_prompt, max_new_tokens, key):
    """The first `Inputs` and `_State`, and the slot where generation begins."""
    rows = len(prompts)
    keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    most = max_positions(network)
    length = _rounded_up(max(len(prompt) for prompt in prompts))
    padding = np.array([length - len(prompt) for prompt in prompts], np.int32)
    if not isinstance(network, EncoderDecoderLM):
        tokens = np.zeros((rows, _rounded_up(length + max_new_tokens)), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, padding[row] : length] = prompt
        inputs = Inputs(jnp.asarray(padding), keys, None, None)
        return inputs, _begin(tokens), length
    # Positions of an encoder-decoder are its slots, so its rows are padded on the right and no
    # longer than it has positions.
    length, first = min(length, most or length), len(decoder_prompt)
    slots = _rounded_up(first + max_new_tokens)
    tokens = np.zeros((rows, min(slots, most or slots)), np.int32)
    tokens[:, :first] = decoder_prompt
    source, mask = np.zeros((2, rows, length), np.int32)
    for row, prompt in enumerate(prompts):
        source[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    none = jnp.zeros(rows, jnp.int32)
    return Inputs(none, keys, jnp.asarray(source), jnp.asarray(mask)), _begin(tokens), first


def _begin(tokens: np.ndarray) -> _State:
    return _State(jnp.asarray(tokens), jnp.int32(0), jnp.zeros(len(tokens), bool), None)


def _rounded_up(length: int) -> int:
    """To a quarter of the next power of two, at least 16: four sizes per doubling."""
    step = max(16, (1 << (length - 1).bit_length()) // 4)
    return -(-length // step) * step


def _rotary_turn(network, prompts, first: int) -> int | None:
    """The length in slots at which cached keys become useless, if it lies ahead.

    With longrope all keys are rotated in another way once the longest row exceeds the length of the
    pretraining; there the network has to see everything again.
    """
    rotary = getattr(network.config, "rope_parameters", None)
    if rotary is None or rotary.rope_type != "longrope":
        return None
    turn = first - max(len(prompt) for prompt in prompts) + rotary.original_length + 1
    return turn if turn > first else None


class _Rows:
    """The new tokens of each row, and which rows have ended.

    Attributes:
        tokens: per row.
        ended: per row.
    """

    def __init__(self, count, stop_token_ids, stop_strings, decode):
        self.tokens = [[] for _ in range(count)]
        self.ended = [False] * count
        self._stop_token_ids = frozenset(stop_token_ids)
        self._stop_strings = stop_strings
        self._decode = decode

    def read(self, tokens: np.ndarray) -> list[list[int]]:
        """Takes over all tokens [batch, new] so far; returns what is new in each row."""
        before = [len(row) for row in self.tokens]
        looked = tokens.shape[1]
        for row, known in enumerate(self.tokens):
            while not self.ended[row] and len(known) < looked:
                token = int(tokens[row, len(known)])
                if token in self._stop_token_ids:
                    self.ended[row] = True
                    break
                known.append(token)
                self.ended[row] = self._completes_a_stop_string(known)
        return [row[start:] for row, start in zip(self.tokens, before, strict=True)]

    def _completes_a_stop_string(self, tokens: list[int]) -> bool:
        if not self._stop_strings:
            return False
        text = self._decode(tokens)
        return any(stop in text for stop in self._stop_strings)


def _check_call(sampling, key, stop_strings, decode) -> None:
    if sampling.temperature > 0 and key is None:
        raise ValueError("Drawing tokens (temperature above 0) needs a random key.")
    if stop_strings and decode is None:
        raise ValueError("stop_strings need decode, which turns tokens into text.")


def _check(network, prompts, decoder_prompt, max_new_tokens) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1; it is {max_new_tokens}.")
    is_encoder_decoder = isinstance(network, EncoderDecoderLM)
    if is_encoder_decoder != bool(decoder_prompt):
        raise ValueError(
            "An encoder-decoder needs a decoder_prompt (its decoder_start_token_id), and only it."
        )
    most = max_positions(network)
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"Prompt {row} is empty; begin it with the tokenizer's BOS token.")
        outside = [t for t in prompt if not 0 <= t < network.config.vocab_size]
        if outside:
            raise ValueError(
                f"Prompt {row} has token {outside[0]}, but the network's vocabulary has "
                f"{network.config.vocab_size}: the tokenizer belongs to another network."
            )
        asked = len(prompt) if is_encoder_decoder else len(prompt) + max_new_tokens
        if most is not None and asked > most:
            raise ValueError(
                f"Prompt {row} has {len(prompt)} tokens"
                + ("" if is_encoder_decoder else f", and {max_new_tokens} new ones are asked for")
                + f"; the network has {most} positions. Shorten the prompt or ask for fewer."
            )
    target = len(decoder_prompt) + max_new_tokens
    if is_encoder_decoder and most is not None and target > most:
        raise ValueError(
            f"{max_new_tokens} new tokens are asked for, but the network has {most} positions."
        )
