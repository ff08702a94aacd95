"""Methods that leave the network as it is and put something in front of the text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.fields import Field, Fields
from ftjax.models.attention import Prefix
from ftjax.models.encoder_decoder import EncoderDecoderLM
from ftjax.models.heads import (
    LanguageModel,
    PublishedClassifier,
    TextClassifier,
    token_embeddings,
    token_table,
)
from ftjax.models.layers import Network
from ftjax.models.prompt import Prompt, attention_modules
from ftjax.tuning.adapter_form import AdapterForm, Shared, Tensors, require_shape
from ftjax.tuning.masks import is_new
from ftjax.tuning.method import IN_NETWORK, NOT_MERGED, Method
from ftjax.tuning.peft_settings import COMMON, HARMLESS, NOT_IMPLEMENTED, Setting, only, whole

SCALE = 0.02
FIELDS: Fields = {
    **IN_NETWORK,
    **NOT_MERGED,
    "tuning.virtual_tokens": Field(20, "Learned tokens in front of a text.", minimum=1),
}
P_TUNING: Fields = {
    "tuning.prompt_hidden_size": Field(128, "Width of the network that makes them.", minimum=1)
}


def prefix(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Keys and values of virtual tokens in every self-attention (Li & Liang 2021, 2101.00190).

    Real tokens keep their positions. (peft shifts those of decoders by the number of virtual
    tokens; with rotary positions that is the same network up to a rotation of the learned keys.)
    Those of an encoder-decoder stand in both stacks.
    """
    modules: list[Network] = attention_modules(network.backbone)
    for index, module in enumerate(modules):
        shape = (settings.virtual_tokens, *module.key_shape)
        keys = jax.random.split(jax.random.fold_in(key, index))
        module.prefix = Prefix(*(nnx.Param(SCALE * jax.random.normal(k, shape)) for k in keys))
    return lambda path: is_new(path) or ".prefix." in path


def prompt(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Embeddings of virtual tokens; they begin as those of random words (Lester et al. 2021).

    Raises:
        ValueError: a network or a way of pooling that has no place for them.
    """
    return _add(network, settings, key, None)


def p_tuning(network: Network, settings: Any, key: jax.Array) -> Callable[[str], bool]:
    """Embeddings of virtual tokens, made by a network of three layers (Liu et al. 2021).

    Raises:
        ValueError: a network or a way of pooling that has no place for them.
    """
    return _add(network, settings, key, settings.prompt_hidden_size)


def _add(network: Network, settings, key, hidden_size: int | None) -> Callable[[str], bool]:
    is_encoder_decoder = isinstance(network.backbone, EncoderDecoderLM)
    reads_texts = isinstance(network, TextClassifier | PublishedClassifier | LanguageModel)
    if not is_encoder_decoder and not reads_texts:
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


PEFT_SETTINGS: Mapping[str, Setting] = {
    **COMMON,
    "num_virtual_tokens": Setting(None, whole),
    "token_dim": Setting(None, lambda value: value if value is None else whole(value)),
    "num_transformer_submodules": Setting(
        None, only(None, 1, because="(a prompt in each stack) is not implemented")
    ),
    "modules_to_save": NOT_IMPLEMENTED,
    # How the prompt began and what made it; what it is stands in the file.
    **dict.fromkeys(
        [
            *("encoder_dropout", "encoder_hidden_size", "encoder_num_layers"),
            *("encoder_reparameterization_type", "num_attention_heads", "num_layers"),
            *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs"),
            "tokenizer_name_or_path",
        ],
        HARMLESS,
    ),
}


class PromptForm(AdapterForm):
    """peft's PROMPT_TUNING; of P_TUNING it writes what the network makes, not the network."""

    peft_types = ("PROMPT_TUNING", "P_TUNING")
    settings = PEFT_SETTINGS
    layers = (Prompt,)
    shared = frozenset(["prompt_embeddings"])

    def found_in(self, network: Network) -> dict[str, Any]:
        """The one prompt, which has no path."""
        virtual = getattr(network.backbone, "prompt", None)
        return {} if virtual is None else {"": virtual}

    def fields_of(self, layers: Mapping[str, Any]) -> dict[str, Any]:
        """Its size."""
        tokens, width = next(iter(layers.values())).virtual.shape
        return {
            "num_virtual_tokens": tokens,
            "token_dim": width,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }

    def tensors_of(self, layer: Prompt) -> dict[str, jax.Array]:
        """None that belongs to a layer."""
        return {}

    def shared_of(self, layers: Sequence[Prompt]) -> dict[str, jax.Array]:
        """The embeddings of the virtual tokens."""
        return {"prompt_embeddings": layers[0]()}

    def put(
        self,
        network: Network,
        paths: Mapping[str, str],
        tensors: Mapping[str, Tensors],
        shared: Shared,
        settings: Mapping[str, Any],
    ) -> None:
        """The prompt becomes the backbone's; see `AdapterForm`."""
        if shared.keys() != self.shared:
            raise ValueError("the tensor prompt_embeddings is missing")
        table: Network = token_table(network.backbone)
        virtual, width = shared["prompt_embeddings"], table.features
        require_shape("prompt_embeddings", virtual, settings["num_virtual_tokens"], width)
        if settings["token_dim"] not in (None, width):
            raise ValueError(f"token_dim = {settings['token_dim']}, but the table is {width} wide")
        network.backbone.prompt = Prompt(jnp.asarray(virtual), key=jax.random.key(0))


PROMPT_FORM = PromptForm()
METHODS = {
    "prefix": Method(prefix, FIELDS),
    "prompt": Method(prompt, FIELDS, adapter_form=PROMPT_FORM),
    "p_tuning": Method(p_tuning, {**FIELDS, **P_TUNING}, adapter_form=PROMPT_FORM),
}
