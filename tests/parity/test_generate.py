"""Greedy tokens and logits processors against transformers' generation."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import decoders  # noqa: E402
from decoders import random_model  # noqa: E402

from ftjax.models.generate import generate  # noqa: E402
from ftjax.models.sampling import (  # noqa: E402
    Sampling,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
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


@pytest.mark.parametrize("penalty", [0.7, 1.5])
def test_repetition_penalty_of_logits(penalty):
    logits = random_logits()
    ids = np.random.default_rng(4).integers(0, 50, (4, 12))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, axis=1)
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    theirs = processor(torch.tensor(ids), torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(penalise_repetition(logits, seen, penalty), theirs)
