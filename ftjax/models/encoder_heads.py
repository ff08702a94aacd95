"""The heads that encoders are published with: masked language model, classifiers, spans."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.dropout import dropout, split_key
from ftjax.models.layers import (
    ACTIVATIONS,
    Compute,
    Output,
    layer_norm,
    linear,
    published_init,
)


def head_linear(outputs: int, config, compute: Compute, *, rngs: nnx.Rngs):
    """A dense layer on hidden states, kernel [hidden, outputs], new as transformers has it new."""
    init = published_init(config)
    return linear(config.hidden_size, outputs, compute, rngs=rngs, kernel_init=init)


class MaskedLMHead(nnx.Module):
    """Dense, activation, norm, and the scores of all words (Devlin et al. 2019, section 3.1).

    The decoder is the table of word embeddings, with a bias, unless the config unties them.
    """

    def __init__(self, config, activation: str, compute: Compute, *, rngs: nnx.Rngs):
        width, rows = config.embedding_width, config.vocab_size
        self.dense = head_linear(width, config, compute, rngs=rngs)
        self.norm = layer_norm(width, config.layer_norm_eps, compute, rngs=rngs)
        if config.tie_word_embeddings:
            self.bias = nnx.Param(jnp.zeros(rows, compute.param_dtype))
        else:
            self.decoder = linear(width, rows, compute, rngs=rngs)
        self.activation = activation
        self.tied = config.tie_word_embeddings

    def __call__(self, hidden, words: nnx.Embed):
        """[batch, length, hidden] and the word embeddings -> [batch, length, vocabulary]."""
        hidden = self.norm(ACTIVATIONS[self.activation](self.dense(hidden)))
        if self.tied:
            return words.attend(hidden) + self.bias[...].astype(hidden.dtype)
        return self.decoder(hidden)


class MaskedLM(nnx.Module):
    """An encoder with its masked-language-model head.

    Attributes:
        backbone: the encoder, of the class given first.
    """

    def __init__(
        self,
        backbone,
        config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
        activation: str | None = None,
    ):
        self.backbone = backbone(config, compute, rngs=rngs)
        self.head = MaskedLMHead(config, activation or config.hidden_act, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, *arguments, **keywords) -> Output:
        """As the backbone, with `logits` [batch, length, vocabulary]."""
        output = self.backbone(*arguments, **keywords)
        return output._replace(logits=self.logits(output.last_hidden_state))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores of all words [..., vocabulary] at hidden states [..., hidden]."""
        return self.head(hidden, self.backbone.embeddings.word_embeddings)


class ClassificationHead(nnx.Module):
    """Dropout, dense, activation, dropout, and a linear layer."""

    def __init__(
        self,
        config,
        compute: Compute,
        *,
        activation: str,
        first_dropout: float,
        rngs: nnx.Rngs,
    ):
        self.dense = head_linear(config.hidden_size, config, compute, rngs=rngs)
        self.out_proj = head_linear(config.num_labels, config, compute, rngs=rngs)
        self.activation = activation
        self.first_dropout = first_dropout
        self.dropout_rate = config.classifier_dropout

    def __call__(self, features, key):
        """[batch, hidden] -> [batch, labels]."""
        keys = split_key(key, 2)
        hidden = self.dense(dropout(features, self.first_dropout, keys[0]))
        hidden = dropout(ACTIVATIONS[self.activation](hidden), self.dropout_rate, keys[1])
        return self.out_proj(hidden)


class SequenceClassifier(nnx.Module):
    """An encoder without pooler, and a two-layer classifier on the first token.

    Attributes:
        backbone: the encoder, of the class given first.
    """

    def __init__(
        self,
        backbone,
        config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
        activation: str,
        first_dropout: float | None = None,
    ):
        self.backbone = backbone(config, compute, rngs=rngs)
        self.classifier = ClassificationHead(
            config,
            compute,
            activation=activation,
            first_dropout=config.classifier_dropout if first_dropout is None else first_dropout,
            rngs=rngs,
        )
        self.config = config
        self.compute = compute

    def __call__(self, *arguments, key: jax.Array | None = None, **keywords) -> Output:
        """As the backbone, with `logits` [batch, labels]."""
        backbone_key, head_key = split_key(key, 2)
        output = self.backbone(*arguments, key=backbone_key, **keywords)
        return output._replace(logits=self.classify(self.pool(output), head_key))

    def pool(self, output: Output, *_) -> jax.Array:
        """What the head sees of the backbone's output: the first token, [batch, hidden]."""
        return output.last_hidden_state[:, 0]

    def classify(self, features: jax.Array, key: jax.Array | None) -> jax.Array:
        """[batch, hidden] -> [batch, labels]."""
        return self.classifier(features, key)


class PooledClassifier(nnx.Module):
    """An encoder with its pooler, and a linear classifier.

    Attributes:
        backbone: the encoder, of the class given first.
    """

    def __init__(
        self,
        backbone,
        config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone(config, compute, rngs=rngs, pooler=True)
        self.classifier = head_linear(config.num_labels, config, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, *arguments, key: jax.Array | None = None, **keywords) -> Output:
        """As the backbone, with `logits` [batch, labels]."""
        backbone_key, head_key = split_key(key, 2)
        output = self.backbone(*arguments, key=backbone_key, **keywords)
        return output._replace(logits=self.classify(self.pool(output), head_key))

    def pool(self, output: Output, *_) -> jax.Array:
        """What the head sees of the backbone's output: the first token, [batch, hidden]."""
        return output.last_hidden_state[:, 0]

    def classify(self, features: jax.Array, key: jax.Array | None) -> jax.Array:
        """[batch, hidden] -> [batch, labels]; the pooler belongs to it."""
        pooled = jnp.tanh(self.backbone.pooler.dense(features))
        return self.classifier(dropout(pooled, self.config.classifier_dropout, key))


class TokenClassifier(nnx.Module):
    """An encoder with a linear classifier of each token.

    Attributes:
        backbone: the encoder, of the class given first.
    """

    def __init__(
        self,
        backbone,
        config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone(config, compute, rngs=rngs)
        self.classifier = head_linear(config.num_labels, config, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def classify(self, hidden: jax.Array, key: jax.Array | None) -> jax.Array:
        """[..., hidden] -> [..., labels]."""
        return self.classifier(dropout(hidden, self.config.token_classifier_dropout, key))

    def __call__(self, *arguments, key: jax.Array | None = None, **keywords) -> Output:
        """As the backbone, with `logits` [batch, length, labels]."""
        backbone_key, head_key = split_key(key, 2)
        output = self.backbone(*arguments, key=backbone_key, **keywords)
        return output._replace(logits=self.classify(output.last_hidden_state, head_key))


class SpanFinder(nnx.Module):
    """An encoder with the scores of each token to be an answer's first or last.

    (Devlin et al. 2019, section 4.2; transformers' `ForQuestionAnswering`.)

    Attributes:
        backbone: the encoder, of the class given first.
        config: the encoder's, for two outputs whatever the checkpoint's classes were.
    """

    def __init__(
        self,
        backbone,
        config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone(config, compute, rngs=rngs)
        self.qa_outputs = head_linear(2, config, compute, rngs=rngs)
        self.config = dataclasses.replace(config, num_labels=2)
        self.compute = compute

    def classify(self, hidden: jax.Array, key: jax.Array | None) -> jax.Array:
        """[..., hidden] -> [..., 2]: to be the first token, the last."""
        return self.qa_outputs(dropout(hidden, self.config.span_dropout, key))

    def __call__(self, *arguments, key: jax.Array | None = None, **keywords) -> Output:
        """As the backbone, with `logits` [batch, length, 2]."""
        backbone_key, head_key = split_key(key, 2)
        output = self.backbone(*arguments, key=backbone_key, **keywords)
        return output._replace(logits=self.classify(output.last_hidden_state, head_key))
