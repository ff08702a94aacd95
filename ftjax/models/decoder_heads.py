"""The heads that decoders are published with: language model, classifier of the last token."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.heads import last_token
from ftjax.models.layers import Compute, Network, Output, linear, published_init


class CausalLM(nnx.Module):
    """A decoder with its language-model head, tied to the embeddings or of its own.

    Attributes:
        virtual_tokens: positions before a row's first token that belong to a tuned prompt.
    """

    virtual_tokens: int = 0

    def __init__(
        self,
        config: Any,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        backbone: Callable[..., Network],
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone(config, compute, rngs=rngs)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else linear(config.hidden_size, config.vocab_size, compute, rngs=rngs, bias=False)
        )
        self.config = config
        self.compute = compute

    def __call__(self, *args, **kwargs) -> Output:
        """As the backbone's, with `logits` [batch, length, vocabulary]."""
        output = self.backbone(*args, **kwargs)
        return output._replace(logits=self.logits(output.last_hidden_state))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[batch, length, hidden] -> [batch, length, vocabulary]."""
        head = self.backbone.token_embedding.attend if self.lm_head is None else self.lm_head
        logits = head(hidden)
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def init_cache(self, *args, **kwargs) -> dict:
        """As the backbone's."""
        return self.backbone.init_cache(*args, **kwargs)


class SequenceClassifier(nnx.Module):
    """A decoder with a linear layer on the last token (transformers' ForSequenceClassification)."""

    def __init__(
        self,
        config: Any,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        backbone: Callable[..., Network],
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone(config, compute, rngs=rngs)
        self.score = linear(
            config.hidden_size,
            config.num_labels,
            compute,
            rngs=rngs,
            bias=False,
            kernel_init=published_init(config),
        )
        self.config = config
        self.compute = compute

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        **kwargs,
    ) -> Output:
        """As the backbone's, with `logits` [batch, classes] of each row's last token.

        The last token is the rightmost one that is not the config's `pad_token_id`; without such an
        id (or with `inputs_embeds`), the rightmost one that `attention_mask` keeps.
        """
        output = self.backbone(input_ids, attention_mask, **kwargs)
        return output._replace(logits=self.classify(self.pool(output, input_ids, attention_mask)))

    def pool(
        self, output: Output, input_ids: jax.Array | None, attention_mask: jax.Array | None
    ) -> jax.Array:
        """What the head sees of the backbone's output: each row's last token, [batch, hidden]."""
        hidden, real = output.last_hidden_state, attention_mask
        if self.config.pad_token_id is not None and input_ids is not None:
            real = input_ids != self.config.pad_token_id
        if real is None:
            real = jnp.ones(hidden.shape[:2], bool)
        return last_token(hidden, real)

    def classify(self, features: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[batch, hidden] -> [batch, classes]; without dropout, as published."""
        return self.score(features)


def decoder_networks(backbone: Callable[..., Network]) -> dict[str, Callable]:
    """The networks of a decoder family by their purpose (`Family.networks`)."""
    return {
        "backbone": backbone,
        "causal_lm": functools.partial(CausalLM, backbone=backbone),
        "sequence_classification": functools.partial(SequenceClassifier, backbone=backbone),
    }
