"""Stopping, streaming, drawing, and prompts that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ftjax.models import FAMILIES
from ftjax.models.generate import generate
from ftjax.models.sampling import Sampling, Written, choose_tokens

FIELDS = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13]]


def make_network(**fields):
    family = FAMILIES["gpt2"]
    config = family.parse_config(FIELDS | fields)
    build = family.networks["causal_lm"]
    model = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    state, random = nnx.state(model), np.random.default_rng(0)
    for path, leaf in nnx.to_flat_state(state):
        # Large positions, so that the network does not repeat itself.
        size = 3.0 if "wpe" in path else 0.5
        noise = jnp.asarray(size * random.normal(size=leaf.shape))
        leaf.set_value(noise + 1 if path[-1] == "scale" else noise)
    nnx.update(model, state)
    return model


@pytest.fixture(scope="module")
def network():
    return make_network(tie_word_embeddings=False)


def text_of(tokens):
    return "".join(f"<{token}>" for token in tokens)


def test_greedy_tokens_are_those_of_the_network_without_a_cache(network):
    new = generate(network, PROMPTS, max_new_tokens=9)
    assert len({token for row in new for token in row}) > 5
    logits = nnx.jit(lambda network, ids: network(ids).logits)
    for prompt, row in zip(PROMPTS, new, strict=True):
        whole = jnp.asarray([prompt + row + [0] * (16 - len(prompt + row))])
        end = len(prompt + row) - 1
        likeliest = jnp.argmax(logits(network, whole)[0], axis=-1)[len(prompt) - 1 : end]
        assert row == likeliest.tolist()


def test_a_row_does_not_depend_on_the_others(network):
    together = generate(network, PROMPTS, max_new_tokens=6)
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert generate(network, [prompt], max_new_tokens=6) == [row]


def test_stop_tokens_end_their_row_only(network):
    free = generate(network, PROMPTS, max_new_tokens=9)
    stops = [free[0][2], free[1][5]]
    stopped = generate(network, PROMPTS, max_new_tokens=9, stop_token_ids=stops)
    for row, whole in zip(stopped, free, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stops]
        assert row == whole[: ends[0] if ends else None]
    assert stopped != free


def test_a_row_may_end_with_its_first_token(network):
    first = [row[0] for row in generate(network, PROMPTS, max_new_tokens=1)]
    assert generate(network, PROMPTS, max_new_tokens=5, stop_token_ids=first) == [[], [], []]


def test_stop_strings_may_span_tokens(network):
    free = generate(network, PROMPTS, max_new_tokens=30)
    # The end of the 20th token and the beginning of the 21st, beyond the first look.
    stop = f"{free[0][19]}><{free[0][20]}"
    end = text_of(free[0]).index(stop) + len(stop)
    stopped = generate(network, PROMPTS, max_new_tokens=30, stop_strings=[stop], decode=text_of)
    assert stop in text_of(stopped[0])
    assert stop not in text_of(stopped[0][:-1])
    assert len(text_of(stopped[0])) == end + 1
    assert stopped[1] == free[1] or stop in text_of(free[1])


def test_a_reader_sees_all_tokens_as_they_come(network):
    steps = []
    stop = generate(network, PROMPTS, max_new_tokens=4)[1][2]
    new = generate(
        network, PROMPTS, max_new_tokens=9, stop_token_ids=[stop], on_tokens=steps.append
    )
    read = [[token for step in steps for token in step[row]] for row in range(3)]
    assert read == new
    assert all(len(row) <= 1 for step in steps for row in step)


def test_drawing_repeats_with_its_key(network):
    sampling = Sampling(temperature=1.5, top_k=20, top_p=0.95)

    def draw(seed, prompts=PROMPTS):
        key = jax.random.key(seed)
        return generate(network, prompts, max_new_tokens=12, sampling=sampling, key=key)

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    # The other rows change neither the logits nor what is drawn.
    assert draw(0, PROMPTS[:2]) == draw(0)[:2]


def ngrams(tokens, size):
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_sequence_of_tokens_comes_twice(size):
    # Tied heads of random networks repeat the last token.
    network = make_network(n_positions=60)
    prompts = [[3, 4, 3, 4, 3], [6], [7, 8, 9, 7, 8, 9, 7]]
    free = generate(network, prompts, max_new_tokens=30)
    sampling = Sampling(no_repeat_ngram_size=size)
    for row, prompt in enumerate(prompts):
        assert len(set(ngrams(free[row], size))) < 31 - size
        (new,) = generate(network, [prompt], max_new_tokens=30, sampling=sampling)
        before = ngrams(prompt, size)
        whole = ngrams(prompt + new, size)[len(before) :]
        assert len(set(whole)) == len(whole) and not set(whole) & set(before)
    together = generate(network, prompts, max_new_tokens=30, sampling=sampling)
    assert together[2] == new, "the padding of other rows counts"


def test_banned_tokens_and_an_end_that_comes_late_enough(network):
    free = generate(network, PROMPTS, max_new_tokens=9)
    banned = (free[0][0], free[1][4])
    rows = generate(network, PROMPTS, max_new_tokens=9, sampling=Sampling(banned_tokens=banned))
    assert not {token for row in rows for token in row} & set(banned)
    stop = free[0][3]
    early = free[0].index(stop)
    sampling = Sampling(min_new_tokens=5)
    rows = generate(network, PROMPTS, max_new_tokens=9, stop_token_ids=[stop], sampling=sampling)
    assert all(len(row) >= 5 for row in rows)
    assert rows[0][:early] == free[0][:early] and stop not in rows[0]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    count = 20_000
    nothing = Written(jnp.zeros((count, 1), jnp.int32), jnp.zeros(count, jnp.int32), jnp.int32(0))
    keys = jax.random.split(jax.random.key(0), count)

    def shares(sampling):
        many = jnp.broadcast_to(logits, (count, 4))
        tokens = choose_tokens(many, nothing, sampling, keys)
        return np.bincount(tokens, minlength=4) / count

    within = 4 * 0.5 / np.sqrt(count)
    np.testing.assert_allclose(shares(Sampling(temperature=1.0)), [0.4, 0.3, 0.2, 0.1], atol=within)
    np.testing.assert_allclose(
        shares(Sampling(temperature=1.0, top_k=2)), [4 / 7, 3 / 7, 0, 0], atol=within
    )
    np.testing.assert_allclose(
        shares(Sampling(temperature=1.0, top_p=0.75)), [4 / 9, 3 / 9, 2 / 9, 0], atol=within
    )
    np.testing.assert_allclose(
        shares(Sampling(temperature=1.0, min_p=0.6)), [4 / 7, 3 / 7, 0, 0], atol=within
    )
    squared = np.array([16, 9, 4, 1]) / 30
    np.testing.assert_allclose(shares(Sampling(temperature=0.5)), squared, atol=within)


def test_as_many_tokens_as_positions(network):
    prompt = list(range(1, 31))
    assert len(generate(network, [prompt], max_new_tokens=10)[0]) == 10
    with pytest.raises(ValueError, match=r"Prompt 1 has 30 tokens, and 11 new.*40 positions"):
        generate(network, [[1], prompt], max_new_tokens=11)


def test_no_prompts(network):
    assert generate(network, [], max_new_tokens=5) == []


def test_calls_that_do_not_fit(network):
    with pytest.raises(ValueError, match="Prompt 1 is empty"):
        generate(network, [[1], []], max_new_tokens=2)
    with pytest.raises(ValueError, match=r"token 50, but the network's vocabulary has 50"):
        generate(network, [[1, 50]], max_new_tokens=2)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        generate(network, [[1]], max_new_tokens=0)
    with pytest.raises(ValueError, match="needs a random key"):
        generate(network, [[1]], max_new_tokens=2, sampling=Sampling(temperature=1.0))
    with pytest.raises(ValueError, match="stop_strings need decode"):
        generate(network, [[1]], max_new_tokens=2, stop_strings=["x"])
    with pytest.raises(ValueError, match="decoder_prompt"):
        generate(network, [[1]], max_new_tokens=2, decoder_prompt=[1])


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"min_p": float("nan")},
        {"temperature": float("inf")},
        {"no_repeat_ngram_size": -1},
        {"banned_tokens": (3, -1)},
        {"min_new_tokens": -1},
        {"repetition_penalty": 0},
    ],
)
def test_sampling_out_of_range(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        Sampling(**values)


@pytest.mark.parametrize("values", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_options_that_would_have_no_effect(values):
    with pytest.raises(ValueError, match="need a temperature above 0"):
        Sampling(**values)
