"""Virtual tokens: learned embeddings in front of a text.

Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691) learns them directly, p-tuning
(Liu et al. 2021, https://arxiv.org/abs/2103.10385) through a small network. Reference: peft's
`PromptEmbedding` and `PromptEncoder`.

A decoder's virtual tokens see only each other, so they are computed once per call, not once per
row, and every layer's attention gets their keys and values as its prefix. That is the same network
as with the tokens in front of each row, also for packed rows, where each text has them in front.
Only in layers with a sliding window it differs: there virtual tokens stay in sight.
"""

import itertools

import jax
from flax import nnx

from ftjax.models.attention import Prefix
from ftjax.models.layers import Constant, Network


class Prompt(nnx.Module):
    """The embeddings of virtual tokens.

    Attributes:
        virtual: [tokens, width].
        encoder: layers that are applied to it in turn, kernels [width, wide], [wide, wide] and
            [wide, width], with ReLU between them; or None.
    """

    def __init__(self, virtual: jax.Array, hidden_size: int | None = None, *, key: jax.Array):
        self.virtual = nnx.Param(virtual)
        self.encoder = nnx.data(None)
        if hidden_size is not None:
            sizes = [virtual.shape[1], hidden_size, hidden_size, virtual.shape[1]]
            keys = nnx.Rngs(params=key)
            self.encoder = nnx.List(
                [nnx.Linear(i, o, rngs=keys) for i, o in itertools.pairwise(sizes)]
            )

    def __call__(self) -> jax.Array:
        """[tokens, width]."""
        hidden = self.virtual[...]
        for index, layer in enumerate(self.encoder or ()):
            hidden = layer(jax.nn.relu(hidden) if index else hidden)
        return hidden


def attention_modules(network: Network) -> list[Network]:
    """The self-attention of each block, in the order of the blocks."""
    found = {
        tuple(path): module
        for path, module in nnx.iter_modules(network)
        if hasattr(module, "key_shape")
    }
    # Numbers in a path sort as numbers, so that block 10 comes after block 9.
    order = sorted(found, key=lambda path: [(isinstance(p, str), p) for p in path])
    return [found[path] for path in order]


def use_prompt(causal_lm: Network) -> None:
    """Puts keys and values in the place of a causal language model's virtual tokens.

    Args:
        causal_lm: a family's "causal_lm" network with a `prompt`; changed in place. Its rows then
            begin at the position behind the virtual tokens.
    """
    prompt = causal_lm.prompt()
    causal_lm.prompt = None
    causal_lm.virtual_tokens = prompt.shape[0]
    cache = causal_lm.init_cache(1, prompt.shape[0], prompt.dtype)
    layers = causal_lm.backbone(inputs_embeds=prompt[None], cache=cache).cache["layers"]
    for module, layer in zip(attention_modules(causal_lm.backbone), layers, strict=True):
        module.prefix = Prefix(Constant(layer["key"][0]), Constant(layer["value"][0]))
