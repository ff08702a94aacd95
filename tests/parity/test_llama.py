"""Llama and Mistral against transformers, one tiny random checkpoint per switch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from decoders import (  # noqa: E402
    TINY,
    assert_same_decoder,
    batch,
    random_model,
    rewrite_config,
)

from ftjax.models.layers import Compute  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 5.0, 9.0],
}
SWITCHES = {
    "as many key heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "one head": {"num_key_value_heads": 1, "num_attention_heads": 1},
    "large heads": {"head_dim": 16},
    "heads of two": {"head_dim": 2},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "gelu": {"hidden_act": "gelu"},
    "large epsilon": {"rms_norm_eps": 1e-2},
    "pretraining_tp": {"pretraining_tp": 2},
    "another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 300.0}},
    "dynamic, within": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    "dynamic, beyond": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 8,
    },
    "default, beyond": {"max_position_embeddings": 8},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": YARN},
    "yarn, own magnitude": {"rope_parameters": YARN | {"attention_factor": 0.8}},
    "yarn, mscale": {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4}},
    "yarn, betas, not truncated": {
        "rope_parameters": YARN | {"beta_fast": 4, "beta_slow": 0.5, "truncate": False}
    },
    "yarn, without the original length": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "longrope, short": {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 32}},
    "longrope, long": {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 16}},
    "longrope, own magnitude": {
        "rope_parameters": LONGROPE
        | {"original_max_position_embeddings": 16, "factor": 3.0, "attention_factor": 1.3}
    },
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_random_checkpoint(tmp_path, switch):
    config = transformers.LlamaConfig(**(TINY | SWITCHES[switch]))
    assert_same_decoder(tmp_path, transformers.LlamaForCausalLM, config)


MISTRAL = {
    "no window": {"sliding_window": None},
    "window of one": {"sliding_window": 1},
    "short window": {"sliding_window": 5},
    "window as long as the text": {"sliding_window": 17},
    "window longer than the text": {"sliding_window": 40},
    "hidden size no multiple of heads": {"hidden_size": 30, "head_dim": 8, "sliding_window": None},
}


@pytest.mark.parametrize("switch", MISTRAL)
def test_mistral(tmp_path, switch):
    config = transformers.MistralConfig(**(TINY | MISTRAL[switch]))
    assert_same_decoder(tmp_path, transformers.MistralForCausalLM, config, inputs=batch(left=True))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_on_either_side(tmp_path, left):
    config = transformers.LlamaConfig(**TINY)
    inputs = batch(left=left)
    # Left padding with the positions that generation gives: a row's first token has position 0.
    positions = np.maximum(np.cumsum(inputs["attention_mask"], axis=1) - 1, 0).astype(np.int32)
    assert_same_decoder(
        tmp_path,
        transformers.LlamaForCausalLM,
        config,
        inputs=inputs | {"position_ids": positions},
    )


def test_without_a_mask(tmp_path):
    config = transformers.LlamaConfig(**TINY)
    # No padding: torch gives the padding token's embedding no gradient.
    inputs = {"input_ids": batch()["input_ids"][:1]}
    assert_same_decoder(tmp_path, transformers.LlamaForCausalLM, config, inputs=inputs)


def test_embeddings_in_place_of_ids(tmp_path):
    config = transformers.LlamaConfig(**TINY)
    inputs = {"inputs_embeds": np.random.default_rng(0).normal(size=(2, 7, 32)).astype(np.float32)}
    model = random_model(transformers.LlamaModel, config)
    # The table gets no gradient there, and one of zeros here.
    model.embed_tokens.weight.grad = torch.zeros_like(model.embed_tokens.weight)
    assert_same_network(tmp_path, model, "backbone", inputs)


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="block"), Compute(remat="dots"), Compute(scan_layers=True)],
    ids=["remat block", "remat dots", "scan"],
)
def test_memory_switches_change_no_number(tmp_path, compute):
    config = transformers.LlamaConfig(**TINY)
    assert_same_decoder(tmp_path, transformers.LlamaForCausalLM, config, compute=compute)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_classifier(tmp_path, left):
    config = transformers.LlamaConfig(**TINY, num_labels=3)
    inputs = batch(left=left)
    assert_same_network(
        tmp_path,
        random_model(transformers.LlamaForSequenceClassification, config),
        "sequence_classification",
        inputs,
        outputs=("logits",),
        valid=inputs["attention_mask"],
    )


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {key: LLAMA3[key] for key in LLAMA3 if key != "rope_theta"},
    ],
    ids=["none", "linear", "dynamic", "llama3"],
)
def test_older_spelling_of_rope_parameters(tmp_path, scaling):
    """As transformers 4 wrote them."""
    parameters = dict(scaling or {"rope_type": "default"}, rope_theta=700.0)
    parameters.setdefault("rope_type", parameters.pop("type", None))
    config = transformers.LlamaConfig(**TINY, rope_parameters=parameters)
    model = random_model(transformers.LlamaForCausalLM, config).eval()
    model.save_pretrained(tmp_path)

    def older(fields):
        del fields["rope_parameters"]
        fields.update(rope_theta=700.0, rope_scaling=scaling, rope_interleaved=False)

    rewrite_config(tmp_path, older)
    inputs = batch()
    ours = load_model(tmp_path, "causal_lm")(**inputs).logits
    with torch.no_grad():
        theirs = model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
    difference = np.abs(np.asarray(ours) - theirs.numpy())[inputs["attention_mask"] > 0]
    assert difference.max() <= 1e-5
