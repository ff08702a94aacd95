"""Adapters as peft writes and reads them: adapter_config.json, adapter_model.safetensors.

What the files of each kind of adapter hold is written beside the method (`Method.adapter_form`).
Beside peft's two files stands ftjax_adapter.json with the SHA-256 of the weights that the adapter
belongs to.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from ftjax.files import new_folder, read_json, require_new, write_json_atomically
from ftjax.locate import sha256_of_folder
from ftjax.models import family_of
from ftjax.models.heads import PUBLISHED_HEAD, TextClassifier
from ftjax.models.layers import Network
from ftjax.pretrained.adapter_file import (
    CONFIG,
    FORMS,
    WEIGHTS,
    read_adapter_config,
    read_adapter_tensors,
    some,
)
from ftjax.pretrained.adapter_names import PublishedNames, part, replace_weights, with_trained_rows
from ftjax.pretrained.checkpoint import read_config
from ftjax.pretrained.compare import Outputs, outputs_on_example, refuse_difference
from ftjax.pretrained.load import dotted, load_model
from ftjax.pretrained.new_head import HeadedCheckpoint
from ftjax.tuning.adapted import AdaptedLinear, QuantizedLinear
from ftjax.tuning.adapter_form import PREFIX, AdapterForm, Tensors, adapters_of, require_shape
from ftjax.tuning.peft_settings import is_target
from ftjax.tuning.targets import modules_of, replace_module

OURS = "ftjax_adapter.json"
MODEL = f"{PREFIX}model."
TASK_TYPES = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}


def save_adapter(
    network: Network,
    name: str,
    base: str | Path,
    folder: str | Path,
    *,
    accept_fields: tuple[str, ...] = (),
) -> None:
    """Writes a network's adapters, and a published head that was tuned; whole or not at all.

    PiSSA's are written as what they add to the published weights, which is of twice the rank, and
    p-tuning's as the prompt that its network makes. What was written is put on the published
    network again, which must then compute the same.

    Args:
        network: a task's, with adapters in its `backbone`.
        name: which of the family's networks the backbone is ("backbone", "causal_lm", ...).
        base: the checkpoint folder it came from.
        folder: to be made.
        accept_fields: unknown fields of the base's config.json to ignore.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: the network has no adapters, or some that peft has no format for; or on the
            published network the adapter is not the same (it is then not kept).
    """
    base, folder = Path(base), Path(folder)
    require_new(folder)
    config, tensors = _described(network, base)
    config |= {
        "task_type": TASK_TYPES.get(name, "FEATURE_EXTRACTION"),
        "base_model_name_or_path": base.name,
        "inference_mode": True,
    }
    with new_folder(folder, "The adapter") as new:
        arrays = {n: np.ascontiguousarray(t, dtype=np.float32) for n, t in tensors.items()}
        save_file(arrays, new / WEIGHTS)
        write_json_atomically(new / CONFIG, config)
        write_json_atomically(new / OURS, {"base_sha256": sha256_of_folder(base)})
        _refuse_another_network(network, name, base, new, accept_fields)


def load_adapter(
    network: Network,
    base: str | Path,
    folder: str | Path,
    say: Callable[[str], None] | None = None,
) -> None:
    """Puts adapters, of ours or of peft's, on a published network.

    Weights of the base that the file holds (biases, resized tables, `modules_to_save`) take the
    place of the published ones, a classifier also that of the task's own head.

    Args:
        network: with the published network in `backbone`; changed in place.
        base: the checkpoint folder it came from.
        folder: what `save_adapter` or peft wrote.
        say: told what of the folder was passed over.

    Raises:
        FileNotFoundError: no adapter in the folder.
        ValueError: made for other weights; damaged; of a kind or with settings that are not
            implemented; or with tensors that do not fit. The network is then of no use.
    """
    base, folder = Path(base), Path(folder)
    form, settings = read_adapter_config(folder, say)
    _refuse_another_base(base, folder)
    tensors = read_adapter_tensors(folder)
    family = family_of(read_config(base)["model_type"])
    prefixed = any(name.startswith(MODEL + family.prefix) for name in tensors)
    names = PublishedNames(network, family, with_prefix=prefixed and bool(family.prefix))
    shared, adapters, weights = _sorted_out(tensors, form)
    try:
        weights = with_trained_rows(names, weights, settings.get("trainable_token_indices") or ())
        left = replace_weights(network, names, weights, settings.get("modules_to_save") or ())
        left = _without_head(network, left, weights)
        names = PublishedNames(network, family, with_prefix=names.with_prefix)
        _refuse_wrong_targets(names, form, settings, adapters)
        if (head := names.tied_head()) and head.removesuffix(".weight") in adapters:
            names = part(network, names)
        adapters, beyond = _on_modules(names, adapters)
        _refuse_unknown(network, names, left + beyond, say)
        form.put(network, names.modules, adapters, shared, settings)
    except ValueError as error:
        raise ValueError(f"{folder}: {str(error).removesuffix('.')}.") from error


def _sorted_out(
    tensors: Tensors, form: AdapterForm
) -> tuple[Tensors, dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """(tensors of no layer, layer -> its tensors, weights of the base by their names)."""
    shared = {name: tensors[name] for name in tensors if name in form.shared}
    leaves = "|".join(re.escape(leaf) for leaf in sorted(form.leaves, key=len, reverse=True))
    adapters: dict[str, dict[str, np.ndarray]] = {}
    others = {}
    for name in tensors.keys() - shared.keys():
        match = re.fullmatch(rf"{re.escape(MODEL)}(.+)\.({leaves})(\.weight)?", name)
        if match and leaves:
            adapters.setdefault(match[1], {})[match[2]] = tensors[name]
        else:
            others[name] = tensors[name]
    weights = {}
    for name in sorted(others):
        module, _, leaf = name.removeprefix(MODEL).rpartition(".")
        inside = module.removesuffix(".base_layer")
        # peft wraps what it adapts, and only that.
        fits = name.startswith(MODEL) and (inside in adapters) == (inside != module)
        weights[f"{inside}.{leaf}" if fits else name] = others[name]
    return shared, dict(sorted(adapters.items())), weights


def _without_head(network: Network, names: list[str], weights: Tensors) -> list[str]:
    """Fills the task's own classifier where the adapter has one; gives the other names.

    A linear layer on the published pooler is BERT's `classifier`, one on the last token a
    decoder's `score`, which has no bias.
    """
    if not isinstance(network, TextClassifier):
        return names
    place = {"pooler": "classifier", "last": "score"}.get(network.pooling)
    mine = [name for name in (f"{place}.weight", f"{place}.bias") if name in names]
    if f"{place}.weight" not in mine:
        return names
    head: Network = network.classifier
    inputs, outputs = head.kernel.shape
    bias = weights.get(f"{place}.bias", np.zeros(outputs, np.float32))
    require_shape(f"{place}.weight", weights[f"{place}.weight"], outputs, inputs)
    require_shape(f"{place}.bias", bias, outputs)
    head.kernel.set_value(jnp.asarray(weights[f"{place}.weight"].T))
    head.bias.set_value(jnp.asarray(bias))
    return [name for name in names if name not in mine]


def _refuse_wrong_targets(
    names: PublishedNames,
    form: AdapterForm,
    settings: Mapping[str, Any],
    adapters: Mapping[str, Tensors],
) -> None:
    """Refuses an adapter whose config and tensors are for other layers.

    peft only has places for what the config names; other tensors it would leave out.
    """
    if "target_modules" not in settings:
        return
    tied = set()
    if settings.get("ensure_weight_tying"):
        pairs = [pair for pair in names.family.tied.items() if pair[1] in names.parameters]
        tied = {name.removesuffix(".weight") for pair in pairs for name in pair}
    surplus = [name for name in adapters if not is_target(name, settings) and name not in tied]
    if surplus:
        raise ValueError(
            f"{WEIGHTS} has tensors for {some(surplus)}, which target_modules and its like in "
            f"{CONFIG} do not name; peft would leave them out"
        )
    modules = modules_of(names.network, form.adaptable)
    missing = [
        name
        for name, path in names.modules.items()
        if path in modules
        and is_target(name, settings, isinstance(modules[path], nnx.Embed))
        and name not in adapters
    ]
    if missing:
        raise ValueError(f"{WEIGHTS} lacks tensors for {some(missing)}, which {CONFIG} names")


def _on_modules(
    names: PublishedNames, adapters: Mapping[str, dict[str, np.ndarray]]
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """(adapters by layers of this network, names of layers that it lacks)."""
    found, beyond = dict(adapters), []
    for table in names.modules:
        copies = names.copies_of(table)
        if copies and table in found:
            raise ValueError(
                f"an adapter on {table} changes nothing in transformers, which reads "
                f"{' and '.join(copies)} instead; adapt these"
            )
        parts = [found.pop(copy) for copy in copies if copy in found]
        if not parts:
            continue
        first = parts[0]
        same = all(
            one.keys() == first.keys() and np.array_equal(one[leaf], first[leaf])
            for one in parts
            for leaf in first
        )
        if len(parts) < len(copies) or not same:
            raise ValueError(
                f"{' and '.join(copies)} are one table in this network; both must be adapted, and "
                "alike"
            )
        found[table] = first
    for name in list(found):
        if name not in names.modules:
            beyond += [f"{name}.{leaf}" for leaf in found.pop(name)]
    return found, beyond


def _refuse_unknown(
    network: Network,
    names: PublishedNames,
    left: list[str],
    say: Callable[[str], None] | None,
) -> None:
    """Refuses tensors without a place; those of a head that a bare network lacks stay behind."""
    family = names.family

    def of_head(name: str) -> bool:
        module = name.removeprefix(family.prefix) if names.with_prefix else name
        return any(re.match(pattern, module) for pattern in family.heads)

    bare = not hasattr(network.backbone, "backbone") and not isinstance(network, TextClassifier)
    unknown = [name for name in left if not (bare and of_head(name))]
    if unknown:
        raise ValueError(
            f"the network has no place for {len(unknown)} tensors of the adapter: {some(unknown)}"
        )
    if left and say is not None:
        say(f"Of the adapter, a head that is not used was left behind: {some(left)}.")


def _described(network: Network, base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What adapter_config.json says of a network's adapters, and their tensors by name."""
    form = next((form for form in FORMS.values() if form.found_in(network)), None)
    if form is None:
        layers = adapters_of(network)
        has = type(next(iter(layers.values()))).__name__ if layers else "no adapters"
        raise ValueError(
            f"This network has {has}; what is written in peft's format are adapters of the kinds "
            f"{', '.join(FORMS)}. Export it merged (without --adapter), or use the run itself; "
            "where it was exported merged just now, load it again first."
        )
    fields = read_config(base)
    names = PublishedNames(network, family_of(fields["model_type"]))
    layers = {}
    for path, layer in form.found_in(network).items():
        name = names.of(path)
        # transformers reads the tables of the stacks, which only begin as copies of one.
        layers |= dict.fromkeys(names.copies_of(name) or [name], layer)
    tensors = form.shared_of(list(layers.values()))
    for name, layer in layers.items():
        tensors |= {f"{MODEL}{name}.{leaf}": t for leaf, t in form.tensors_of(layer).items()}
    config = {"peft_type": form.peft_types[0], **form.fields_of(layers)}
    heads = _tuned_heads(network, names)
    if "target_modules" in form.settings:
        saved = sorted({name.rpartition(".")[2] for name in heads})
        config |= {"target_modules": sorted(layers), "modules_to_save": saved or None}
        config["fan_in_fan_out"] = fields["model_type"] == "gpt2"
    elif heads:
        raise ValueError(
            f"{', '.join(heads)} was tuned together with virtual tokens, which peft's format does "
            "not hold in one form; use the run itself (scripts/predict.py --run)."
        )
    for inside in heads.values():
        tensors |= {f"{MODEL}{name}": tensor for name, tensor in inside.items()}
    return config, tensors


def _tuned_heads(network: Network, names: PublishedNames) -> dict[str, dict[str, np.ndarray]]:
    """Module -> tensors of a published head, which is trained beside any adapter."""
    leaves = {dotted(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(network.backbone))}
    heads: dict[str, dict[str, np.ndarray]] = {}
    for name, path in names.parameters.items():
        if match := PUBLISHED_HEAD.match(f"backbone.{path}"):
            # The module that the expression names, by its published name.
            deeper = path.removeprefix(match[0].removeprefix("backbone.")).count(".") + 1
            module = name.rsplit(".", deeper)[0]
            tensor = names.family.to_published(path, np.asarray(leaves[path][...]))
            heads.setdefault(module, {})[name] = tensor
    return heads


def _refuse_another_network(
    network: Network, name: str, base: Path, folder: Path, accept_fields: tuple[str, ...]
) -> None:
    """Loads what was written, and compares all outputs on real tokens."""
    compute = network.backbone.compute
    checkpoint: Path | HeadedCheckpoint = base
    if _tuned_heads(network, PublishedNames(network, family_of(read_config(base)["model_type"]))):
        classes = [str(index) for index in range(network.backbone.config.num_labels)]
        key = jax.random.key(0)
        checkpoint = HeadedCheckpoint(base, name, classes, key, accept_fields=accept_fields)
    plain: Network = load_model(checkpoint, name, compute, accept_fields=accept_fields)
    rows, published = (getattr(n.config, "vocab_size", None) for n in (network.backbone, plain))
    if rows != published:
        raise ValueError(
            f"The network has {rows} tokens, the published one {published}: an adapter cannot hold "
            "the new rows. Export it merged (without --adapter)."
        )
    again = _Holder(plain)
    load_adapter(again, base, folder)
    _quantize_as(again, network)
    expected, found = _computed(network, base), _computed(again, base)
    what = "With the adapter put on the published network"
    refuse_difference(expected, found, compute.dtype, what)


class _Holder(nnx.Module):
    """A backbone as a task holds it."""

    def __init__(self, backbone: Network):
        self.backbone = backbone


def _computed(network: Network, base: Path) -> Outputs:
    outputs = dict(outputs_on_example(network.backbone, base))
    if (prompt := getattr(network.backbone, "prompt", None)) is not None:
        outputs["prompt"] = np.asarray(prompt(), np.float32)
    return outputs


def _quantize_as(network: Network, other: Network) -> None:
    """Keeps a network's kernels in as few bits as another does."""
    modules = modules_of(network, (nnx.Linear, AdaptedLinear))
    for path, layer in modules_of(other, AdaptedLinear).items():
        if layer.quantization is None:
            continue
        if isinstance(modules[path], AdaptedLinear):
            modules[path].quantize(layer.quantization)
        else:
            replace_module(network, path, QuantizedLinear(modules[path], layer.quantization))


def _refuse_another_base(base: Path, folder: Path) -> None:
    if not (folder / OURS).is_file():
        return
    notes = read_json(folder / OURS)
    expected = notes.get("base_sha256") if isinstance(notes, dict) else None
    if not isinstance(expected, str):
        raise ValueError(f"{folder / OURS} holds no base_sha256; it is damaged.")
    if expected != (found := sha256_of_folder(base)):
        raise ValueError(
            f"The adapter in {folder} was made for other weights (SHA-256 {expected[:12]}...) than "
            f"those in {base} ({found[:12]}...). Use the base that it was trained on."
        )
