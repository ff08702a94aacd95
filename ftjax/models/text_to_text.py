"""Networks that write a target for a source, as training and measuring see them.

Encoder-decoders and decoders take the same batches: sources and targets, each padded on the right.
"""

import abc
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftjax.models.encoder_decoder import shift_right
from ftjax.models.generate import max_positions, write
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Network
from ftjax.models.sampling import Sampling


class TextToText(LanguageModel):
    """A published network that predicts the tokens of a target, given those of a source.

    It is called with a batch of `input_ids` and `attention_mask`, int [batch, length], the source;
    and `labels` int and `weights`, [batch, target length], the target, nonzero where a token is
    real (what lies elsewhere counts nowhere). It gives `TokenOutputs` for the target's places.

    Attributes:
        frames_texts: whether sources and targets keep what the tokenizer puts around a text; else
            one begins as the tokenizer begins it, and the other goes on from there.
        decoder_prompt: what a target that is generated begins with; no part of a target.
    """

    frames_texts: ClassVar[bool]

    def __init__(
        self, backbone: Network, logits_at_once: int = 2**25, decoder_prompt: tuple[int, ...] = ()
    ):
        super().__init__(backbone, logits_at_once)
        self.decoder_prompt = decoder_prompt

    def write(
        self,
        batch: Mapping[str, jax.Array],
        max_new_tokens: int,
        sampling: Sampling,
        stop_token_ids: tuple[int, ...],
    ) -> jax.Array:
        """The likeliest target, token by token, int32 [batch, max_new_tokens], -1 behind its end.

        Args:
            batch: the sources.
            max_new_tokens: most tokens of a target.
            sampling: what is ruled out.
            stop_token_ids: a target ends before any of these.
        """
        return write(
            self.backbone,
            batch["input_ids"],
            batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_token_ids=stop_token_ids,
            decoder_prompt=self.decoder_prompt,
        )

    def problem(self, source: int, target: int) -> str | None:
        """Why rows of so many tokens do not fit, as a sentence, or None."""
        most = max_positions(self.backbone)
        if most is None or self.longest(source, target) <= most:
            return None
        return f"the network has positions for {most} tokens"

    @abc.abstractmethod
    def longest(self, source: int, target: int) -> int:
        """Positions that a row needs for sources and targets of so many tokens."""


class EncoderDecoderTextToText(TextToText):
    """An encoder-decoder: the encoder reads the source, the decoder the target shifted right."""

    frames_texts = True

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """The decoder's hidden states [batch, target length, hidden], as the head sees them."""
        start = self.decoder_prompt[0]
        labels = jnp.where(batch["weights"] != 0, batch["labels"], -100)
        output = self.backbone(
            batch["input_ids"],
            batch["attention_mask"],
            decoder_input_ids=shift_right(labels, start, start),
            key=key,
        )
        return output.last_hidden_state

    def longest(self, source: int, target: int) -> int:
        """Both have positions of their own."""
        return max(source, target + len(self.decoder_prompt) - 1)


class DecoderTextToText(TextToText):
    """A decoder: the target follows the source in one row."""

    frames_texts = False

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Hidden states [batch, target length, hidden] before each token of the target."""
        source, real = batch["input_ids"], batch["weights"] != 0
        target = jnp.where(real, batch["labels"], 0).astype(source.dtype)
        length, places = source.shape[1], target.shape[1]
        # Behind a source comes its target; what is behind that, nobody sees.
        begin = jnp.sum(batch["attention_mask"] != 0, axis=1, dtype=jnp.int32)[:, None]
        slots = jnp.arange(length + places - 1)[None]
        source = jnp.take_along_axis(source, jnp.minimum(slots, length - 1), axis=1)
        behind = jnp.clip(slots - begin, 0, places - 1)
        rows = jnp.where(slots < begin, source, jnp.take_along_axis(target, behind, axis=1))
        positions = self.behind_prompt(jnp.broadcast_to(slots, rows.shape))
        output = self.backbone.backbone(rows, position_ids=positions, key=key)
        before = begin - 1 + jnp.arange(places)[None]
        return jnp.take_along_axis(output.last_hidden_state, before[..., None], axis=1)

    def longest(self, source: int, target: int) -> int:
        """Both share a row."""
        return source + target

    def problem(self, source: int, target: int) -> str | None:
        """Also of ropes that the longest row of a batch changes for all."""
        rotary = getattr(self.backbone.config, "rope_parameters", None)
        if rotary is None or rotary.rope_type not in ("dynamic", "longrope"):
            return super().problem(source, target)
        if self.longest(source, target) <= rotary.original_length:
            return None
        return (
            f"beyond {rotary.original_length} tokens, rope type {rotary.rope_type!r} would let "
            "rows of a batch change each other"
        )
