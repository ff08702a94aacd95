"""Networks that put a new head on a pretrained backbone."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.dropout import dropout, split_key
from ftjax.models.layers import linear


class TextClassifier(nnx.Module):
    """A text encoder, a way to make one vector of its tokens, dropout and a linear layer.

    Attributes:
        backbone: a text encoder, called as `backbone(input_ids, attention_mask, ...) -> Output`.
        classifier: the new layer, kernel [hidden, classes].
        deterministic_backbone: whether dropout stays off in the backbone during training, as it
            should where the backbone is frozen and only serves features.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        num_classes: int,
        *,
        pooling: str,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.classifier = linear(
            backbone.config.hidden_size, num_classes, backbone.compute, rngs=rngs
        )
        self.pooling = pooling
        self.dropout_rate = dropout_rate
        self.deterministic_backbone = False

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """One vector per text.

        Args:
            batch: `input_ids` and `attention_mask` int [batch, length], perhaps `token_type_ids`.
            key: random key for dropout; None for evaluation.

        Returns:
            [batch, hidden].
        """
        pairs = {name: batch[name] for name in ("token_type_ids",) if name in batch}
        output = self.backbone(
            batch["input_ids"],
            batch["attention_mask"],
            key=None if self.deterministic_backbone else key,
            **pairs,
        )
        if self.pooling == "pooler":
            return output.pooled
        if self.pooling == "first":
            return output.last_hidden_state[:, 0]
        return mean_of_tokens(output.last_hidden_state, batch["attention_mask"])

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [batch, classes]."""
        backbone_key, head_key = split_key(key, 2)
        features = dropout(self.features(batch, backbone_key), self.dropout_rate, head_key)
        return self.classifier(features).astype(jnp.float32)


class LanguageModel(nnx.Module):
    """A published causal language model, called with a batch.

    Attributes:
        backbone: a family's "causal_lm" network.
    """

    def __init__(self, backbone: nnx.Module):
        self.backbone = backbone

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits [batch, length, vocabulary] of packed rows.

        Args:
            batch: `input_ids`, `segment_ids` and `position_ids`, int [batch, length].
            key: random key for dropout; None for evaluation.
        """
        output = self.backbone(
            batch["input_ids"],
            segment_ids=batch["segment_ids"],
            position_ids=batch["position_ids"],
            key=key,
        )
        return output.logits


def mean_of_tokens(hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Mean over the real tokens, in float32; a row without any gives zeros.

    Args:
        hidden: [batch, length, hidden].
        attention_mask: [batch, length], nonzero where a token is real.
    """
    weights = attention_mask.astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
    return (total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)).astype(hidden.dtype)
