"""A network that says something of each token, as training sees it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.dropout import split_key
from ftjax.models.heads import encode, mean_of_tokens
from ftjax.models.layers import Network, Output

# The logit of what cannot be chosen; twice it is a number, too.
LOWEST = -1e30


class TokenTagger(nnx.Module):
    """A family's "token_classification" network, called with a batch.

    Attributes:
        backbone: the network, its head included.
        deterministic_backbone: as of `TextClassifier`.
    """

    def __init__(self, backbone: Network):
        self.backbone = backbone
        self.deterministic_backbone = False

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """The mean of a text's tokens, [batch, hidden]; as of `TextClassifier`."""
        hidden = self._encode(batch, key).last_hidden_state
        return mean_of_tokens(hidden, batch["attention_mask"])

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [batch, length, tags]; arguments as of `TextClassifier`."""
        backbone_key, head_key = split_key(key, 2)
        hidden = self._encode(batch, backbone_key).last_hidden_state
        return self.backbone.classify(hidden, head_key).astype(jnp.float32)

    def _encode(self, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Output:
        key = None if self.deterministic_backbone else key
        return encode(self.backbone.backbone, batch, key, getattr(self.backbone, "prompt", None))


class SpanReader(TokenTagger):
    """A family's "question_answering" network, called with a batch."""

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [batch, length, 2] to be first or last token; `LOWEST` for padding."""
        logits = super().__call__(batch, key=key)
        return jnp.where(batch["attention_mask"][..., None] > 0, logits, LOWEST)
