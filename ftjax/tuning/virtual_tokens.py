"""Methods that leave the network as it is and put something in front of the text."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.fields import Field, Fields
from ftjax.models.attention import Prefix
from ftjax.models.encoder_decoder import EncoderDecoderLM
from ftjax.models.heads import LanguageModel, TextClassifier, token_embeddings
from ftjax.models.prompt import Prompt, attention_modules
from ftjax.tuning.masks import is_new
from ftjax.tuning.method import IN_NETWORK, NOT_MERGED, Method

SCALE = 0.02
FIELDS: Fields = {
    **IN_NETWORK,
    **NOT_MERGED,
    "tuning.virtual_tokens": Field(20, "Learned tokens in front of a text.", minimum=1),
}
P_TUNING: Fields = {
    "tuning.prompt_hidden_size": Field(128, "Width of the network that makes them.", minimum=1)
}


def prefix(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Keys and values of virtual tokens in every self-attention (Li & Liang 2021, 2101.00190).

    Real tokens keep their positions. (peft shifts those of decoders by the number of virtual
    tokens; with rotary positions that is the same network up to a rotation of the learned keys.)
    Those of an encoder-decoder stand in both stacks.
    """
    for index, module in enumerate(attention_modules(network.backbone)):
        shape = (settings.virtual_tokens, *module.key_shape)
        keys = jax.random.split(jax.random.fold_in(key, index))
        module.prefix = Prefix(*(nnx.Param(SCALE * jax.random.normal(k, shape)) for k in keys))
    return lambda path: is_new(path) or ".prefix." in path


def prompt(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Embeddings of virtual tokens; they begin as those of random words (Lester et al. 2021).

    Raises:
        ValueError: a network or a way of pooling that has no place for them.
    """
    return _add(network, settings, key, None)


def p_tuning(network: nnx.Module, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Embeddings of virtual tokens, made by a network of three layers (Liu et al. 2021).

    Raises:
        ValueError: a network or a way of pooling that has no place for them.
    """
    return _add(network, settings, key, settings.prompt_hidden_size)


def _add(network, settings, key, hidden_size: int | None) -> Callable[[str], bool]:
    is_encoder_decoder = isinstance(network.backbone, EncoderDecoderLM)
    if not is_encoder_decoder and not isinstance(network, TextClassifier | LanguageModel):
        raise ValueError(
            f"config.tuning.method = {settings.method!r} puts tokens in front of a text, which "
            "needs a text classifier or a language model; use 'prefix'."
        )
    if getattr(network, "pooling", None) == "pooler":
        raise ValueError(
            f"config.tuning.method = {settings.method!r}: the published pooler reads the first "
            "token, which would be a virtual one. Set model.pooling to 'mean', 'first' or 'last'."
        )
    words_key, encoder_key = jax.random.split(key)
    size, shape = network.backbone.config.vocab_size, (1, settings.virtual_tokens)
    words = jax.random.randint(words_key, shape, 0, size)
    if is_encoder_decoder:
        virtual = network.backbone.backbone.embed_source(words)
    else:
        virtual = token_embeddings(network.backbone, words)
    virtual = virtual[0].astype(jnp.float32)
    network.backbone.prompt = Prompt(virtual, hidden_size, key=encoder_key)
    return lambda path: is_new(path) or path.startswith("backbone.prompt.")


METHODS = {
    "prefix": Method(prefix, FIELDS),
    "prompt": Method(prompt, FIELDS),
    "p_tuning": Method(p_tuning, {**FIELDS, **P_TUNING}),
}
