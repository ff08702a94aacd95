"""Adapters against peft on the same weights: forward, loss, gradients, files in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from ftjax.config import base_config  # noqa: E402
from ftjax.models.generate import generate  # noqa: E402
from ftjax.models.heads import LanguageModel  # noqa: E402
from ftjax.models.rotary import rotate  # noqa: E402
from ftjax.pretrained.adapter import load_adapter, save_adapter  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402
from ftjax.tuning.partition import partition  # noqa: E402
from ftjax.tuning.tune import merge, tune  # noqa: E402

# Of peft about transformers.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)

LEAVES = ("lora_a", "lora_b", "magnitude", "factor", "vera_d", "vera_b")
IDS = np.random.default_rng(0).integers(3, 90, (2, 7))


class Encoder(nnx.Module):
    """A bare encoder as a task holds it."""

    def __init__(self, backbone):
        self.backbone = backbone


def bert(folder):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertModel(config, add_pooling_layer=False)
    model.save_pretrained(folder)
    return model, Encoder(load_model(folder))


def llama(folder):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model, LanguageModel(load_model(folder, "causal_lm"))


def gpt2(folder):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=99, n_embd=24, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return model, LanguageModel(load_model(folder, "causal_lm"))


NETWORKS = {"bert": bert, "llama": llama, "gpt2": gpt2}
QKV = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}
ALL = {
    "bert": ["query", "key", "dense"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
SETTINGS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"layer.0.attention.self.query": 5, "q_proj": 3}},
    "alphas": {"alpha_pattern": {"value": 3, "layers.1.self_attn.v_proj": 7}},
    # `^` is the beginning of the whole name: none of these is that.
    "anchored": {"alpha_pattern": {"^value": 3, "^layers.1.self_attn.v_proj": 50}},
}


def outputs_of(network):
    result = network.backbone(jnp.asarray(IDS))
    return result.last_hidden_state if result.logits is None else result.logits


def torch_outputs(model):
    result = model(torch.tensor(IDS))
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def disturbed(model):
    """All adapter values far from their start."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data += 0.1 * torch.rand_like(parameter)
        elif "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", NETWORKS)
def test_what_peft_wrote_computes_the_same_here(tmp_path, family, settings):
    if family == "gpt2" and settings in ("patterns", "alphas", "anchored"):
        pytest.skip("its names are in the other two")
    model, network = NETWORKS[family](tmp_path / "base")
    targets = ALL[family] if settings == "lora" else QKV[family]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=targets,
        fan_in_fan_out=family == "gpt2",
        **SETTINGS[settings],
    )
    theirs = disturbed(peft.get_peft_model(model, config))
    theirs.save_pretrained(tmp_path / "adapter")
    load_adapter(network, tmp_path / "base", tmp_path / "adapter")

    reference = torch_outputs(theirs)
    weights = np.random.default_rng(1).normal(size=reference.shape).astype(np.float32) / 50
    (reference * torch.tensor(weights)).sum().backward()
    graphdef, adapters, rest = nnx.split(
        network, lambda path, _: path[-1] in ("lora_a", "lora_b", "magnitude"), ...
    )

    def loss(adapters):
        found = outputs_of(nnx.merge(graphdef, adapters, rest))
        return jnp.sum(found * weights), found

    (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapters)
    np.testing.assert_allclose(found, reference.detach().numpy(), atol=1e-5)

    expected = sorted(
        (tuple(reversed(p.grad.shape)), float(p.grad.norm()))
        for n, p in theirs.named_parameters()
        if "lora_" in n
    )
    mine = sorted((g.shape, float(jnp.linalg.norm(g))) for g in jax.tree.leaves(gradients))
    for (shape, norm), (expected_shape, expected_norm) in zip(mine, expected, strict=True):
        assert shape == expected_shape
        assert norm == pytest.approx(expected_norm, rel=1e-4, abs=1e-6)

    merged = merge(network)
    np.testing.assert_allclose(outputs_of(merged), reference.detach().numpy(), atol=1e-5)
    folded = theirs.merge_and_unload()
    np.testing.assert_allclose(
        outputs_of(merged), torch_outputs(folded).detach().numpy(), atol=1e-5
    )


def test_a_table_of_embeddings(tmp_path):
    model, network = bert(tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=2, target_modules=["word_embeddings", "value"])
    theirs = disturbed(peft.get_peft_model(model, config))
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    load_adapter(network, tmp_path / "base", tmp_path / "adapter")
    np.testing.assert_allclose(
        outputs_of(network), torch_outputs(theirs).detach().numpy(), atol=1e-5
    )


@pytest.mark.parametrize("method", ["lora", "rslora", "lora_plus", "dora", "pissa", "ia3", "vera"])
@pytest.mark.parametrize("family", NETWORKS)
def test_peft_loads_what_was_written_here(tmp_path, family, method):
    model, network = NETWORKS[family](tmp_path / "base")
    settings = base_config().tuning
    settings.method = method
    if "rank" in settings:
        settings.rank = 4
    if method not in ("ia3", "vera"):
        settings.rank_pattern = (r".*\.0\..*=2",)
    rebuild, trainable, frozen = tune(network, settings, 0)
    random = np.random.default_rng(2)
    moved = {
        path: value + 0.1 * random.normal(size=value.shape).astype(np.float32)
        for path, value in trainable.items()
        if path.rpartition(".")[2] in LEAVES
    }
    tuned = rebuild(trainable | moved, frozen)
    name = "backbone" if family == "bert" else "causal_lm"
    save_adapter(tuned, name, tmp_path / "base", tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    expected = outputs_of(tuned)
    np.testing.assert_allclose(torch_outputs(theirs).detach().numpy(), expected, atol=2e-5)

    _, again = NETWORKS[family](tmp_path / "base")
    load_adapter(again, tmp_path / "base", tmp_path / "adapter")
    np.testing.assert_allclose(outputs_of(again), expected, atol=2e-5)


def test_pissa_begins_as_pefts(tmp_path):
    """Singular vectors are unique up to their sign, so the products are compared."""
    model, network = bert(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["query"], init_lora_weights="pissa")
    theirs = peft.get_peft_model(model, config).state_dict()
    settings = base_config().tuning
    settings.method, settings.rank, settings.alpha = "pissa", 4, 4.0
    settings.targets = r".*\.query"
    _, trainable, frozen = tune(network, settings, 0)
    path = "encoder.layer.1.attention.self.query"
    name = f"base_model.model.{path}"
    product = theirs[f"{name}.lora_B.default.weight"] @ theirs[f"{name}.lora_A.default.weight"]
    ours = trainable[f"backbone.{path}.lora_a"] @ trainable[f"backbone.{path}.lora_b"]
    np.testing.assert_allclose(ours.T, product.numpy(), atol=1e-5)
    rest = theirs[f"{name}.base_layer.weight"].numpy()
    np.testing.assert_allclose(frozen[f"backbone.{path}.kernel"].T, rest, atol=1e-5)


def test_another_base_is_refused(tmp_path):
    _, network = bert(tmp_path / "base")
    settings = base_config().tuning
    settings.method = "lora"
    rebuild, trainable, frozen = tune(network, settings, 0)
    save_adapter(rebuild(trainable, frozen), "backbone", tmp_path / "base", tmp_path / "adapter")
    torch.manual_seed(5)
    other = transformers.BertModel(transformers.BertConfig.from_pretrained(tmp_path / "base"))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="made for other weights"):
        load_adapter(
            Encoder(load_model(tmp_path / "other")), tmp_path / "other", tmp_path / "adapter"
        )


def with_values(network, method, values, **changes):
    """Our network under a method, its new parameters replaced by what `values(path)` gives."""
    settings = base_config().tuning
    settings.method = method
    for name, value in changes.items():
        settings[name] = value
    rebuild, trainable, frozen = tune(network, settings, 0)
    replaced = [
        {
            path: old if (new := values(path)) is None else jnp.asarray(new)
            for path, old in part.items()
        }
        for part in (trainable, frozen)
    ]
    assert all(new.shape == frozen[path].shape for path, new in replaced[1].items())
    return rebuild, *replaced


def assert_same(rebuild, trainable, frozen, theirs, torch_names):
    """Outputs, and gradients of a loss for every trained parameter, and the merged network."""
    reference = torch_outputs(theirs)
    weights = np.random.default_rng(1).normal(size=reference.shape).astype(np.float32) / 50
    (reference * torch.tensor(weights)).sum().backward()

    def loss(trainable):
        found = outputs_of(rebuild(trainable, frozen))
        return jnp.sum(found * weights), found

    (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    np.testing.assert_allclose(found, reference.detach().numpy(), atol=1e-5)
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(expected) == len(gradients)
    for path, gradient in gradients.items():
        reference_gradient = expected[torch_names(path)].numpy().reshape(gradient.shape)
        scale = np.abs(reference_gradient).max()
        np.testing.assert_allclose(gradient, reference_gradient, atol=1e-4 * scale, err_msg=path)
    merged = merge(rebuild(trainable, frozen))
    np.testing.assert_allclose(outputs_of(merged), reference.detach().numpy(), atol=1e-5)


def test_ia3(tmp_path):
    model, network = llama(tmp_path / "base")
    config = peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    theirs = peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    values = dict(theirs.named_parameters())
    for name, parameter in values.items():
        if "ia3_l" in name:
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)

    def torch_name(path):
        module = path.removeprefix("backbone.backbone.").removesuffix(".factor")
        return f"base_model.model.model.{module}.ia3_l.default"

    def value(path):
        if path.endswith(".factor"):
            return values[torch_name(path)].detach().numpy().reshape(-1)
        return None

    assert_same(*with_values(network, "ia3", value), theirs, torch_name)


def test_vera(tmp_path):
    model, network = llama(tmp_path / "base")
    config = peft.VeraConfig(r=5, target_modules=["q_proj", "v_proj"], projection_prng_key=3)
    theirs = peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    values = dict(theirs.named_parameters())
    for name, parameter in values.items():
        if "vera_lambda" in name:
            parameter.data = torch.randn_like(parameter)
    shared = {
        "vera_a": theirs.base_model.vera_A["default"].numpy().T,
        "vera_b_shared": theirs.base_model.vera_B["default"].numpy().T,
    }

    def torch_name(path):
        module, _, leaf = path.removeprefix("backbone.backbone.").rpartition(".")
        return f"base_model.model.model.{module}.{leaf.replace('vera_', 'vera_lambda_')}.default"

    def value(path):
        leaf = path.rpartition(".")[2]
        if leaf in ("vera_d", "vera_b"):
            return values[torch_name(path)].detach().numpy()
        return shared.get(leaf)

    assert_same(*with_values(network, "vera", value, rank=5), theirs, torch_name)


def logits_behind(theirs):
    """peft's logits of the real tokens, and the weights of a loss on them, differentiated."""
    reference = theirs(torch.tensor(IDS)).logits[:, -IDS.shape[1] :]
    weights = np.random.default_rng(1).normal(size=reference.shape).astype(np.float32) / 50
    (reference * torch.tensor(weights)).sum().backward()
    return reference.detach().numpy(), weights


def our_logits(rebuild, trainable, frozen):
    batch = {
        "input_ids": IDS,
        "segment_ids": np.ones_like(IDS),
        "position_ids": np.tile(np.arange(IDS.shape[1]), (len(IDS), 1)),
    }
    outputs = rebuild(trainable, frozen)(batch)
    return outputs.project(outputs.hidden)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["prompt", "p_tuning"])
def test_prompts(tmp_path, family, method):
    model, network = NETWORKS[family](tmp_path / "base")
    kind = peft.PromptTuningConfig if method == "prompt" else peft.PromptEncoderConfig
    hidden = {} if method == "prompt" else {"encoder_hidden_size": 11}
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=3, **hidden)
    theirs = peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    moving = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    for parameter in moving.values():
        parameter.data = 0.3 * torch.randn_like(parameter)
    reference, weights = logits_behind(theirs)

    def torch_name(path):
        leaf = path.removeprefix("backbone.prompt.")
        if leaf == "virtual":
            return "prompt_encoder.default.embedding.weight"
        _, index, name = leaf.split(".")
        name = "weight" if name == "kernel" else name
        return f"prompt_encoder.default.mlp_head.{2 * int(index)}.{name}"

    def turned(path, value):
        return value.T if path.endswith("kernel") else value

    def value(path):
        if path.startswith("backbone.prompt."):
            return turned(path, moving[torch_name(path)].detach().numpy())
        return None

    sizes = {"virtual_tokens": 3} | ({"prompt_hidden_size": 11} if method == "p_tuning" else {})
    rebuild, trainable, frozen = with_values(network, method, value, **sizes)

    def loss(trainable):
        found = our_logits(rebuild, trainable, frozen)
        return jnp.sum(found * weights), found

    (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    np.testing.assert_allclose(found, reference, atol=1e-5)
    assert len(gradients) == len(moving)
    for path, gradient in gradients.items():
        expected = turned(path, moving[torch_name(path)].grad.numpy())
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * scale, err_msg=path)


@pytest.mark.parametrize("method", ["prompt", "p_tuning"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompts_go_to_peft_and_come_back(tmp_path, family, method):
    model, network = NETWORKS[family](tmp_path / "base")
    tuned = with_values(network, method, lambda path: None, virtual_tokens=3)
    expected = our_logits(*tuned)
    rebuild, trainable, frozen = tuned
    save_adapter(rebuild(trainable, frozen), "causal_lm", tmp_path / "base", tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        reference = theirs(torch.tensor(IDS)).logits[:, 3:].numpy()
    np.testing.assert_allclose(reference, expected, atol=1e-5)
    _, again = NETWORKS[family](tmp_path / "base")
    load_adapter(again, tmp_path / "base", tmp_path / "adapter")
    np.testing.assert_allclose(our_logits(*partition(again, lambda _: True)), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PromptEncoderConfig])
def test_prompts_that_peft_wrote(tmp_path, kind):
    model, network = llama(tmp_path / "base")
    torch.manual_seed(1)
    theirs = peft.get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        reference = theirs(torch.tensor(IDS)).logits[:, 3:].numpy()
    load_adapter(network, tmp_path / "base", tmp_path / "adapter")
    found = our_logits(*partition(network, lambda _: True))
    np.testing.assert_allclose(found, reference, atol=1e-5)
    batch = generate(network.backbone, IDS.tolist(), max_new_tokens=4)
    assert batch == [list(map(int, row)) for row in greedy(theirs, 4)]


def greedy(theirs, count):
    """peft's next tokens, without a cache."""
    ids = torch.tensor(IDS)
    with torch.no_grad():
        for _ in range(count):
            last = theirs(ids).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, last[:, None]], dim=1)
    return ids[:, IDS.shape[1] :]


def test_a_prompt_of_another_width_is_refused(tmp_path):
    model, network = llama(tmp_path / "base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    tensors = {"prompt_embeddings": np.zeros((3, 5), np.float32)}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"prompt_embeddings is \[3, 5\], expected \[3, 24\]"):
        load_adapter(network, tmp_path / "base", tmp_path / "adapter")


def test_prefixes_are_pefts_but_for_the_rotation_of_their_keys(tmp_path):
    """peft shifts the positions of real tokens by the prefix's length, we do not."""
    model, network = llama(tmp_path / "base")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    theirs = peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    (parameter,) = [p for p in theirs.parameters() if p.requires_grad]
    parameter.data = 0.5 * torch.randn_like(parameter)
    with torch.no_grad():
        reference = theirs(torch.tensor(IDS)).logits.numpy()
    # [tokens, layers, key and value, kv heads, head_dim]
    values = parameter.detach().numpy().reshape(3, 2, 2, 2, 6)
    rotary = network.backbone.config.rope_parameters
    back = rotary.tables(6, -3 * jnp.ones((1, 3), jnp.int32))

    def value(path):
        if ".prefix." not in path:
            return None
        layer, is_value = int(path.split(".layers.")[1][0]), path.endswith("value")
        chosen = values[:, layer, int(is_value)]
        return chosen if is_value else rotate(jnp.asarray(chosen)[None], back)[0]

    found = our_logits(*with_values(network, "prefix", value, virtual_tokens=3))
    np.testing.assert_allclose(found, reference, atol=1e-5)
