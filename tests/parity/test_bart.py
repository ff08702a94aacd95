"""BART, mBART and Marian against transformers, on tiny random checkpoints."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from ftjax.models.encoder_decoder import shift_right  # noqa: E402
from ftjax.models.layers import Compute  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

TINY = {
    "vocab_size": 99,
    "d_model": 32,
    "max_position_embeddings": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
    "init_std": 0.2,
}
# The spread of the weights makes logits of about ten, in which float32 keeps six digits.
LOGITS = {"outputs": ("logits",), "tolerance": 2e-5}
DECODER_STATES = {"hidden_states": "decoder_hidden_states"}
SWITCHES = {
    "Bart": {},
    "Bart, scaled embeddings": {"scale_embedding": True},
    "Bart, depths and heads": {
        "encoder_layers": 1,
        "decoder_layers": 3,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 1,
        "activation_function": "relu",
    },
    "Bart, untied": {"tie_word_embeddings": False},
    "MBart": {"scale_embedding": True, "activation_function": "relu"},
    "Marian": {"activation_function": "swish", "scale_embedding": True},
    "Marian, odd width": {
        "d_model": 33,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 3,
    },
    "Marian, two vocabularies": {
        "share_encoder_decoder_embeddings": False,
        "decoder_vocab_size": 120,
    },
    "Marian, untied": {"tie_word_embeddings": False},
    "Marian, two vocabularies, untied": {
        "share_encoder_decoder_embeddings": False,
        "tie_word_embeddings": False,
    },
}


def batch(left=False):
    random = np.random.default_rng(1)
    source, target = np.ones((3, 17), np.int32), np.ones((3, 11), np.int32)
    source[1, 9:] = source[2, 1:] = target[1, 4:] = 0
    if left:
        source = source[:, ::-1].copy()
    return {
        "input_ids": random.integers(1, 99, source.shape).astype(np.int32),
        "attention_mask": source,
        "decoder_input_ids": random.integers(1, 99, target.shape).astype(np.int32),
        "decoder_attention_mask": target,
    }


def tiny(family="Bart", head=True, **fields):
    torch.manual_seed(0)
    heads = {"Bart": "ForConditionalGeneration", "MBart": "ForConditionalGeneration"}
    name = family + (heads.get(family, "MTModel") if head else "Model")
    config = getattr(transformers, f"{family}Config")(**(TINY | fields))
    network = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
        if head:
            network.final_logits_bias.uniform_(-1, 1)
    return network


@pytest.mark.parametrize("switch", SWITCHES)
def test_random_checkpoint(tmp_path, switch):
    inputs = batch()
    assert_same_network(
        tmp_path,
        tiny(switch.split(",")[0], **SWITCHES[switch]),
        "seq2seq_lm",
        inputs,
        **LOGITS,
        valid=inputs["decoder_attention_mask"],
        torch_names=DECODER_STATES,
    )


@pytest.mark.parametrize("family", ["Bart", "MBart", "Marian"])
def test_backbone(tmp_path, family):
    inputs = batch(left=True)
    assert_same_network(
        tmp_path,
        tiny(family, head=False),
        "backbone",
        inputs,
        valid=inputs["decoder_attention_mask"],
        torch_names=DECODER_STATES,
    )


def test_head_on_a_published_backbone(tmp_path):
    """facebook/bart-base and -large are saved without head, prefix and final_logits_bias."""
    network = tiny("Bart", head=False)
    network.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    weights["decoder.embed_tokens.weight"] = weights["shared.weight"]
    weights["encoder.version"] = weights["decoder.version"] = np.array([3.0], np.float32)
    save_file(weights, path, {"format": "pt"})
    fields = json.loads((tmp_path / "config.json").read_text())
    fields |= {"normalize_before": False, "static_position_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    reference = transformers.BartForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = batch()
    with torch.no_grad():
        theirs = reference(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
    ours = load_model(tmp_path, "seq2seq_lm")(**inputs).logits
    rows = inputs["decoder_attention_mask"] > 0
    np.testing.assert_allclose(np.asarray(ours)[rows], theirs.numpy()[rows], atol=2e-5)


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="block"), Compute(remat="dots"), Compute(scan_layers=True)],
    ids=["remat block", "remat dots", "scan"],
)
def test_memory_switches_change_no_number(tmp_path, compute):
    inputs = batch()
    assert_same_network(
        tmp_path,
        tiny(),
        "seq2seq_lm",
        inputs,
        **LOGITS,
        valid=inputs["decoder_attention_mask"],
        torch_names=DECODER_STATES,
        compute=compute,
    )


@pytest.mark.parametrize("family", ["Bart", "MBart", "Marian"])
@pytest.mark.parametrize("cross", [False, True], ids=["cross projected", "cross cached"])
def test_cache_gives_what_the_whole_target_gives(tmp_path, family, cross):
    tiny(family).save_pretrained(tmp_path)
    model = load_model(tmp_path, "seq2seq_lm")
    inputs = batch(left=True)
    ids = inputs["decoder_input_ids"]
    whole = model(inputs["input_ids"], inputs["attention_mask"], decoder_input_ids=ids).logits
    encoder = model.encode(inputs["input_ids"], inputs["attention_mask"])
    cache = model.init_cache(3, 14, jnp.float32, encoder if cross else None)
    pieces = []
    for start, stop in ((0, 5), (5, 6), (6, 11)):
        output = model.decode(ids[:, start:stop], encoder, inputs["attention_mask"], cache=cache)
        cache = output.cache
        pieces.append(output.logits)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=2e-5)


def test_shift_right():
    from transformers.models.bart.modeling_bart import shift_tokens_right

    labels = np.array([[5, 6, 1, -100], [7, 1, -100, -100]])
    theirs = shift_tokens_right(torch.tensor(labels), pad_token_id=1, decoder_start_token_id=2)
    np.testing.assert_array_equal(shift_right(jnp.asarray(labels), 2, 1), theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_fixed_positions_that_a_file_holds_are_compared(tmp_path, part, dtype):
    """transformers reads them from the file, and here they are computed."""
    network = tiny("Marian")
    network.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = f"model.{part}.embed_positions.weight"
    positions = network.get_submodule(f"model.{part}.embed_positions").weight.detach().numpy()
    save_file(weights | {name: positions.astype(dtype)}, tmp_path / "model.safetensors")
    load_model(tmp_path, "seq2seq_lm")
    other = np.roll(positions, 1, axis=0).astype(dtype)
    save_file(weights | {name: other}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{part}\.embed_positions\.weight holds not what sinus"):
        load_model(tmp_path, "seq2seq_lm")
