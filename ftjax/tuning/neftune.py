"""Noise on the token embeddings (NEFTune, Jain et al. 2023, https://arxiv.org/abs/2310.05914)."""

from flax import nnx

from ftjax.models.layers import Network
from ftjax.tuning.adapted import AdaptedEmbed
from ftjax.tuning.targets import replace_module, token_tables


def add_neftune(network: Network, alpha: float) -> None:
    """Token embeddings get uniform noise of alpha / sqrt(length x features) in training.

    Args:
        network: changed in place.
        alpha: strength; 5 to 15 in the paper.

    Raises:
        ValueError: the network reads no tokens.
    """
    tables = token_tables(network)
    if not tables:
        raise ValueError("config.tuning.neftune_alpha: this network has no token embeddings.")
    for path, layer in tables.items():
        if isinstance(layer, nnx.Embed):
            layer = AdaptedEmbed(layer)
            replace_module(network, path, layer)
        layer.neftune_alpha = alpha
