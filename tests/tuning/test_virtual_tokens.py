"""Virtual tokens are tokens: the same as rows that have them in front, packed, cached or padded."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import make_case

from ftjax.config import base_config
from ftjax.models.generate import generate
from ftjax.models.heads import TextClassifier, token_table
from ftjax.tuning.tune import tune

COUNT = 3


def tuned(family, method):
    network, batch, _ = make_case(family)
    settings = base_config().tuning
    settings.method, settings.virtual_tokens = method, COUNT
    rebuild, trainable, frozen = tune(network, settings, 0)
    random = np.random.default_rng(0)
    moved = {
        path: value + 0.5 * random.normal(size=value.shape).astype(np.float32)
        for path, value in trainable.items()
    }
    return rebuild(moved, frozen), batch


def logits(network, batch):
    outputs = network(batch)
    return np.asarray(outputs.project(outputs.hidden))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_a_prompt_is_tokens_in_front_of_every_row(family):
    network, batch = tuned(family, "prompt")
    prompt = network.backbone.prompt()
    decoder = network.backbone.backbone
    words = decoder.token_embedding(batch["input_ids"])
    words = words * getattr(decoder.config, "embedding_scale", 1.0)
    rows = jnp.broadcast_to(prompt, (len(words), *prompt.shape))
    whole = jnp.concatenate([rows, words], axis=1)
    expected = network.backbone(inputs_embeds=whole).logits[:, COUNT:]
    np.testing.assert_allclose(logits(network, batch), expected, atol=2e-5)


@pytest.mark.parametrize("method", ["prefix", "prompt", "p_tuning"])
def test_packed_texts_have_them_in_front_of_each(method):
    network, batch = tuned("llama", method)
    alone = logits(network, batch)
    ids = batch["input_ids"]
    packed = {
        "input_ids": ids[:2].reshape(1, -1),
        "segment_ids": np.repeat([[1, 2]], ids.shape[1], axis=1),
        "position_ids": np.tile(np.arange(ids.shape[1]), 2)[None],
    }
    network, _ = tuned("llama", method)
    found = logits(network, packed)
    np.testing.assert_allclose(found.reshape(2, *alone.shape[1:]), alone[:2], atol=2e-5)


@pytest.mark.parametrize("method", ["prefix", "prompt", "p_tuning"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_with_a_cache_is_greedy_decoding_without(family, method):
    prompts = [[5, 6, 7, 8], [9, 10]]
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(3):
            network, _ = tuned(family, method)
            row = {
                "input_ids": np.asarray([tokens]),
                "segment_ids": np.ones((1, len(tokens)), int),
                "position_ids": np.arange(len(tokens))[None],
            }
            tokens.append(int(logits(network, row)[0, -1].argmax()))
        expected.append(tokens[len(prompt) :])
    network, _ = tuned(family, method)
    assert generate(network.backbone, prompts, max_new_tokens=3) == expected


def test_a_prompt_counts_as_positions():
    network, _ = tuned("gpt2", "prompt")
    with pytest.raises(ValueError, match="61 positions"):
        generate(network.backbone, [[5] * 60], max_new_tokens=2)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_an_encoders_features_are_those_of_its_real_tokens(pooling):
    network, batch = tuned("bert", "prompt")
    network.pooling = pooling
    backbone, prompt = network.backbone, network.backbone.prompt()
    # Padding, with a prompt in front, changes nothing.
    ids = batch["input_ids"][:, :3]
    short = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    padded = {
        "input_ids": np.pad(ids, ((0, 0), (0, 2)), constant_values=9),
        "attention_mask": np.pad(short["attention_mask"], ((0, 0), (0, 2))),
    }
    found = network.features(short)
    np.testing.assert_allclose(network.features(padded), found, atol=1e-6)
    words = backbone.embeddings.word_embeddings(ids)
    rows = jnp.broadcast_to(prompt, (len(words), *prompt.shape))
    hidden = backbone(inputs_embeds=jnp.concatenate([rows, words], 1)).last_hidden_state[:, COUNT:]
    expected = {"first": hidden[:, 0], "last": hidden[:, -1], "mean": hidden.mean(1)}[pooling]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("gemma", "last")])
def test_a_classifiers_prompt_begins_as_words(family, pooling):
    """So that at the start it is the network on rows with those words in front."""
    case, batch, _ = make_case(family)
    backbone = case.backbone if family == "bert" else case.backbone.backbone
    network = TextClassifier(backbone, 3, pooling=pooling, dropout_rate=0.0, rngs=nnx.Rngs(0))
    settings = base_config().tuning
    settings.method, settings.virtual_tokens = "prompt", COUNT
    ids = batch["input_ids"]
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    rebuild, trainable, frozen = tune(network, settings, 0)
    table = np.asarray(token_table(backbone).embedding[...])
    scale = getattr(backbone.config, "embedding_scale", 1.0)
    distance = np.abs(trainable["backbone.prompt.virtual"][:, None] / scale - table).max(-1)
    assert distance.min(1).max() < 1e-6
    words = np.broadcast_to(distance.argmin(1), (len(ids), COUNT))
    prompted = rebuild(trainable, frozen).features(batch)
    plain, _, _ = make_case(family)
    plain = plain.backbone if family == "bert" else plain.backbone.backbone
    hidden = plain(np.concatenate([words, ids], axis=1)).last_hidden_state[:, COUNT:]
    expected = hidden.mean(1) if pooling == "mean" else hidden[:, -1]
    np.testing.assert_allclose(prompted, expected, atol=1e-5)


def test_the_published_pooler_would_read_a_virtual_token():
    network, _, _ = make_case("bert")
    network.pooling = "pooler"
    settings = base_config().tuning
    settings.method = "prompt"
    with pytest.raises(ValueError, match=r"Set model\.pooling"):
        tune(network, settings, 0)


@pytest.mark.parametrize("method", ["prefix", "prompt", "p_tuning"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoders_write_with_a_cache_what_they_write_without(family, method):
    network, _ = tuned(family, method)
    model = network.backbone
    sources, expected = [[5, 6, 7], [9, 10, 11, 12, 4]], []
    for source in sources:
        ids, target = jnp.asarray([source]), [2]
        for _ in range(2):
            # Without padding, and the whole target each time.
            logits = model(ids, decoder_input_ids=jnp.asarray([target])).logits
            target.append(int(logits[0, -1].argmax()))
        expected.append(target[1:])
    assert generate(model, sources, max_new_tokens=2, decoder_prompt=[2]) == expected


def test_a_prompt_is_tokens_in_front_of_the_source():
    network, batch = tuned("t5", "prompt")
    model, ids = network.backbone, batch["input_ids"]
    found = model(ids, np.ones_like(ids), decoder_input_ids=ids).logits
    prompt, model.prompt = model.prompt(), None
    words = model.backbone.embed_source(ids)
    rows = jnp.broadcast_to(prompt, (len(words), *prompt.shape))
    whole = jnp.concatenate([rows, words], axis=1)
    expected = model(inputs_embeds=whole, decoder_input_ids=ids).logits
    np.testing.assert_allclose(found, expected, atol=1e-5)
