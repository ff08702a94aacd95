"""What peft writes beside plain adapters, and how it finds layers: the same network here."""

import dataclasses
import json
import random

import numpy as np
import pytest
from flax import nnx
from mutate import mutate_json, sentence_or_result
from safetensors.numpy import load_file, save_file
from test_peft import disturbed, outputs_of, torch_outputs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from ftjax.config import base_config  # noqa: E402
from ftjax.models.heads import LanguageModel, PublishedClassifier, TextClassifier  # noqa: E402
from ftjax.pretrained.adapter import load_adapter, save_adapter  # noqa: E402
from ftjax.pretrained.adapter_file import FORMS  # noqa: E402
from ftjax.pretrained.compare import merged_and_compared  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402
from ftjax.tuning.peft_settings import is_target, of_expression  # noqa: E402
from ftjax.tuning.tune import tune  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)
IDS = np.random.default_rng(0).integers(3, 90, (2, 7))
SMALL = {"vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = SMALL | {"intermediate_size": 40}
LLAMA = BERT | {"num_key_value_heads": 2}
T5 = {"vocab_size": 99, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": 99,
    "d_model": 24,
    "scale_embedding": True,
    "max_position_embeddings": 32,
    **dict.fromkeys(["encoder_layers", "decoder_layers"], 1),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 30),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2),
}
NETWORKS = {
    "llama": ("LlamaForCausalLM", LLAMA, "causal_lm"),
    "tied": ("LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True}, "causal_lm"),
    "bert": ("BertForMaskedLM", BERT, "masked_lm"),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 99, "n_embd": 24, "n_layer": 2, "n_head": 4},
        "causal_lm",
    ),
    "t5": ("T5ForConditionalGeneration", T5, "seq2seq_lm"),
    "bart": ("BartForConditionalGeneration", BART, "seq2seq_lm"),
}


class Holder(nnx.Module):
    def __init__(self, backbone):
        self.backbone = backbone


def made(family, folder):
    """(torch model, our network's name)."""
    kind, fields, name = NETWORKS[family]
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    model = model(model.config_class(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model, name


def logits_of(network):
    """Of a torch model or of ours."""
    if not isinstance(network, nnx.Module):
        inputs = {"input_ids": torch.tensor(IDS)}
        if network.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
        with torch.no_grad():
            return network(**inputs).logits.numpy()
    is_pair = hasattr(network, "decode")
    return np.asarray(network(IDS, **({"decoder_input_ids": IDS[:, :4]} if is_pair else {})).logits)


def moved(theirs):
    """Everything that trains, far from its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return theirs.eval()


def written_by_peft(family, folder, **settings):
    """(our network's name, logits in torch) of an adapter that peft wrote and loaded again."""
    model, name = made(family, folder / "base")
    settings = {"r": 3, "lora_alpha": 5, "fan_in_fan_out": family == "gpt2"} | settings
    config = peft.LoraConfig(**settings)
    theirs = moved(peft.get_peft_model(model, config))
    expected = logits_of(theirs)
    theirs.save_pretrained(folder / "adapter")
    fresh = type(model).from_pretrained(folder / "base").eval()
    again = peft.PeftModel.from_pretrained(fresh, folder / "adapter").eval()
    np.testing.assert_array_equal(logits_of(again), expected)
    assert np.abs(logits_of(type(model).from_pretrained(folder / "base")) - expected).max() > 1e-3
    return name, expected


def loaded(name, folder):
    holder = Holder(load_model(folder / "base", name))
    load_adapter(holder, folder / "base", folder / "adapter")
    return holder


HERE = {
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "table": ("llama", {"target_modules": ["embed_tokens"]}),
    "tied table": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head": ("tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied table and head": ("tied", {"target_modules": ["lm_head", "embed_tokens"]}),
    "gpt2's tied head": ("gpt2", {"target_modules": ["lm_head", "wte", "c_attn"]}),
    "bert's tied head": ("bert", {"target_modules": ["decoder", "query"]}),
    "tied alike": ("tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "tied alike, by the head": (
        "tied",
        {"target_modules": ["lm_head"], "ensure_weight_tying": True},
    ),
    "saved table": ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]}),
    "saved norms": ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["norm"]}),
    "saved tied table": (
        "tied",
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    "saved tied head": ("tied", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}),
    "saved both": (
        "tied",
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "saved alike": (
        "tied",
        {
            "target_modules": ["v_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "all biases": ("bert", {"target_modules": ["query", "value"], "bias": "all"}),
    "biases of adapted layers": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only"}),
    "biases of B": ("bert", {"target_modules": ["query"], "lora_bias": True}),
    "biases of B alone": ("llama", {"target_modules": ["q_proj"], "lora_bias": True}),
    "biases and dora": ("bert", {"target_modules": ["query"], "use_dora": True, "bias": "all"}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "expression": ("llama", {"target_modules": r".*layers\.1\..*(q_proj|up_proj)"}),
    "layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "layers of a list": (
        "bert",
        {"target_modules": ["value"], "layers_to_transform": 0, "layers_pattern": "layer"},
    ),
    "excluded": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0\..*v_proj"},
    ),
    "ranks": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "o_proj"],
            "rank_pattern": {"^model.layers.0.self_attn.q_proj": 5, "v_proj": 2, "^o_proj": 7},
            "alpha_pattern": {r"layers\.\d+\.self_attn\.[vo]_proj": 11, "^q_proj": 90},
            "use_rslora": True,
        },
    ),
    "orthogonal": (
        "llama",
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal", "r": 4},
    ),
    "gaussian": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "mica": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "mica"}),
    "random": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": False}),
    "rows of tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [9, 5]}),
    "rows of tied tokens": (
        "tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": [int(IDS[0, 1]), 3]},
    ),
    "rows of table and head": (
        "llama",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"lm_head": [4, 7, 2], "embed_tokens": [int(IDS[0, 0])]},
        },
    ),
    "t5's head": ("t5", {"target_modules": ["q", "lm_head"]}),
}


@pytest.mark.parametrize("case", HERE)
def test_what_peft_wrote(tmp_path, case):
    family, settings = HERE[case]
    name, expected = written_by_peft(family, tmp_path, **settings)
    holder = loaded(name, tmp_path)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits_of(holder.backbone), expected, atol=1e-5 * max(scale, 1))
    merged, _ = merged_and_compared(holder, tmp_path / "base")
    np.testing.assert_allclose(logits_of(merged), expected, atol=1e-5 * max(scale, 1))


REFUSED = {
    "pissa": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "pissa_niter": ({"init_lora_weights": "pissa_niter_4"}, "weights that peft changed"),
    "olora": ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
    "alora": ({"alora_invocation_tokens": [7, 8]}, "alora_invocation_tokens = .7, 8."),
    "kasa": ({"kasa_config": {}}, "kasa_config = .* is not implemented"),
    "velora": ({"velora_config": {}}, "velora_config"),
    "bdlora": ({"target_parameters": ["x.weight"]}, "target_parameters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_changes_the_result_is_refused(tmp_path, case):
    settings, message = REFUSED[case]
    model, name = made("llama", tmp_path / "base")
    config = peft.LoraConfig(r=3, target_modules=["q_proj"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    config = dataclasses.replace(config, **settings)
    config.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        loaded(name, tmp_path)


def test_pissa_that_peft_converted_loads(tmp_path):
    model, name = made("llama", tmp_path / "base")
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="pissa")
    theirs = peft.get_peft_model(model, config)
    theirs.save_pretrained(tmp_path / "start")
    expected = logits_of(moved(theirs))
    start = {"path_initial_model_for_weight_conversion": tmp_path / "start"}
    theirs.save_pretrained(tmp_path / "adapter", **start)
    found = logits_of(loaded(name, tmp_path).backbone)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("kind", FORMS)
def test_every_field_of_pefts_config_is_known(kind):
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    fields = {field.name for field in dataclasses.fields(config)}
    assert fields <= FORMS[kind].settings.keys()
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name in ("r", "lora_alpha", "lora_dropout", "vera_dropout", "bias", "save_projection"):
        if name in defaults:
            assert FORMS[kind].settings[name].default == defaults[name]


NAMES = [
    *("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.experts.3.up_proj", "q_proj"),
    *("encoder.layer.1.attention.self.query", "lm_head", "model.my_q_proj", "h.1.attn.c_attn"),
    *("decoder.block.0.layer.1.EncDecAttention.q", "layers.1.q_proj", "norm", "xlayers.1.q_proj"),
]
TARGETS = [
    {"target_modules": ["q_proj", "up_proj"]},
    {"target_modules": ["self_attn.q_proj", "q"], "exclude_modules": ["block.0"]},
    {"target_modules": ["q_proj", "up_proj", "q"], "layers_to_transform": [0, 11]},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    {"target_modules": ["up_proj"], "layers_to_transform": [3], "layers_pattern": ["experts", "h"]},
    {"target_modules": ["layers.1.q_proj", "c_attn"], "layers_to_transform": []},
    {"target_modules": ["q_proj", "norm", "lm_head"], "modules_to_save": ["norm", "layers.1"]},
    {"target_modules": r".*(q_proj|query)", "exclude_modules": r"model\..*"},
    {"target_modules": "q_proj"},
]


@pytest.mark.parametrize("settings", TARGETS, ids=str)
def test_layers_are_found_as_in_peft(settings):
    from peft.tuners.tuners_utils import check_target_module_exists

    config = peft.LoraConfig(**settings)
    ours = dict.fromkeys(
        ["exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"]
    )
    for name in NAMES:
        expected = bool(check_target_module_exists(config, name))
        assert is_target(name, ours | settings) == expected, name


PATTERNS = ["q_proj", "^q_proj", r"layers\.\d+.*", "^model.layers.0.self_attn.q_proj", "proj|query"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_read_as_in_peft(pattern):
    from peft.utils.other import get_pattern_key

    for name in NAMES:
        expected = {pattern: 7}.get(get_pattern_key([pattern], name), 8)
        assert of_expression({pattern: 7}, name, 8) == expected, name


def adapted_here(family, folder, targets, **changes):
    """(torch model, our tuned network, its name); adapters at random."""
    model, name = made(family, folder / "base")
    settings = base_config().tuning
    settings.method, settings.targets = "lora", targets
    rebuild, trainable, frozen = tune(Holder(load_model(folder / "base", name)), settings, 0)
    random = np.random.default_rng(0)
    trainable = {
        path: value + 0.2 * random.normal(size=value.shape).astype(np.float32)
        for path, value in trainable.items()
    }
    return model, rebuild(trainable, frozen), name


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_one_table_of_two_stacks_goes_to_peft_and_comes_back(tmp_path, family):
    model, tuned, name = adapted_here(family, tmp_path, r".*\.(shared|q|q_proj)")
    save_adapter(tuned, name, tmp_path / "base", tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    expected = logits_of(tuned.backbone)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits_of(theirs), expected, atol=2e-5 * scale)
    again = loaded(name, tmp_path)
    np.testing.assert_allclose(logits_of(again.backbone), expected, atol=2e-5 * scale)


def test_stacks_whose_tables_are_adapted_apart_are_refused(tmp_path):
    name, _ = written_by_peft("t5", tmp_path, target_modules=["embed_tokens"])
    with pytest.raises(ValueError, match=r"encoder\.embed_tokens and decoder.embed_tokens are one"):
        loaded(name, tmp_path)


def test_a_table_that_transformers_does_not_read_is_refused(tmp_path):
    model, name = made("t5", tmp_path / "base")
    theirs = peft.get_peft_model(model, peft.LoraConfig(target_modules=["shared"]))
    theirs.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="an adapter on shared changes nothing in transformers"):
        loaded(name, tmp_path)


@pytest.mark.parametrize(
    ("kind", "fields", "network", "pooling"),
    [
        ("BertForSequenceClassification", BERT, "pooled", "pooler"),
        ("LlamaForSequenceClassification", LLAMA, "backbone", "last"),
    ],
)
def test_a_classifier_that_peft_tuned(tmp_path, kind, fields, network, pooling):
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    config = model.config_class(**fields, num_labels=3, pad_token_id=0)
    model = model(config).eval()
    (model.bert if pooling == "pooler" else model.model).save_pretrained(tmp_path / "base")
    targets = ["query"] if pooling == "pooler" else ["q_proj"]
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=targets)
    theirs = moved(peft.get_peft_model(model, config))
    theirs.save_pretrained(tmp_path / "adapter")
    mine = TextClassifier(
        load_model(tmp_path / "base", network),
        3,
        pooling=pooling,
        dropout_rate=0.0,
        rngs=nnx.Rngs(0),
    )
    load_adapter(mine, tmp_path / "base", tmp_path / "adapter")
    found = mine({"input_ids": IDS, "attention_mask": np.ones_like(IDS)})
    np.testing.assert_allclose(found, logits_of(theirs), atol=1e-5)
    other = TextClassifier(
        load_model(tmp_path / "base", network), 3, pooling="mean", dropout_rate=0, rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match=r"no place for . tensors of the adapter: (score|classif)"):
        load_adapter(other, tmp_path / "base", tmp_path / "adapter")


def test_heads_that_a_bare_network_lacks_are_left_behind_with_a_word(tmp_path):
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**BERT))
    model.save_pretrained(tmp_path / "base")
    theirs = disturbed(peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["dense"])))
    theirs.save_pretrained(tmp_path / "adapter")
    said = []
    holder = Holder(load_model(tmp_path / "base"))
    load_adapter(holder, tmp_path / "base", tmp_path / "adapter", said.append)
    assert len(said) == 1 and "pooler.dense" in said[0]
    expected = torch_outputs(theirs).detach().numpy()
    np.testing.assert_allclose(outputs_of(holder), expected, atol=1e-5)


def test_an_adapter_for_other_layers_than_its_config_says_is_refused(tmp_path):
    name, _ = written_by_peft("llama", tmp_path, target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"target_modules": ["v_proj"]}))
    with pytest.raises(ValueError, match=r"tensors for model.layers.0.self_attn.q_proj"):
        loaded(name, tmp_path)
    path.write_text(json.dumps(fields | {"target_modules": ["v_proj", "q_proj"]}))
    with pytest.raises(ValueError, match=r"lacks tensors for model.layers.0.self_attn.v_proj"):
        loaded(name, tmp_path)


def test_a_resized_table_of_other_rows_is_refused(tmp_path):
    name, _ = written_by_peft("llama", tmp_path, target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_model.safetensors"
    table = {"base_model.model.model.embed_tokens.weight": np.zeros((101, 24), np.float32)}
    save_file(load_file(path) | table, path)
    with pytest.raises(
        ValueError, match=r"embed_tokens.weight is \[101, 24\], expected \[99, 24\]"
    ):
        loaded(name, tmp_path)


def test_a_resized_table_takes_the_place_of_the_grown_one(tmp_path):
    model, name = made("tied", tmp_path / "base")
    model.resize_token_embeddings(103)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"])
    theirs = moved(peft.get_peft_model(model, config))
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    network = LanguageModel(load_model(tmp_path / "base", name, rows=103))
    load_adapter(network, tmp_path / "base", tmp_path / "adapter")
    np.testing.assert_allclose(logits_of(network.backbone), logits_of(theirs), atol=1e-5)


def test_settings_changed_at_random_mean_the_same_or_are_refused(tmp_path):
    settings = {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 5},
        "alpha_pattern": {"v_proj": 9},
        "exclude_modules": ["layers.1.self_attn.v_proj"],
        "layers_to_transform": [0, 1],
        "layers_pattern": "layers",
    }
    name, _ = written_by_peft("llama", tmp_path, **settings)
    kind = getattr(transformers, NETWORKS["llama"][0])
    path = tmp_path / "adapter/adapter_config.json"
    fields = json.loads(path.read_text())
    same = 0
    for seed in range(80):
        mutated = mutate_json(fields, random.Random(seed))
        path.write_text(json.dumps(mutated))
        changed = {n: v for n, v in mutated.items() if fields.get(n) != v}
        holder, sentence = sentence_or_result(loaded, name, tmp_path)
        if sentence is not None:
            continue
        fresh = kind.from_pretrained(tmp_path / "base").eval()
        try:
            theirs = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        except (TypeError, ValueError, AttributeError):
            # Of another type than peft takes in a field that changes nothing.
            continue
        expected = logits_of(theirs)
        np.testing.assert_allclose(
            logits_of(holder.backbone), expected, atol=1e-4, err_msg=str(changed)
        )
        same += 1
    assert same > 15


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("BertForSequenceClassification", BERT),
        ("RobertaForSequenceClassification", BERT),
        ("LlamaForSequenceClassification", LLAMA),
    ],
)
def test_a_published_head_goes_with_the_adapter(tmp_path, kind, fields):
    torch.manual_seed(0)
    kind = getattr(transformers, kind)
    model = kind(kind.config_class(**fields, num_labels=3, pad_token_id=0)).eval()
    model.save_pretrained(tmp_path / "base")
    name, settings = "sequence_classification", base_config(method="lora").tuning
    network = PublishedClassifier(load_model(tmp_path / "base", name))
    rebuild, trainable, frozen = tune(network, settings, 0)
    random = np.random.default_rng(0)
    trainable = {
        path: value + 0.2 * random.normal(size=value.shape).astype(np.float32)
        for path, value in trainable.items()
    }
    tuned = rebuild(trainable, frozen)
    save_adapter(tuned, name, tmp_path / "base", tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    expected = logits_of(theirs)
    np.testing.assert_allclose(logits_of(tuned.backbone), expected, atol=1e-5)
    again = loaded(name, tmp_path)
    np.testing.assert_allclose(logits_of(again.backbone), expected, atol=1e-5)
