"""Training the rows of seen tokens alone is training the whole table, without decay of the rest."""

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import make_case

from ftjax.config import base_config
from ftjax.losses.forward import of_outputs
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.step import make_train_step, new_state
from ftjax.tuning.noise import give_keys
from ftjax.tuning.partition import partition
from ftjax.tuning.seen_rows import SeenRowsEmbed
from ftjax.tuning.tune import merge, tune

STEPS = 3
TABLES = {
    "bert": "backbone.embeddings.word_embeddings",
    "modernbert": "backbone.embeddings.tok_embeddings",
    "clip_text_model": "backbone.embeddings.token_embedding",
    "llama": "backbone.backbone.embed_tokens",
}


def case(family):
    """A network, a batch that has less than half of its tokens, and those."""
    network, batch, loss = make_case(family)
    rows = network.backbone.config.vocab_size
    batch["input_ids"] = batch["input_ids"] % (rows // 3)
    return network, batch, loss, np.unique(batch["input_ids"])


def trained(family, *, seen, weight_decay=0.0):
    """The merged parameters after some steps, and the paths of what moved."""
    network, batch, loss, tokens = case(family)
    settings = base_config().tuning
    rebuild, start, frozen = tune(network, settings, 0, tokens if seen else None)
    config = base_config().optimizer
    config.learning_rate, config.weight_decay = 1e-2, weight_decay
    # Adam would make steps of rounding where a gradient is next to nothing.
    config.epsilon = 1e-3
    schedule = make_schedule(config, STEPS)
    optimizer = make_optimizer(config, schedule, start)
    step = jax.jit(make_train_step(rebuild, of_outputs(loss), optimizer, schedule))
    state = new_state(0, start, optimizer)
    for _ in range(STEPS):
        state, _ = step(state, frozen, batch)
    _, merged, _ = partition(merge(rebuild(state.trainable, frozen)), lambda path: True)
    return merged, start


@pytest.mark.parametrize("family", TABLES)
def test_it_is_training_the_whole_table(family):
    found, moved = trained(family, seen=True)
    expected, _ = trained(family, seen=False)
    assert f"{TABLES[family]}.seen_rows" in moved
    assert f"{TABLES[family]}.embedding" not in moved
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=2e-6, err_msg=path)


def test_rows_that_are_not_seen_do_not_decay():
    found, _ = trained("bert", seen=True, weight_decay=1.0)
    expected, _ = trained("bert", seen=False, weight_decay=1.0)
    network, _, _, tokens = case("bert")
    start = np.asarray(network.backbone.embeddings.word_embeddings.embedding[...])
    path = f"{TABLES['bert']}.embedding"
    unseen = np.setdiff1d(np.arange(len(start)), tokens)
    np.testing.assert_array_equal(found[path][unseen], start[unseen])
    assert not np.allclose(expected[path][unseen], start[unseen], atol=1e-4)
    np.testing.assert_allclose(found[path][tokens], expected[path][tokens], atol=2e-6)


@pytest.mark.parametrize(
    ("family", "method", "share"),
    [
        # An output layer is tied to it; the method keeps it; too much of it is seen.
        ("gpt2", "full", 0.1),
        ("bert", "frozen_embeddings", 0.1),
        ("bert", "lora", 0.1),
        ("bert", "full", 0.5),
        # There is none.
        ("vit", "full", 0.1),
    ],
)
def test_where_the_table_stays_whole(family, method, share):
    network, _, _ = make_case(family)
    settings = base_config(method=method).tuning
    rows = getattr(network.backbone.config, "vocab_size", 30)
    tune(network, settings, 0, np.arange(int(share * rows)))
    assert not any(isinstance(module, SeenRowsEmbed) for _, module in nnx.iter_modules(network))


def test_noise_on_a_divided_table():
    network, _, _, tokens = case("bert")
    settings = base_config().tuning
    settings.neftune_alpha = 5.0
    tune(network, settings, 0, tokens)
    layer = network.backbone.embeddings.word_embeddings
    assert isinstance(layer, SeenRowsEmbed)
    ids, table = np.arange(layer.num_embeddings), layer.merged_table()
    np.testing.assert_array_equal(layer(ids[None])[0], table)
    give_keys(network, jax.random.key(0))
    assert 0 < np.abs(layer(ids[None])[0] - table).max() <= 5.0 / table.size**0.5
