"""A text encoder that makes one vector of each text of a row."""

import inspect
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.heads import encode, last_token, mean_of_tokens
from ftjax.models.layers import Network
from ftjax.models.masked_language_model import positions_of


class SentenceEncoder(nnx.Module):
    """Embeds texts, one or several in a row.

    Attributes:
        backbone: a text encoder or a decoder.
        pooling: "mean" of a text's tokens, its "first" or its "last".
        texts: how many a row of several has.
    """

    def __init__(self, backbone: Network, pooling: str, texts: int):
        self.backbone = backbone
        self.pooling = pooling
        self.texts = texts

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Embeddings float32 [batch, texts, hidden].

        Args:
            batch: `input_ids`, `segment_ids` and `position_ids`, int [batch, length]; the texts of
                a row are segments 1, 2, ...
            key: random key for dropout; None for evaluation.
        """
        inputs = {"segment_ids": batch["segment_ids"]}
        if "position_ids" in inspect.signature(type(self.backbone).__call__).parameters:
            inputs["position_ids"] = positions_of(self.backbone, batch["position_ids"])
        hidden = self.backbone(batch["input_ids"], **inputs, key=key).last_hidden_state
        texts = [batch["segment_ids"] == text for text in range(1, self.texts + 1)]
        vectors = [self._pooled(hidden, of_text) for of_text in texts]
        return jnp.stack(vectors, axis=1).astype(jnp.float32)

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """One vector for each row: of its only text, or of all that it has.

        Args:
            batch: `input_ids` and `attention_mask` int [batch, length], of one text a row; or as
                of a call.
            key: random key for dropout; None for evaluation.

        Returns:
            [batch, hidden], or [batch, texts * hidden].
        """
        if "segment_ids" in batch:
            found = self(batch, key=key)
            return found.reshape(len(found), -1)
        prompt = getattr(self.backbone, "prompt", None)
        hidden = encode(self.backbone, batch, key, prompt).last_hidden_state
        return self._pooled(hidden, batch["attention_mask"])

    def _pooled(self, hidden: jax.Array, real: jax.Array) -> jax.Array:
        if self.pooling == "mean":
            return mean_of_tokens(hidden, real)
        if self.pooling == "last":
            return last_token(hidden, real)
        first = jnp.argmax(real != 0, axis=1)
        return jnp.take_along_axis(hidden, first[:, None, None], axis=1)[:, 0]
