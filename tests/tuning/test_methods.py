"""Every method on every family: what moves, that it learns, and that it comes back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from tiny import FAMILY_NAMES, VISION, make_case

from ftjax.config import base_config
from ftjax.losses.forward import of_outputs
from ftjax.models.heads import TokenOutputs
from ftjax.training.checkpoint import host_copy
from ftjax.training.loop import Clock, CompiledByShape
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.parallel import MeshParallel
from ftjax.training.step import make_train_step, new_state
from ftjax.tuning import METHODS
from ftjax.tuning.adapted import AdaptedEmbed, AdaptedLinear, dequantized, packed, quantize
from ftjax.tuning.tune import merge, tune

# One meets every method here; tests/parity/test_tuning_matrix.py has the others.
FAMILIES_HERE = ("bert",)
STEPS = 3

NO_BIASES = {"gemma", "gemma2", "gemma3_text", "llama", "mistral", "modernbert", "phi3", "qwen3"}
NO_BIASES |= {"t5", "mt5"}


def settings_of(method, **changes):
    config = base_config(method=method)
    small = {"rank": 2, "virtual_tokens": 2}
    read = {name: value for name, value in small.items() if f"tuning.{name}" in config.fields}
    for name, value in (read | changes).items():
        config.tuning[name] = value
    return config.tuning


def refusal(method, family):
    """Why a combination is refused, None if it is not."""
    has_head = hasattr(make_case(family)[0], "classifier")
    if method == "linear_probe" and not has_head:
        return "this network has none"
    if method == "bitfit" and family in NO_BIASES:
        return "no biases"
    if method in ("prompt", "p_tuning") and family in VISION:
        return "needs a text classifier or a language model"
    return None


def values_of(outputs):
    if isinstance(outputs, TokenOutputs):
        outputs = outputs.project(outputs.hidden)
    return np.asarray(outputs, np.float32)


@functools.cache
def trained(method, family, **changes):
    """(start values, state after three steps, losses, rebuild, frozen, batch)."""
    network, batch, loss = make_case(family)
    rebuild, trainable, frozen = tune(network, settings_of(method, **changes), 0)
    config = base_config().optimizer
    config.learning_rate = 1e-2
    schedule = make_schedule(config, STEPS)
    optimizer = make_optimizer(config, schedule, trainable)
    # As a run takes them: placed, through a program that is compiled ahead.
    parallel = MeshParallel(jax.devices()[:1])
    step = make_train_step(rebuild, of_outputs(loss), optimizer, schedule)
    take = CompiledByShape(parallel.map_train(step), Clock())
    state = parallel.place(host_copy(new_state(0, trainable, optimizer)))
    placed, losses = (parallel.place(frozen), parallel.place_batch(batch)), []
    for _ in range(STEPS):
        state, metrics = take(state, *placed)
        losses.append(float(metrics["loss"]))
    return trainable, host_copy(state), losses, rebuild, frozen, batch


def check(method, family):
    if reason := refusal(method, family):
        with pytest.raises(ValueError, match=reason):
            trained(method, family)
        return
    start, state, losses, rebuild, frozen, batch = trained(method, family)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    still = [path for path, value in start.items() if np.array_equal(value, state.trainable[path])]
    # The embedding of position or type ids that never occur, or a pooler that is not used.
    assert len(still) <= 0.2 * len(start), still

    # What was saved fits a network made anew, and computes the same.
    again, _, _ = make_case(family)
    rebuild_again, other_start, other_frozen = tune(again, settings_of(method), 0)
    assert other_start.keys() == start.keys()
    expected = values_of(rebuild(state.trainable, frozen)(batch))
    found = values_of(rebuild_again(state.trainable, other_frozen)(batch))
    np.testing.assert_allclose(found, expected, atol=1e-6)

    network = rebuild(state.trainable, frozen)
    if method in ("houlsby", "pfeiffer", "prefix", "prompt", "p_tuning"):
        with pytest.raises(ValueError, match="cannot be merged"):
            merge(network)
        return
    merged = merge(network)
    kinds = (AdaptedLinear, AdaptedEmbed)
    assert not any(isinstance(module, kinds) for _, module in nnx.iter_modules(merged))
    np.testing.assert_allclose(values_of(merged(batch)), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES_HERE)
@pytest.mark.parametrize("method", METHODS)
def test_three_steps(method, family, record_property):
    record_property("refused", refusal(method, family) or "")
    check(method, family)


def moving(method, family="bert", **changes):
    network, _, _ = make_case(family)
    return set(tune(network, settings_of(method, **changes), 0)[1])


def paths_of(family="bert"):
    network, _, _ = make_case(family)
    return set(tune(network, settings_of("full"), 0)[1])


HEAD = {"classifier.kernel", "classifier.bias"}


def test_masks_choose_what_they_say():
    every = paths_of()
    assert moving("linear_probe") == HEAD
    block = {path for path in every if ".layer.2." in path}
    assert moving("layers", layers="top:1") == HEAD | block
    assert moving("layers", layers="block:2") == HEAD | block
    assert moving("layers", layers="bottom:2") == HEAD | {
        path for path in every if ".layer.0." in path or ".layer.1." in path
    }
    assert moving("layers", layers=r".*\.query\.kernel") == HEAD | {
        path for path in every if path.endswith("query.kernel")
    }
    assert moving("bitfit") == {path for path in every if path.endswith("bias")} | HEAD
    assert moving("norms") == HEAD | {path for path in every if "LayerNorm" in path}
    assert every - moving("frozen_embeddings") == {p for p in every if p.endswith(".embedding")}


def test_low_rank_adapters_sit_on_queries_and_values():
    expected = {
        f"backbone.encoder.layer.{block}.attention.self.{name}.{leaf}"
        for block in range(3)
        for name in ("query", "value")
        for leaf in ("lora_a", "lora_b")
    }
    assert moving("lora") == HEAD | expected
    assert moving("dora") == moving("lora") | {
        path.replace("lora_a", "magnitude") for path in expected
    }


def test_all_layers_in_few_bits_and_an_adapter_on_each():
    network, _, _ = make_case("llama")
    kernels = {path for path in paths_of("llama") if path.endswith("proj.kernel")}
    _, trainable, frozen = tune(network, settings_of("qlora"), 0)
    assert {
        path.replace(".lora_a", ".kernel") for path in trainable if path.endswith("lora_a")
    } == kernels
    assert not kernels & frozen.keys()


@pytest.mark.parametrize("quantization", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("inputs", [1, 2, 25, 128])
def test_kernels_in_few_bits_are_those_of_the_library(inputs, quantization):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(inputs, 7)), jnp.float32)
    array = quantize(kernel, quantization)
    codes = packed(array.qvalue)
    assert codes.nbytes == 7 * (inputs if quantization == "int8" else -(-inputs // 2))
    found = dequantized(codes, array.scale, quantization, inputs, jnp.float32)
    np.testing.assert_array_equal(found, qwix.dequantize(array))


def test_dequantised_kernels_are_not_kept_for_the_backward_pass():
    network, batch, loss = make_case("llama")
    rebuild, trainable, frozen = tune(network, settings_of("qlora"), 0)

    def kept(trainable):
        return jax.vjp(lambda t: loss(rebuild(t, frozen)(batch), batch)[0], trainable)[1]

    leaves = jax.tree.leaves(jax.eval_shape(kept, trainable))
    shapes = {leaf.shape for leaf in leaves if leaf.dtype == np.float32}
    sizes = network.backbone.config
    assert (sizes.hidden_size, sizes.intermediate_size) not in shapes
    assert (sizes.intermediate_size, sizes.hidden_size) not in shapes
    # The table of the tied or untied head is: nothing is dequantised there.
    assert {(sizes.hidden_size, sizes.vocab_size), (sizes.vocab_size, sizes.hidden_size)} & shapes


@pytest.mark.parametrize(
    "method",
    ["lora", "rslora", "lora_plus", "dora", "pissa", "vera", "ia3", "houlsby", "pfeiffer"],
)
def test_nothing_changes_before_the_first_step(method):
    network, batch, _ = make_case("llama")
    expected = values_of(network(batch))
    rebuild, trainable, frozen = tune(network, settings_of(method), 0)
    np.testing.assert_allclose(values_of(rebuild(trainable, frozen)(batch)), expected, atol=1e-5)


def test_factors_stand_where_the_paper_has_them():
    found = {path.partition("layer.0.")[2] for path in moving("ia3") if "layer.0." in path}
    assert found == {
        "attention.self.key.factor",
        "attention.self.value.factor",
        "output.dense.factor",
    }


def test_bottlenecks_stand_after_attention_and_feed_forward():
    def places(method):
        return {
            path.partition("layer.0.")[2].removesuffix(".up")
            for path in moving(method)
            if "layer.0." in path and path.endswith(".up")
        }

    assert places("houlsby") == {"attention.output.dense", "output.dense"}
    assert places("pfeiffer") == {"output.dense"}


def test_vera_shares_its_random_matrices():
    network, _, _ = make_case("llama")
    _, trainable, frozen = tune(network, settings_of("vera", rank=5), 0)
    shared = [value.shape for path, value in frozen.items() if path.endswith("vera_a")]
    assert shared == [(32, 5)]
    sizes = {path.rpartition(".")[2]: value.shape for path, value in trainable.items()}
    assert sizes["vera_d"] == (5,)
    other = tune(make_case("llama")[0], settings_of("vera", rank=5), 1)[2]
    path = next(path for path in frozen if path.endswith("vera_a"))
    assert not np.array_equal(frozen[path], other[path])


def test_pissa_holds_the_largest_singular_directions():
    network, _, _ = make_case("bert")
    path = "backbone.encoder.layer.0.attention.self.query"
    kernel = np.asarray(paths_and_values(network)[f"{path}.kernel"])
    _, trainable, frozen = tune(network, settings_of("pissa"), 0)
    left, values, right = np.linalg.svd(kernel)
    principal = (left[:, :2] * values[:2]) @ right[:2]
    scale = 16.0 / 2
    found = (
        scale * np.asarray(trainable[f"{path}.lora_a"]) @ np.asarray(trainable[f"{path}.lora_b"])
    )
    np.testing.assert_allclose(found, principal, atol=1e-5)
    np.testing.assert_allclose(frozen[f"{path}.kernel"], kernel - principal, atol=1e-5)


def paths_and_values(network):
    return {
        ".".join(map(str, path)): leaf.get_value()
        for path, leaf in nnx.to_flat_state(nnx.state(network, nnx.Param))
    }


def test_patterns_give_layers_ranks_and_alphas_of_their_own():
    network, _, _ = make_case("bert")
    settings = settings_of(
        "lora", rank_pattern=(r".*layer\.0\..*=4",), alpha_pattern=(r".*query=3.5",)
    )
    rebuild, trainable, frozen = tune(network, settings, 0)
    attention = rebuild(trainable, frozen).backbone.encoder.layer[0].attention.self
    assert attention.query.lora_a.shape == (16, 4)
    assert attention.query.how.scale == 3.5 / 4
    assert attention.value.how.scale == 16.0 / 4
    other = rebuild(trainable, frozen).backbone.encoder.layer[1].attention.self
    assert other.value.lora_b.shape == (2, 16)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("lora", {"targets": r".*\.qeury"}, "nearest are: .*query"),
        ("lora", {"targets": "("}, "no regular expression"),
        ("lora", {"rank": 17}, "rank = 17 is above the smaller dimension"),
        ("lora", {"rank_pattern": (r"nothing=4",)}, "rank_pattern: 'nothing=4'"),
        ("lora", {"alpha_pattern": (r".*query",)}, "alpha_pattern"),
        ("layers", {"layers": "top:0"}, "fits no block"),
        ("layers", {"layers": "block:9"}, "layer: 3 blocks"),
        ("layers", {"layers": r".*\.qeury\.kernel"}, "query.kernel"),
        ("layers", {"layers": "["}, "no regular expression"),
    ],
)
def test_bad_settings_are_refused(method, changes, message):
    with pytest.raises(ValueError, match=message):
        moving(method, **changes)


def test_what_lies_below_all_that_moves_is_not_differentiated():
    """Flops of the compiled step: forward of all, backward of the top block only."""

    def flops(method, **changes):
        network, batch, loss = make_case("bert")
        rebuild, trainable, frozen = tune(network, settings_of(method, **changes), 0)
        config = base_config().optimizer
        schedule = make_schedule(config, 1)
        optimizer = make_optimizer(config, schedule, trainable)
        step = jax.jit(make_train_step(rebuild, of_outputs(loss), optimizer, schedule))
        state = new_state(0, trainable, optimizer)
        return step.lower(state, frozen, batch).compile().cost_analysis()["flops"]

    top, bottom, full = (
        flops("layers", layers="top:1"),
        flops("layers", layers="bottom:1"),
        flops("full"),
    )
    assert top < 0.75 * bottom < 0.75 * full


def test_families_are_all_named():
    from ftjax.models import FAMILIES

    assert set(FAMILY_NAMES) | {"clip", "siglip", "xlm-roberta", "camembert"} == set(FAMILIES)
