"""Completions drawn from a language model, with the probability that each token was drawn with.

As one function to be compiled, at the parameters of a moment; `generate` is for people.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ftjax.models.generate import Inputs, see
from ftjax.models.heads import LanguageModel, TokenOutputs
from ftjax.models.prompt import use_prompt

NOTHING = -1
"""In the place of a token behind the end of a completion."""


class Completions(NamedTuple):
    """What was drawn.

    Attributes:
        tokens: int32 [rows, new], the token that ends a completion included; -1 behind it.
        logps: float32 [rows, new], in nats, at the temperature; 0 behind the end.
    """

    tokens: jax.Array
    logps: jax.Array


def draw(
    model: LanguageModel,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float,
    stop_token_ids: tuple[int, ...],
) -> Completions:
    """Continues each prompt, with a cache of keys and values.

    Args:
        model: a decoder.
        input_ids: int [rows, length], prompts.
        attention_mask: [rows, length], nonzero for the first ones of each row, at least one.
        keys: a random key per row.
        max_new_tokens: most tokens of a completion.
        temperature: above 0; logits are divided by it.
        stop_token_ids: a completion ends with any of these.
    """
    network, (rows, length) = model.backbone, input_ids.shape
    if getattr(network, "prompt", None) is not None:
        use_prompt(network)
    padding = length - jnp.sum(attention_mask != 0, axis=1, dtype=jnp.int32)
    inputs = Inputs(padding, None, None, None)
    cache = network.init_cache(rows, length, network.compute.dtype)
    logits, cache = see(network, inputs, jax.vmap(jnp.roll)(input_ids, padding), cache)
    for layer in cache["layers"]:
        for name in ("key", "value"):
            room = ((0, 0), (0, max_new_tokens), (0, 0), (0, 0))
            layer[name] = jnp.pad(layer[name], room)

    def add(state):
        place, found, ended, logits, cache = state
        token, logp = _drawn(
            logits, jax.vmap(jax.random.fold_in, (0, None))(keys, place), temperature
        )
        found = _with(found, place, token, logp, ended)
        ended |= jnp.isin(token, jnp.asarray(stop_token_ids, jnp.int32))
        logits, cache = see(network, inputs, token[:, None], cache)
        return place + 1, found, ended, logits, cache

    state = jnp.int32(0), _nothing(rows, max_new_tokens), jnp.zeros(rows, bool), logits, cache
    return jax.lax.while_loop(lambda s: (s[0] < max_new_tokens) & ~jnp.all(s[2]), add, state)[1]


def draw_exactly(
    model: LanguageModel,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float,
    stop_token_ids: tuple[int, ...],
) -> Completions:
    """The same without a cache: each token by the pass over whole rows that training makes.

    So what a token was drawn with is what training says of it, and each token costs a whole pass.
    Arguments as of `draw`.
    """
    rows, length = input_ids.shape
    prompt = jnp.sum(attention_mask != 0, axis=1, dtype=jnp.int32)
    places = jnp.broadcast_to(jnp.arange(length + max_new_tokens), (rows, length + max_new_tokens))

    def add(state):
        place, found, ended, ids = state
        inside = places < (prompt + place)[:, None]
        batch = {
            "input_ids": jnp.where(inside, ids, 0),
            "segment_ids": inside.astype(jnp.int32),
            "position_ids": jnp.where(inside, places, 0),
        }
        row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        token, logp = _last_drawn(model(batch), prompt + place - 1, row_keys, temperature)
        found = _with(found, place, token, logp, ended)
        ended |= jnp.isin(token, jnp.asarray(stop_token_ids, jnp.int32))
        ids = ids.at[jnp.arange(rows), prompt + place].set(token)
        return place + 1, found, ended, ids

    ids = jnp.pad(input_ids, ((0, 0), (0, max_new_tokens)))
    state = jnp.int32(0), _nothing(rows, max_new_tokens), jnp.zeros(rows, bool), ids
    return jax.lax.while_loop(lambda s: (s[0] < max_new_tokens) & ~jnp.all(s[2]), add, state)[1]


def log_probabilities(
    outputs: TokenOutputs, labels: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Of tokens that follow, in nats, and entropies of the predictions, float32 [rows, length].

    Both at the temperature. Entropies have no gradient.

    Args:
        outputs: of whole rows.
        labels: int [rows, length], the token that follows each.
        temperature: logits are divided by it.
    """

    def measures(logits, labels):
        logs = jax.nn.log_softmax(logits / temperature)
        kept = jax.lax.stop_gradient(logs)
        found = jnp.take_along_axis(logs, labels[..., None], axis=-1)[..., 0]
        return found, -jnp.sum(jnp.exp(kept) * kept, axis=-1)

    return outputs.map(measures, labels)


def _drawn(logits, keys, temperature):
    logs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    token = jax.vmap(jax.random.categorical)(keys, logs).astype(jnp.int32)
    return token, jnp.take_along_axis(logs, token[:, None], axis=-1)[:, 0]


def _last_drawn(outputs: TokenOutputs, last, keys, temperature):
    """Drawn behind the place `last` of each row, by the program that scores all places."""
    here = jnp.arange(outputs.hidden.shape[1]) == last[:, None]
    data = jax.random.key_data(keys)
    data = jnp.broadcast_to(data[:, None], (*here.shape, *data.shape[1:]))

    def measures(logits, data):
        logs = jax.nn.log_softmax(logits / temperature)
        draw_each = jax.vmap(jax.vmap(jax.random.categorical))
        token = draw_each(jax.random.wrap_key_data(data), logs).astype(jnp.int32)
        return token, jnp.take_along_axis(logs, token[..., None], axis=-1)[..., 0]

    token, logp = outputs.map(measures, data)
    at = last[:, None]
    return tuple(jnp.take_along_axis(x, at, axis=1)[:, 0] for x in (token, logp))


def _nothing(rows: int, count: int) -> Completions:
    return Completions(
        jnp.full((rows, count), NOTHING, jnp.int32), jnp.zeros((rows, count), jnp.float32)
    )


def _with(found: Completions, place, token, logp, ended) -> Completions:
    tokens = found.tokens.at[:, place].set(jnp.where(ended, NOTHING, token))
    return Completions(tokens, found.logps.at[:, place].set(jnp.where(ended, 0.0, logp)))
