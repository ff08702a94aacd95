"""What encoder-decoders share: how they are called, decoding with a cache, the head."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.cache import add_cross_attention, empty_cache
from ftjax.models.dropout import split_key
from ftjax.models.layers import Network, Output


class EncoderDecoder(nnx.Module):
    """A network with an encoder and a decoder.

    A family gives it `embed_source(input_ids)`, `embed_target(decoder_input_ids)`, an `encoder`
    with `encode(hidden, attention_mask, segment_ids, key) -> Output`, and a `decoder` with
    `decode(hidden, attention_mask, encoder_hidden_states, encoder_attention_mask, cache, key) ->
    Output` and `cross_attentions()`, one per block.
    """

    embed_source: Callable[..., jax.Array]
    embed_target: Callable[..., jax.Array]
    encoder: Network
    decoder: Network

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """Encodes the source and runs the decoder over the target.

        Args:
            input_ids: int [batch, length].
            attention_mask: [batch, length], nonzero where a token is real.
            decoder_input_ids: int [batch, target_length], the target shifted right.
            decoder_attention_mask: [batch, target_length]; all by default.
            inputs_embeds: [batch, length, hidden] in place of `input_ids`.
            key: random key for dropout; None for evaluation.

        Returns:
            The decoder's hidden states.
        """
        encoder_key, decoder_key = split_key(key, 2)
        encoder_hidden_states = self.encode(
            input_ids, attention_mask, inputs_embeds=inputs_embeds, key=encoder_key
        )
        return self.decode(
            decoder_input_ids,
            encoder_hidden_states,
            attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            key=decoder_key,
        )

    def encode(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The encoder's last hidden state, [batch, length, hidden]; arguments as in `__call__`."""
        hidden = self.embed_source(input_ids) if inputs_embeds is None else inputs_embeds
        return self.encoder.encode(hidden, attention_mask, None, key).last_hidden_state

    def decode(
        self,
        decoder_input_ids: jax.Array,
        encoder_hidden_states: jax.Array,
        encoder_attention_mask: jax.Array | None = None,
        *,
        decoder_attention_mask: jax.Array | None = None,
        cache: dict | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """Runs the decoder.

        Args:
            decoder_input_ids: int [batch, new].
            encoder_hidden_states: [batch, length, hidden].
            encoder_attention_mask: [batch, length], nonzero where a source token is real.
            decoder_attention_mask: [batch, new], with a cache [batch, max_length]; all by default.
            cache: from `init_cache` or an earlier call: these tokens follow the ones in it.
            key: random key for dropout; None for evaluation, and with a cache.
        """
        return self.decoder.decode(
            self.embed_target(decoder_input_ids),
            decoder_attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            cache,
            key,
        )

    def init_cache(
        self,
        batch: int,
        max_length: int,
        dtype: Any = jnp.float32,
        encoder_hidden_states: jax.Array | None = None,
    ) -> dict:
        """An empty cache for `decode` (its layout: ftjax/models/cache.py).

        Args:
            batch: number of rows.
            max_length: room for tokens of the target.
            dtype: of keys and values.
            encoder_hidden_states: [batch, length, hidden]; if given, the cross-attentions' keys and
                values are computed here, once, and not at each call of `decode`.
        """
        attentions = self.decoder.cross_attentions()
        first = attentions[0]
        cache = empty_cache(len(attentions), batch, max_length, first.heads, first.head_dim, dtype)
        if encoder_hidden_states is None:
            return cache
        return add_cross_attention(cache, attentions, encoder_hidden_states)


class EncoderDecoderLM(EncoderDecoder):
    """A language-model head on an encoder-decoder.

    A family gives it a `backbone` and `logits(hidden)`; all calls are the backbone's, with logits.
    """

    backbone: Network
    config: Any
    logits: Callable[[jax.Array], jax.Array]
    virtual_tokens: int = 0

    def encode(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """As the backbone's; a tuned `prompt`, if there is one, stands in front of the source."""
        prompt = getattr(self, "prompt", None)
        if prompt is None:
            return self.backbone.encode(
                input_ids, attention_mask, inputs_embeds=inputs_embeds, key=key
            )
        if inputs_embeds is None:
            inputs_embeds = self.backbone.embed_source(input_ids)
        assert inputs_embeds is not None
        virtual = prompt().astype(inputs_embeds.dtype)
        rows = jnp.broadcast_to(virtual, (len(inputs_embeds), *virtual.shape))
        hidden = jnp.concatenate([rows, inputs_embeds], axis=1)
        mask = self.source_mask(attention_mask)
        return self.backbone.encode(attention_mask=mask, inputs_embeds=hidden, key=key)

    def source_mask(self, attention_mask: jax.Array | None) -> jax.Array | None:
        """[batch, length] -> the same with a tuned prompt's tokens in front."""
        prompt = getattr(self, "prompt", None)
        if prompt is None or attention_mask is None:
            return attention_mask
        room = ((0, 0), (prompt.virtual.shape[0], 0))
        return jnp.pad(attention_mask, room, constant_values=1)

    def decode(
        self,
        decoder_input_ids: jax.Array,
        encoder_hidden_states: jax.Array,
        encoder_attention_mask: jax.Array | None = None,
        **kwargs,
    ) -> Output:
        """As the backbone's, with `logits` [batch, new, vocabulary]; the mask is the source's."""
        mask = self.source_mask(encoder_attention_mask)
        output = self.backbone.decode(decoder_input_ids, encoder_hidden_states, mask, **kwargs)
        return output._replace(logits=self.logits(output.last_hidden_state))

    def init_cache(self, *args, **kwargs) -> dict:
        """As the backbone's."""
        return self.backbone.init_cache(*args, **kwargs)


def shift_right(
    labels: jax.Array, decoder_start_token_id: int, pad_token_id: int | None
) -> jax.Array:
    """What the decoder reads in order to predict `labels`: each token sees those before it.

    (transformers' `shift_tokens_right`.)

    Args:
        labels: int [batch, length], -100 where nothing is predicted.
        decoder_start_token_id: what stands before the first label.
        pad_token_id: what stands in place of -100.

    Returns:
        int [batch, length].

    Raises:
        ValueError: without a pad token.
    """
    if pad_token_id is None:
        raise ValueError(
            "shift_right: pad_token_id is None; it replaces the labels of -100, so name the "
            "tokenizer's padding token."
        )
    start = jnp.full_like(labels[:, :1], decoder_start_token_id)
    shifted = jnp.concatenate([start, labels[:, :-1]], axis=1)
    return jnp.where(shifted == -100, pad_token_id, shifted)
