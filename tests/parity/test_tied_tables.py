"""Adapted tables that a head repeats: merged, exported and in chat they stay peft's network."""

import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from ftjax.models.heads import LanguageModel  # noqa: E402
from ftjax.pretrained.adapter import load_adapter  # noqa: E402
from ftjax.pretrained.compare import merged_and_compared, outputs_on_example  # noqa: E402
from ftjax.pretrained.export import export  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)

IDS = np.random.default_rng(0).integers(3, 90, (2, 7))
SMALL = {"vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = SMALL | {"intermediate_size": 40}
LLAMA = BERT | {"num_key_value_heads": 2, "tie_word_embeddings": True}
CASES = {
    "llama": ("causal_lm", "LlamaForCausalLM", LLAMA, ["embed_tokens", "q_proj"]),
    "gpt2": (
        "causal_lm",
        "GPT2LMHeadModel",
        {"vocab_size": 99, "n_embd": 24, "n_layer": 2, "n_head": 4},
        ["wte", "c_attn"],
    ),
    "gemma": ("causal_lm", "GemmaForCausalLM", LLAMA | {"head_dim": 6}, ["embed_tokens"]),
    "bert": ("masked_lm", "BertForMaskedLM", BERT, ["word_embeddings", "query"]),
    "roberta": ("masked_lm", "RobertaForMaskedLM", BERT, ["word_embeddings"]),
    "electra": (
        "masked_lm",
        "ElectraForMaskedLM",
        BERT | {"embedding_size": 16},
        ["word_embeddings"],
    ),
    "modernbert": (
        "masked_lm",
        "ModernBertForMaskedLM",
        BERT
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
        | {"sep_token_id": 2},
        ["tok_embeddings"],
    ),
}


class Holder(nnx.Module):
    def __init__(self, backbone):
        self.backbone = backbone


def adapted(case, folder):
    network, name, fields, targets = CASES[case]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**fields)).eval()
    model.save_pretrained(folder / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=case == "gpt2"
    )
    theirs = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
        reference = theirs(torch.tensor(IDS)).logits.numpy()
    theirs.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return network, kind, reference


@pytest.mark.parametrize("case", CASES)
def test_merged_and_exported_it_is_pefts(tmp_path, case):
    network, kind, reference = adapted(case, tmp_path)
    holder = Holder(load_model(tmp_path / "base", network))
    load_adapter(holder, tmp_path / "base", tmp_path / "adapter")
    np.testing.assert_allclose(holder.backbone(IDS).logits, reference, atol=2e-5)
    merged, before = merged_and_compared(holder, tmp_path / "base")
    np.testing.assert_allclose(merged(IDS).logits, reference, atol=2e-5)
    export(merged, network, tmp_path / "base", tmp_path / "out", expected=before)
    again = kind.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.tensor(IDS)).logits, reference, atol=2e-5)


def test_a_t5_whose_table_is_adapted_goes_on_scaling(tmp_path):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=99, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    from ftjax.config import base_config
    from ftjax.tuning.tune import tune

    holder = Holder(load_model(tmp_path / "base", "seq2seq_lm"))
    settings = base_config().tuning
    settings.method, settings.targets = "lora", r".*\.(shared|q)"
    rebuild, trainable, frozen = tune(holder, settings, 0)
    random = np.random.default_rng(0)
    moved = {
        path: value + 0.2 * random.normal(size=value.shape).astype(np.float32)
        for path, value in trainable.items()
    }
    tuned = rebuild(moved, frozen)
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}
    expected = tuned.backbone(**inputs).logits
    merged, before = merged_and_compared(tuned, tmp_path / "base")
    export(merged, "seq2seq_lm", tmp_path / "base", tmp_path / "out", expected=before)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = again(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_an_export_of_another_network_is_not_kept(tmp_path):
    network, _, _ = adapted("llama", tmp_path)
    plain = load_model(tmp_path / "base", network)
    other = {name: 1.1 * x for name, x in outputs_on_example(plain, tmp_path / "base").items()}
    with pytest.raises(ValueError, match="Written and loaded again, the network's"):
        export(plain, network, tmp_path / "base", tmp_path / "out", expected=other)
    assert not (tmp_path / "out").exists()


def test_a_writer_with_an_adapter_on_its_table(tmp_path):
    _, _, reference = adapted("gpt2", tmp_path)
    model = LanguageModel(load_model(tmp_path / "base", "causal_lm"))
    load_adapter(model, tmp_path / "base", tmp_path / "adapter")
    merged, _ = merged_and_compared(model, tmp_path / "base")
    np.testing.assert_allclose(merged(IDS).logits, reference, atol=2e-5)
