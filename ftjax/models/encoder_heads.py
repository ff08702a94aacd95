"""The heads that encoders are published with: masked language model, classifiers."""

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.dropout import dropout, split_key
from ftjax.models.layers import ACTIVATIONS, Compute, Output, layer_norm, linear


class MaskedLMHead(nnx.Module):
    """Dense, activation, norm, and the scores of all words (Devlin et al. 2019, section 3.1).

    The decoder is the table of word embeddings, with a bias, unless the config unties them.
    """

    def __init__(self, config, activation: str, compute: Compute, *, rngs: nnx.Rngs):
        width, rows = config.embedding_width, config.vocab_size
        self.dense = linear(config.hidden_size, width, compute, rngs=rngs)
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
        words = self.backbone.embeddings.word_embeddings
        return output._replace(logits=self.head(output.last_hidden_state, words))


class ClassificationHead(nnx.Module):
    """Dropout, dense, activation, dropout, and a linear layer, on the first token."""

    def __init__(
        self,
        config,
        compute: Compute,
        *,
        activation: str,
        first_dropout: float,
        rngs: nnx.Rngs,
    ):
        self.dense = linear(config.hidden_size, config.hidden_size, compute, rngs=rngs)
        self.out_proj = linear(config.hidden_size, config.num_labels, compute, rngs=rngs)
        self.activation = activation
        self.first_dropout = first_dropout
        self.dropout_rate = config.classifier_dropout

    def __call__(self, hidden, key):
        """[batch, length, hidden] -> [batch, labels]."""
        keys = split_key(key, 2)
        first = self.dense(dropout(hidden[:, 0], self.first_dropout, keys[0]))
        first = dropout(ACTIVATIONS[self.activation](first), self.dropout_rate, keys[1])
        return self.out_proj(first)


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
        return output._replace(logits=self.classifier(output.last_hidden_state, head_key))


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
        self.classifier = linear(config.hidden_size, config.num_labels, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, *arguments, key: jax.Array | None = None, **keywords) -> Output:
        """As the backbone, with `logits` [batch, labels]."""
        backbone_key, head_key = split_key(key, 2)
        output = self.backbone(*arguments, key=backbone_key, **keywords)
        pooled = dropout(output.pooled, self.config.classifier_dropout, head_key)
        return output._replace(logits=self.classifier(pooled))


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
        self.classifier = linear(config.hidden_size, config.num_labels, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, *arguments, key: jax.Array | None = None, **keywords) -> Output:
        """As the backbone, with `logits` [batch, length, labels]."""
        backbone_key, head_key = split_key(key, 2)
        output = self.backbone(*arguments, key=backbone_key, **keywords)
        rate = self.config.token_classifier_dropout
        hidden = dropout(output.last_hidden_state, rate, head_key)
        return output._replace(logits=self.classifier(hidden))
