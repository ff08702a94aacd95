"""Greedy tokens and logits processors against transformers' generation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import decoders  # noqa: E402
from decoders import random_model  # noqa: E402

from ftjax.models.generate import generate  # noqa: E402
from ftjax.models.sampling import (  # noqa: E402
    Sampling,
    Written,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    processed,
)
from ftjax.pretrained.generation_defaults import (  # noqa: E402
    HARMLESS,
    PASSED_OVER,
    USED,
    generation_defaults,
)
from ftjax.pretrained.load import load_model  # noqa: E402

# Tied heads of random networks repeat the last token; these say something.
TINY = decoders.TINY | {"initializer_range": 0.3, "tie_word_embeddings": False}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 5.0, 9.0],
    "partial_rotary_factor": 1.0,
}
GPT2 = {name: TINY[name] for name in TINY.keys() - {"intermediate_size", "num_key_value_heads"}}
WINDOW = {"head_dim": 12, "sliding_window": 5}
DECODERS = {
    "gpt2": ("GPT2LMHeadModel", transformers.GPT2Config(**GPT2)),
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig(**TINY)),
    "llama, dynamic rope beyond": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(
            **(TINY | {"max_position_embeddings": 20}),
            rope_parameters={"rope_type": "dynamic", "factor": 2.0},
        ),
    ),
    "mistral": ("MistralForCausalLM", transformers.MistralConfig(**TINY, sliding_window=4)),
    "qwen2": (
        "Qwen2ForCausalLM",
        transformers.Qwen2Config(
            **TINY, use_sliding_window=True, sliding_window=6, max_window_layers=1
        ),
    ),
    "qwen3": ("Qwen3ForCausalLM", transformers.Qwen3Config(**TINY, head_dim=12)),
    "phi3": ("Phi3ForCausalLM", transformers.Phi3Config(**TINY, sliding_window=7)),
    # The longest prompt has 17 tokens: rotated anew before, at, and after the first new token.
    **{
        f"phi3, longrope beyond {length}": (
            "Phi3ForCausalLM",
            transformers.Phi3Config(
                **TINY, rope_parameters=dict(LONGROPE), original_max_position_embeddings=length
            ),
        )
        for length in (16, 17, 20)
    },
    "gemma": ("GemmaForCausalLM", transformers.GemmaConfig(**TINY, head_dim=12)),
    "gemma2": ("Gemma2ForCausalLM", transformers.Gemma2Config(**(TINY | WINDOW))),
    "gemma3": (
        "Gemma3ForCausalLM",
        transformers.Gemma3TextConfig(**(TINY | WINDOW), sliding_window_pattern=2),
    ),
}
SEQ2SEQ = {
    "t5": (
        "T5ForConditionalGeneration",
        transformers.T5Config(
            vocab_size=99,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            initializer_factor=1.5,
        ),
    ),
    "bart": (
        "BartForConditionalGeneration",
        transformers.BartConfig(
            vocab_size=99,
            d_model=32,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=20,
            init_std=0.2,
            pad_token_id=0,
        ),
    ),
}
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(3, 99, length).tolist() for length in (5, 17, 1, 16)]


def padded(prompts, *, left):
    """Ids and mask as torch has them."""
    length = max(len(prompt) for prompt in prompts)
    ids, mask = np.zeros((2, len(prompts), length), np.int64)
    for row, prompt in enumerate(prompts):
        at = slice(length - len(prompt), length) if left else slice(len(prompt))
        ids[row, at], mask[row, at] = prompt, 1
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def reference(model, prompts, count, **options):
    """Greedy tokens of transformers, `count` per row."""
    is_encoder_decoder = model.config.is_encoder_decoder
    inputs = padded(prompts, left=not is_encoder_decoder)
    # Not stopping, so that every row is compared to its end.
    options = {"do_sample": False, "eos_token_id": None, "forced_eos_token_id": None} | options
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=count, num_beams=1, **options)
    return tokens[:, -count:].tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_of_unequal_prompts(tmp_path, name):
    network_class, config = DECODERS[name]
    model = random_model(getattr(transformers, network_class), config).eval()
    model.save_pretrained(tmp_path)
    ours = generate(load_model(tmp_path, "causal_lm"), PROMPTS, max_new_tokens=12)
    assert ours == reference(model, PROMPTS, 12)
    assert len({token for row in ours for token in row}) > 10, "too dull to compare"


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_greedy_tokens_of_encoder_decoders(tmp_path, name):
    network_class, config = SEQ2SEQ[name]
    model = random_model(getattr(transformers, network_class), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than initialised, or the network does not look at its source.
            parameter.mul_(1.0 if "norm" in name else 3.0)
            parameter.mul_(4.0 if "decoder.embed_positions" in name else 1.0)
    model.save_pretrained(tmp_path)
    ours = generate(
        load_model(tmp_path, "seq2seq_lm"),
        PROMPTS,
        max_new_tokens=12,
        decoder_prompt=[3],
        sampling=Sampling(repetition_penalty=1.5),
    )
    options = {"decoder_start_token_id": 3, "repetition_penalty": 1.5}
    assert ours == reference(model, PROMPTS, 12, **options)
    assert len({token for row in ours for token in row}) > 5, "too dull to compare"


def test_repetition_penalty(tmp_path):
    network_class, config = DECODERS["llama"]
    model = random_model(getattr(transformers, network_class), config).eval()
    model.save_pretrained(tmp_path)
    network = load_model(tmp_path, "causal_lm")
    # One row at a time: the reference also penalises the padding of a batch.
    for prompt in PROMPTS[:2]:
        theirs = reference(model, [prompt], 12, repetition_penalty=1.8)
        sampling = Sampling(repetition_penalty=1.8)
        assert generate(network, [prompt], max_new_tokens=12, sampling=sampling) == theirs
        assert theirs != reference(model, [prompt], 12)


def random_logits():
    logits = np.random.default_rng(3).normal(size=(4, 50)).astype(np.float32) * 3
    logits[1] = 0.0  # all equal
    logits[2, 7] = 60.0  # one token has all the probability
    logits[3, :10] = logits[3, 10]  # ties
    return logits


@pytest.mark.parametrize("k", [1, 2, 11, 50, 80])
def test_top_k(k):
    logits = random_logits()
    theirs = transformers.TopKLogitsWarper(k)(None, torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(keep_top_k(logits, k), theirs)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999, 1.0])
def test_top_p(p):
    # Ties are cut in no particular order, so there are none here.
    logits = random_logits()[[0, 2]]
    theirs = transformers.TopPLogitsWarper(p)(None, torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(keep_top_p(logits, p), theirs)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 1.0])
def test_min_p(p):
    logits = random_logits()[[0, 2, 3]]
    theirs = transformers.MinPLogitsWarper(p)(None, torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(keep_min_p(logits, p), theirs)


def written_rows(ids, room=5):
    """Rows of one length, with slots before and behind them that do not count."""
    rows, length = ids.shape
    tokens = np.full((rows, length + 2 * room), 7, np.int32)
    tokens[:, room : room + length] = ids
    return Written(jnp.asarray(tokens), jnp.full(rows, room), jnp.int32(room + length))


@pytest.mark.parametrize("penalty", [0.7, 1.5])
def test_repetition_penalty_of_logits(penalty):
    logits = random_logits()
    ids = np.random.default_rng(4).integers(0, 50, (4, 12))
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    theirs = processor(torch.tensor(ids), torch.tensor(logits)).numpy()
    sampling = Sampling(repetition_penalty=penalty)
    np.testing.assert_allclose(processed(logits, written_rows(ids), sampling), theirs, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 30])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_repeated_ngrams(size, length):
    # Few tokens, so that much is repeated.
    ids = np.random.default_rng(5).integers(5, 9, (4, length))
    logits = random_logits()
    processor = transformers.NoRepeatNGramLogitsProcessor(size)
    theirs = processor(torch.tensor(ids), torch.tensor(logits)).numpy()
    sampling = Sampling(no_repeat_ngram_size=size)
    np.testing.assert_array_equal(processed(logits, written_rows(ids), sampling), theirs)
    assert np.isinf(theirs).any() or length < size + 1


GENERATION = {
    "greedy": {"do_sample": False, "temperature": 0.7, "top_p": 0.5, "repetition_penalty": 1.3},
    "top_k without a word": {"do_sample": True},
    "llama": {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    "qwen": {
        "do_sample": True,
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
    },
    "min_p": {"do_sample": True, "temperature": 1.5, "min_p": 0.1, "top_k": 0},
    "all": {
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 12,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "suppress_tokens": [4, 11],
        "bad_words_ids": [[9], [2]],
        "eos_token_id": [2, 3],
        "min_new_tokens": 30,
    },
}


@pytest.mark.parametrize("name", GENERATION)
def test_distributions_that_a_checkpoint_asks_for(tmp_path, name):
    """All processors of transformers, in its order, from the same generation_config.json."""
    network_class, config = DECODERS["llama"]
    model = random_model(getattr(transformers, network_class), config).eval()
    model.save_pretrained(tmp_path)
    fields = {"eos_token_id": 2} | GENERATION[name]
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    defaults = generation_defaults(tmp_path, is_encoder_decoder=False)
    theirs_config = transformers.GenerationConfig.from_pretrained(tmp_path)
    model.generation_config = theirs_config
    prepared, _ = model._prepare_generation_config(None)
    model._prepare_special_tokens(prepared, device="cpu")
    processors = model._get_logits_processor(prepared, input_ids_seq_length=3, device="cpu")
    random = np.random.default_rng(7)
    ids, logits = random.integers(5, 30, (6, 14)), random.normal(size=(6, 99)) * 3
    logits = logits.astype(np.float32)
    theirs = processors(torch.tensor(ids), torch.tensor(logits)).softmax(-1).numpy()
    held_back = defaults.stop_token_ids if fields.get("min_new_tokens") else ()
    ours = processed(logits, written_rows(ids), defaults.sampling(), held_back)
    np.testing.assert_allclose(jax.nn.softmax(ours, -1), theirs, rtol=2e-5, atol=1e-7)
    assert ((theirs == 0) == (np.asarray(jax.nn.softmax(ours, -1)) == 0)).all()
    assert defaults.draws == prepared.do_sample


def test_greedy_tokens_that_a_summariser_asks_for(tmp_path):
    """BART's forced first token, banned sequences and least length."""
    network_class, config = SEQ2SEQ["bart"]
    model = random_model(getattr(transformers, network_class), config).eval()
    model.save_pretrained(tmp_path)
    fields = {
        "decoder_start_token_id": 3,
        "forced_bos_token_id": 8,
        "eos_token_id": 2,
        "no_repeat_ngram_size": 2,
        "min_length": 9,
        "max_length": 14,
        "num_beams": 4,
        "bad_words_ids": [[5]],
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    defaults = generation_defaults(tmp_path, is_encoder_decoder=True)
    assert defaults.passed_over == ("num_beams=4",)
    ours = generate(
        load_model(tmp_path, "seq2seq_lm"),
        PROMPTS,
        max_new_tokens=defaults.max_new_tokens,
        sampling=defaults.sampling(),
        stop_token_ids=defaults.stop_token_ids,
        decoder_prompt=defaults.decoder_prompt,
    )
    model.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
    with torch.no_grad():
        theirs = model.generate(**padded(PROMPTS, left=False), num_beams=1)
    assert [[3, 8, *row] for row in ours] == [
        [t for t in row if t not in (0, 2)] for row in theirs.tolist()
    ]
    assert all(len(row) >= 7 for row in ours)


def test_every_field_of_a_generation_config_is_known():
    """A new version's field has to be used, named harmless, or passed over with a word."""
    theirs = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    ours = {*USED, *PASSED_OVER, *HARMLESS}
    assert theirs <= ours, theirs - ours
