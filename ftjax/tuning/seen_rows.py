"""Training only those rows of a token table whose tokens occur in what is trained on.

Any other row has no gradient, so that a dense update moves it by weight decay alone. Left out, it
keeps its published value and costs no gradient, no optimizer state and no update. In a multilingual
encoder, whose table is most of the network, that is most of the memory of fine-tuning.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Constant, Network
from ftjax.models.masked_language_model import MaskedLanguageModel
from ftjax.tuning.adapted import AdaptedEmbed
from ftjax.tuning.targets import replace_module, token_tables


class SeenRowsEmbed(AdaptedEmbed):
    """A table in two parts.

    Attributes:
        seen_rows: [seen, features].
        embedding: [rows - seen, features], the others.
        place: int32 [rows], where a token's row is: i in `seen_rows`, or -1 - i in `embedding`.
    """

    def __init__(self, layer: nnx.Embed, tokens: np.ndarray):
        super().__init__(layer)
        is_seen = np.zeros(self.num_embeddings, bool)
        is_seen[tokens] = True
        place = np.where(is_seen, np.cumsum(is_seen) - 1, -np.cumsum(~is_seen))
        table = layer.embedding[...]
        self.seen_rows = nnx.Param(table[np.flatnonzero(is_seen)])
        self.embedding = nnx.Param(table[np.flatnonzero(~is_seen)])
        self.place = Constant(jnp.asarray(place, jnp.int32))

    def look_up(self, ids: jax.Array) -> jax.Array:
        """Int [...] -> [..., features]."""
        return self._rows(self.place[...][ids]).astype(self.dtype)

    def merged_table(self) -> jax.Array:
        """The two parts as one."""
        return self._rows(self.place[...]).astype(jnp.float32)

    def _rows(self, place):
        seen, others = self.seen_rows[...], self.embedding[...]
        # Either index is clipped where the other part has the row.
        seen = jnp.take(seen, jnp.maximum(place, 0), axis=0)
        others = jnp.take(others, jnp.maximum(-1 - place, 0), axis=0)
        return jnp.where(place[..., None] >= 0, seen, others)


def train_seen_rows(
    network: Network, is_trainable: Callable[[str], bool], tokens: np.ndarray
) -> Callable[[str], bool]:
    """Divides the token tables that are trained.

    A table stays whole where an output layer is tied to it, which gives every row a gradient, and
    where at least half of its rows are seen.

    Args:
        network: changed in place.
        is_trainable: dotted parameter path -> whether it is trained.
        tokens: int, each token that occurs, once.

    Returns:
        The same as `is_trainable`, but False for the rows that are not seen.
    """
    if (
        isinstance(network, LanguageModel | MaskedLanguageModel)
        and network.backbone.config.tie_word_embeddings
    ):
        return is_trainable
    unseen = set()
    for path, layer in token_tables(network).items():
        trained = isinstance(layer, nnx.Embed) and is_trainable(f"{path}.embedding")
        if trained and 2 * len(tokens) < layer.num_embeddings:
            replace_module(network, path, SeenRowsEmbed(layer, tokens))
            unseen.add(f"{path}.embedding")
    return lambda path: is_trainable(path) and path not in unseen
