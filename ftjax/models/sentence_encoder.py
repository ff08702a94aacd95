"""Text encoders that make one vector of each text of a row."""

import inspect
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.heads import TextClassifier, encode, last_token, mean_of_tokens
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
        """Embeddings float32 [batch, texts, hidden]; arguments as of `embed_rows`."""
        return embed_rows(self.backbone, batch, self.pooling, self.texts, key)

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
        return _pooled(hidden, batch["attention_mask"], self.pooling)


class PairClassifier(TextClassifier):
    """A classifier of texts that learns from pairs: of these it gives vectors, and no logits."""

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [batch, classes]; of pairs, embeddings float32 [batch, 2, hidden].

        Args:
            batch: as of `TextClassifier`; or of pairs, as of `embed_rows`.
            key: random key for dropout; None for evaluation.
        """
        if "segment_ids" in batch:
            return embed_rows(self.backbone, batch, self.pooling, 2, key)
        return super().__call__(batch, key=key)

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """As of `TextClassifier`; of pairs, both vectors in one, [batch, 2 * hidden]."""
        if "segment_ids" in batch:
            found = self(batch, key=key)
            return found.reshape(len(found), -1)
        return super().features(batch, key)


def embed_rows(
    backbone: Network,
    batch: Mapping[str, jax.Array],
    pooling: str,
    texts: int,
    key: jax.Array | None,
) -> jax.Array:
    """Embeddings of rows of several texts, float32 [batch, texts, hidden].

    Args:
        backbone: a text encoder or a decoder.
        batch: `input_ids`, `segment_ids` and `position_ids`, int [batch, length]; the texts of a
            row are segments 1, 2, ...
        pooling: "mean", "first" or "last".
        texts: of a row.
        key: random key for dropout; None for evaluation.

    Raises:
        ValueError: the network has virtual tokens, of which each text would need its own.
    """
    if getattr(backbone, "prompt", None) is not None:
        raise ValueError(
            "Virtual tokens (config.tuning.method = 'prompt' or 'p_tuning') stand before a row, "
            "and here a row has several texts; choose 'prefix', 'lora' or another method."
        )
    inputs = {"segment_ids": batch["segment_ids"]}
    if "position_ids" in inspect.signature(type(backbone).__call__).parameters:
        inputs["position_ids"] = positions_of(backbone, batch["position_ids"])
    hidden = backbone(batch["input_ids"], **inputs, key=key).last_hidden_state
    places = [batch["segment_ids"] == text for text in range(1, texts + 1)]
    vectors = [_pooled(hidden, of_text, pooling) for of_text in places]
    return jnp.stack(vectors, axis=1).astype(jnp.float32)


def _pooled(hidden: jax.Array, real: jax.Array, pooling: str) -> jax.Array:
    if pooling == "mean":
        return mean_of_tokens(hidden, real)
    if pooling == "last":
        return last_token(hidden, real)
    first = jnp.argmax(real != 0, axis=1)
    return jnp.take_along_axis(hidden, first[:, None, None], axis=1)[:, 0]
