"""Networks that put a new head on a pretrained backbone."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.dropout import dropout, split_key
from ftjax.models.layers import Network, Output, linear, require_positions
from ftjax.models.prompt import use_prompt

# Where a published network has the head that a task trains, whatever else it tunes. BERT's pooler
# is a part of its classifier: it is trained with it, and never without.
PUBLISHED_HEAD = re.compile(r"backbone\.(classifier|score|qa_outputs|backbone\.pooler)\.")


def is_new(path: str) -> bool:
    """Whether a parameter is the task's own: a head, whether new or published."""
    return not path.startswith("backbone.") or bool(PUBLISHED_HEAD.match(path))


class TextClassifier(nnx.Module):
    """A text encoder, a way to make one vector of its tokens, dropout and a linear layer.

    Attributes:
        backbone: a text encoder, called as `backbone(input_ids, attention_mask, ...) -> Output`.
        classifier: the new layer, kernel [hidden, classes].
        pooling: "mean" of the real tokens, the "first" or "last" of them, or the published
            "pooler".
        projection: from features to those of a teacher, if there is one; no part of an export.
        deterministic_backbone: whether dropout stays off in the backbone during training, as it
            should where the backbone is frozen and only serves features.
    """

    def __init__(
        self,
        backbone: Network,
        num_classes: int,
        *,
        pooling: str,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.classifier: Network = linear(
            backbone.config.hidden_size, num_classes, backbone.compute, rngs=rngs
        )
        self.pooling = pooling
        self.dropout_rate = dropout_rate
        self.deterministic_backbone = False
        self.projection: Network | None = nnx.data(None)

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """One vector per text.

        Args:
            batch: `input_ids` and `attention_mask` int [batch, length], perhaps `token_type_ids`.
            key: random key for dropout; None for evaluation.

        Returns:
            [batch, hidden].
        """
        key = None if self.deterministic_backbone else key
        output = encode(self.backbone, batch, key, getattr(self.backbone, "prompt", None))
        if self.pooling == "pooler":
            return output.pooled
        hidden = output.last_hidden_state
        if self.pooling == "first":
            return hidden[:, 0]
        if self.pooling == "last":
            return last_token(hidden, batch["attention_mask"])
        return mean_of_tokens(hidden, batch["attention_mask"])

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [batch, classes].

        Args:
            batch: as of `features`; or `features` [batch, hidden], computed before.
            key: random key for dropout; None for evaluation.
        """
        backbone_key, head_key = split_key(key, 2)
        features = batch["features"] if "features" in batch else self.features(batch, backbone_key)
        features = dropout(features, self.dropout_rate, head_key)
        return self.classifier(features).astype(jnp.float32)

    def projected(self, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """Features as a teacher has them, [batch, its hidden]; arguments as of a call."""
        assert self.projection is not None
        backbone_key, _ = split_key(key, 2)
        features = batch["features"] if "features" in batch else self.features(batch, backbone_key)
        return self.projection(features)


class PublishedClassifier(nnx.Module):
    """A family's own classifier of texts, called with a batch.

    Attributes:
        backbone: a family's "sequence_classification" network, its head included.
        deterministic_backbone: as of `TextClassifier`.
    """

    def __init__(self, backbone: Network):
        self.backbone = backbone
        self.deterministic_backbone = False

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """What the published head sees of each text, [batch, hidden]; as of `TextClassifier`."""
        key = None if self.deterministic_backbone else key
        prompt = getattr(self.backbone, "prompt", None)
        output = encode(self.backbone.backbone, batch, key, prompt)
        return self.backbone.pool(output, batch["input_ids"], batch["attention_mask"])

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [batch, classes]; arguments as of `TextClassifier`."""
        backbone_key, head_key = split_key(key, 2)
        features = batch["features"] if "features" in batch else self.features(batch, backbone_key)
        return self.backbone.classify(features, head_key).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class TokenOutputs:
    """What a language model says of each token, without holding all logits at once.

    Logits are by far the largest array of a language model: 2,048 tokens of a vocabulary of 262,144
    take 2 GiB, and as much again for their gradient.

    Attributes:
        hidden: [batch, length, hidden], what the head sees.
        project: hidden states -> logits.
        logits_at_once: how many logits may be held.
    """

    hidden: jax.Array
    project: Callable[[jax.Array], jax.Array]
    logits_at_once: int

    def map(self, function: Callable, *arrays: jax.Array) -> Any:
        """`function(logits, *arrays)`, computed for some columns at a time.

        The backward pass computes each chunk's logits again. Chunks divide the length, so that rows
        stay on their devices.

        Args:
            function: of float32 logits [batch, columns, vocabulary] and the arrays' same columns;
                gives arrays [batch, columns, ...].
            arrays: [batch, length, ...].

        Returns:
            What `function` gives, [batch, length, ...].
        """
        batch, length = self.hidden.shape[:2]
        vocabulary = jax.eval_shape(self.project, self.hidden).shape[-1]
        columns = max(1, self.logits_at_once // (batch * vocabulary))
        count = -(-length // columns)
        columns = -(-length // count)

        def whole(hidden, *arrays):
            return function(self.project(hidden).astype(jnp.float32), *arrays)

        if count == 1:
            return whole(self.hidden, *arrays)

        def divided(array):
            room = ((0, 0), (0, count * columns - length), *[(0, 0)] * (array.ndim - 2))
            parts = jnp.pad(array, room).reshape(batch, count, columns, *array.shape[2:])
            return jnp.moveaxis(parts, 1, 0)

        parts = tuple(divided(array) for array in (self.hidden, *arrays))
        results = jax.lax.map(lambda part: jax.checkpoint(whole)(*part), parts)

        def joined(part):
            rows = jnp.moveaxis(part, 0, 1)
            return rows.reshape(batch, count * columns, *part.shape[3:])[:, :length]

        return jax.tree.map(joined, results)


class RewardModel(nnx.Module):
    """A decoder's own classifier with one logit, called with rows of two texts each.

    Attributes:
        backbone: a family's "sequence_classification" network, its head included.
    """

    def __init__(self, backbone: Network):
        self.backbone = backbone

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """What the head sees of both texts, one behind the other, [batch, 2 * hidden].

        That is each one's last token that is no padding, as transformers' classifier has it.

        Args:
            batch: `input_ids`, `segment_ids` and `position_ids`, int [batch, length]; the texts of
                a row are segments 1 and 2.
            key: random key for dropout; None for evaluation.
        """
        hidden = self.backbone.backbone(
            batch["input_ids"],
            segment_ids=batch["segment_ids"],
            position_ids=batch["position_ids"],
            key=key,
        ).last_hidden_state
        pad = self.backbone.config.pad_token_id
        real = jnp.ones_like(batch["input_ids"], bool) if pad is None else batch["input_ids"] != pad
        texts = [last_token(hidden, real & (batch["segment_ids"] == text)) for text in (1, 2)]
        return jnp.concatenate(texts, axis=-1)

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Rewards of both texts, float32 [batch, 2]; arguments as of `features`."""
        features = self.features(batch, key)
        of_texts = features.reshape(len(features), 2, -1)
        return self.backbone.classify(of_texts).astype(jnp.float32)[..., 0]


class LanguageModel(nnx.Module):
    """A published causal language model, called with a batch.

    Attributes:
        backbone: a family's "causal_lm" network.
        logits_at_once: how many logits may be held.
    """

    def __init__(self, backbone: Network, logits_at_once: int = 2**25):
        self.backbone = backbone
        self.logits_at_once = logits_at_once

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Hidden states [batch, length, hidden] of packed rows, as the head sees them.

        Args:
            batch: `input_ids`, `segment_ids` and `position_ids`, int [batch, length].
            key: random key for dropout; None for evaluation.
        """
        output = self.backbone.backbone(
            batch["input_ids"],
            segment_ids=batch["segment_ids"],
            position_ids=self.behind_prompt(batch["position_ids"]),
            key=key,
        )
        return output.last_hidden_state

    def behind_prompt(self, positions: jax.Array) -> jax.Array:
        """Positions [batch, length] behind a tuned prompt, if there is one, which is put to use."""
        if getattr(self.backbone, "prompt", None) is not None:
            use_prompt(self.backbone)
        if self.backbone.virtual_tokens > 0:
            positions = positions + self.backbone.virtual_tokens
            most = self.backbone.config.longest_row
            require_positions(positions.shape[1] + self.backbone.virtual_tokens, most)
        return positions

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> TokenOutputs:
        """Next-token logits; arguments as of `features`."""
        return TokenOutputs(self.features(batch, key), self.backbone.logits, self.logits_at_once)


def encode(
    encoder: Network,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None,
    prompt: Network | None = None,
) -> Output:
    """A backbone's output for a batch of texts, perhaps with virtual tokens in front.

    Args:
        encoder: called as `encoder(input_ids, attention_mask, ...) -> Output`.
        batch: `input_ids` and `attention_mask` int [batch, length], perhaps `token_type_ids`.
        key: random key for dropout; None for evaluation.
        prompt: what makes the virtual tokens, [tokens, width].

    Returns:
        Its `last_hidden_state` is [batch, length, hidden], without the virtual tokens.
    """
    names = ["input_ids", "attention_mask"]
    if reads_token_types(encoder):
        names.append("token_type_ids")
    inputs = {name: batch[name] for name in names if name in batch}
    if prompt is None:
        return encoder(**inputs, key=key)
    virtual = prompt()
    words = token_embeddings(encoder, inputs.pop("input_ids"))
    rows = jnp.broadcast_to(virtual.astype(words.dtype), (len(words), *virtual.shape))
    room = ((0, 0), (len(virtual), 0))
    inputs["attention_mask"] = jnp.pad(inputs["attention_mask"], room, constant_values=1)
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = jnp.pad(inputs["token_type_ids"], room)
    inputs["inputs_embeds"] = jnp.concatenate([rows, words], axis=1)
    output = encoder(**inputs, key=key)
    return output._replace(last_hidden_state=output.last_hidden_state[:, len(virtual) :])


def reads_token_types(backbone: Network) -> bool:
    """Whether a network tells the second text of a pair by an embedding of its own.

    A table of one row tells nothing. GPT-2 has none: it would add the embeddings of words 0 and 1.
    """
    return getattr(backbone.config, "type_vocab_size", 0) > 1


def token_table(backbone: Network) -> Network:
    """The layer that looks up the embeddings of tokens.

    Raises:
        ValueError: the network reads no tokens.
    """
    rows = getattr(backbone.config, "vocab_size", None)
    for _, module in nnx.iter_modules(backbone):
        if rows is not None and getattr(module, "num_embeddings", None) == rows:
            return module
    raise ValueError("This network has no table of token embeddings.")


def token_embeddings(backbone: Network, input_ids: jax.Array) -> jax.Array:
    """What a network makes of tokens itself, and takes as `inputs_embeds` in their place.

    Args:
        backbone: of a text classifier or a causal language model.
        input_ids: int [batch, length].

    Returns:
        [batch, length, width].
    """
    rows = token_table(backbone)(input_ids)
    return rows * jnp.asarray(getattr(backbone.config, "embedding_scale", 1.0), rows.dtype)


def mean_of_tokens(hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Mean over the real tokens, in float32; a row without any gives zeros.

    Args:
        hidden: [batch, length, hidden].
        attention_mask: [batch, length], nonzero where a token is real.
    """
    weights = attention_mask.astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
    return (total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)).astype(hidden.dtype)


def last_token(hidden: jax.Array, real: jax.Array) -> jax.Array:
    """[batch, hidden] of each row's rightmost real token; of its first, if it has none.

    Args:
        hidden: [batch, length, hidden].
        real: [batch, length], nonzero where a token is real.
    """
    last = jnp.max(jnp.where(real != 0, jnp.arange(hidden.shape[1]), 0), axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
