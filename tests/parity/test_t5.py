"""T5 and mT5 against transformers, on tiny random checkpoints."""

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
from ftjax.models.t5 import relative_position_buckets  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

TINY = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
SWITCHES = {
    "v1.0": {},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gated silu": {"feed_forward_proj": "gated-silu"},
    "plain gelu, wide heads": {"feed_forward_proj": "gelu", "d_kv": 11, "num_heads": 3},
    "deeper decoder": {"num_decoder_layers": 3},
    "shallow decoder": {"num_layers": 3, "num_decoder_layers": 1},
    "few buckets": {"relative_attention_num_buckets": 6, "relative_attention_max_distance": 9},
    "odd buckets": {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 13},
    "one head, large epsilon": {"num_heads": 1, "layer_norm_epsilon": 1e-2},
}
DECODER_STATES = {"hidden_states": "decoder_hidden_states"}


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


def tiny(model="T5ForConditionalGeneration", **fields):
    """A random network whose every part shows: large relative biases, uneven norms."""
    torch.manual_seed(0)
    config_class = getattr(transformers, model.split("5")[0] + "5Config")
    network = getattr(transformers, model)(config_class(**(TINY | fields)))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "relative_attention_bias" in name:
                parameter.normal_(0, 1)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "shared" in name:
                parameter.normal_(0, 0.3)
    return network


@pytest.mark.parametrize("switch", SWITCHES)
def test_random_checkpoint(tmp_path, switch):
    inputs = batch()
    assert_same_network(
        tmp_path,
        tiny(**SWITCHES[switch]),
        "seq2seq_lm",
        inputs,
        outputs=("logits",),
        valid=inputs["decoder_attention_mask"],
        torch_names=DECODER_STATES,
    )


@pytest.mark.parametrize("left", [False, True])
def test_backbone(tmp_path, left):
    inputs = batch(left)
    assert_same_network(
        tmp_path,
        tiny("T5Model"),
        "backbone",
        inputs,
        valid=inputs["decoder_attention_mask"],
        torch_names=DECODER_STATES,
    )


def test_encoder(tmp_path):
    inputs = {name: value for name, value in batch().items() if not name.startswith("decoder")}
    assert_same_network(
        tmp_path, tiny("T5EncoderModel"), "encoder", inputs, valid=inputs["attention_mask"]
    )


@pytest.mark.parametrize("tied", [False, True])
def test_mt5(tmp_path, tied):
    inputs = batch()
    assert_same_network(
        tmp_path,
        tiny("MT5ForConditionalGeneration", tie_word_embeddings=tied),
        "seq2seq_lm",
        inputs,
        outputs=("logits",),
        valid=inputs["decoder_attention_mask"],
        torch_names=DECODER_STATES,
    )


@pytest.mark.parametrize("says_tied", [False, True])
def test_head_of_its_own_is_used_whatever_the_config_says(tmp_path, says_tied):
    """As published v1.1 files have it (False), and as transformers 5 writes them again (True)."""
    network = tiny(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    network.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = np.random.default_rng(0).normal(0, 0.1, (99, 32)).astype(np.float32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    if not says_tied:
        path = tmp_path / "config.json"
        fields = json.loads(path.read_text()) | {"tie_word_embeddings": False}
        del fields["scale_decoder_outputs"], fields["dense_act_fn"], fields["is_gated_act"]
        path.write_text(json.dumps(fields))
    reference = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert reference.lm_head.weight is not reference.shared.weight
    inputs = batch()
    assert_same_network(
        tmp_path / "again",
        reference,
        "seq2seq_lm",
        inputs,
        outputs=("logits",),
        valid=inputs["decoder_attention_mask"],
        torch_names=DECODER_STATES,
    )
    ours = load_model(tmp_path, "seq2seq_lm")(**inputs).logits
    again = load_model(tmp_path / "again", "seq2seq_lm")(**inputs).logits
    np.testing.assert_array_equal(ours, again)


COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("names", [("shared.weight", *COPIES), COPIES, COPIES[1:2]])
def test_a_file_may_have_any_of_the_tied_tables(tmp_path, names):
    tiny().save_pretrained(tmp_path)
    ids = {"input_ids": batch()["input_ids"], "decoder_input_ids": batch()["decoder_input_ids"]}
    before = load_model(tmp_path, "seq2seq_lm")(**ids).logits
    weights = load_file(tmp_path / "model.safetensors")
    table = weights.pop("shared.weight")
    save_file(weights | dict.fromkeys(names, table), tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load_model(tmp_path, "seq2seq_lm")(**ids).logits, before)


def test_a_head_of_its_own_without_the_shared_table(tmp_path):
    tiny().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    table = weights.pop("shared.weight")
    head = np.random.default_rng(0).normal(size=table.shape).astype(np.float32)
    weights |= {"decoder.embed_tokens.weight": table, "lm_head.weight": head}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = {"input_ids": batch()["input_ids"], "decoder_input_ids": batch()["decoder_input_ids"]}
    network = load_model(tmp_path, "seq2seq_lm")
    np.testing.assert_array_equal(network.lm_head.kernel[...].T, head)
    np.testing.assert_array_equal(network.backbone.shared.embedding[...], table)
    reference = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        theirs = reference(**{k: torch.tensor(np.asarray(v)) for k, v in ids.items()}).logits
    np.testing.assert_allclose(network(**ids).logits, theirs.numpy(), atol=1e-4)


def test_a_table_of_the_oldest_files_that_nothing_uses(tmp_path):
    tiny("T5Model").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    weights[name] = np.ones((32, 4), np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    load_model(tmp_path)
    load_model(tmp_path, "encoder")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("kind", "network"), [("T5Model", "backbone"), ("T5ForConditionalGeneration", "seq2seq_lm")]
)
def test_a_table_that_should_be_a_copy_and_differs_is_refused(tmp_path, kind, network, part):
    tiny(kind).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[f"{part}.embed_tokens.weight"] = weights["shared.weight"] + 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"surplus: {part}\.embed_tokens\.weight"):
        load_model(tmp_path, network)


def test_a_missing_head_is_not_filled_from_a_copy_of_the_table(tmp_path):
    tiny("T5ForConditionalGeneration", tie_word_embeddings=False).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    weights.pop("lm_head.weight", None)
    save_file(weights, tmp_path / "model.safetensors")
    fields = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": False}
    del fields["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        load_model(tmp_path, "seq2seq_lm")


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="block"), Compute(remat="dots"), Compute(scan_layers=True)],
    ids=["remat block", "remat dots", "scan"],
)
def test_memory_switches_change_no_number(tmp_path, compute):
    inputs = batch()
    assert_same_network(
        tmp_path,
        tiny(num_layers=3, feed_forward_proj="gated-gelu"),
        "seq2seq_lm",
        inputs,
        outputs=("logits",),
        valid=inputs["decoder_attention_mask"],
        torch_names=DECODER_STATES,
        compute=compute,
    )


@pytest.mark.parametrize("buckets, distance", [(32, 128), (6, 9), (7, 13), (20, 20), (64, 1000)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_distance_has_the_references_bucket(buckets, distance, bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    ours = relative_position_buckets(buckets, distance, bidirectional=bidirectional)
    positions = torch.arange(-distance, distance + 1)
    theirs = T5Attention._relative_position_bucket(positions, bidirectional, buckets, distance)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("cross", [False, True], ids=["cross projected", "cross cached"])
def test_cache_gives_what_the_whole_target_gives(tmp_path, cross):
    network = tiny(num_decoder_layers=3)
    network.save_pretrained(tmp_path)
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
    assert int(cache["index"]) == 11
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-5)


def test_shift_right():
    labels = np.array([[5, 6, 1, -100], [7, 1, -100, -100]])
    theirs = tiny()._shift_right(torch.tensor(labels))
    np.testing.assert_array_equal(shift_right(jnp.asarray(labels), 0, 0), theirs)
