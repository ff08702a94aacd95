"""An encoder that guesses masked tokens, as training sees it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.heads import TokenOutputs
from ftjax.models.layers import Network


class MaskedLanguageModel(nnx.Module):
    """A "masked_lm" network called with a batch of packed rows; logits only where they are needed.

    The table of words is most of a small encoder's work, and a seventh of the tokens are guessed.

    Attributes:
        backbone: the published network with its head.
        logits_at_once: how many logits may be held.
    """

    def __init__(self, backbone: Network, logits_at_once: int = 2**25):
        self.backbone = backbone
        self.logits_at_once = logits_at_once

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Hidden states of the tokens to guess, [batch, guesses, hidden].

        Args:
            batch: `input_ids`, `segment_ids` and `position_ids` int [batch, length], and
                `masked_positions` int [batch, guesses].
            key: random key for dropout; None for evaluation.
        """
        output = self.backbone.backbone(
            batch["input_ids"],
            segment_ids=batch["segment_ids"],
            position_ids=positions_of(self.backbone.backbone, batch["position_ids"]),
            key=key,
        )
        return jnp.take_along_axis(
            output.last_hidden_state, batch["masked_positions"][..., None], axis=1
        )

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> TokenOutputs:
        """Logits of the tokens to guess; arguments as of `features`."""
        return TokenOutputs(self.features(batch, key), self.backbone.logits, self.logits_at_once)

    def longest_row(self) -> int | None:
        """How many tokens of a row the network has positions for; None where it counts on."""
        config = self.backbone.config
        if not getattr(config, "position_biased_input", True):
            return None
        return getattr(config, "longest_row", None)


def positions_of(encoder: Network, position_ids: jax.Array) -> jax.Array:
    """From 0 in each text to what the family counts (RoBERTa begins behind its padding).

    Args:
        encoder: a text encoder.
        position_ids: int [batch, length], from 0.
    """
    if not hasattr(encoder, "positions"):
        return position_ids
    return encoder.positions(None, position_ids.shape[1])[0][position_ids]
