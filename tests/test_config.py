import re

import pytest

from ftjax.config import (
    FIELDS,
    base_config,
    config_of,
    flatten,
    main,
    override,
    validate,
)
from ftjax.experiment import load_experiment
from ftjax.fields import Field, all_fields
from ftjax.objectives import OBJECTIVES
from ftjax.tuning import METHODS

EVERY_CHOICE = [(o, m) for o in OBJECTIVES for m in METHODS]


def ready(objective="classification", method="full"):
    """With a value in every field that must have one."""
    config = base_config(objective, method)
    for name, field in config.fields.items():
        if field.required:
            config.set(name, ("x",) if field.kind is tuple else name.rpartition(".")[2])
    return config


@pytest.fixture
def config():
    return ready()


@pytest.mark.parametrize(("objective", "method"), EVERY_CHOICE)
def test_defaults_of_every_choice_are_valid_and_have_a_meaning(objective, method):
    config = ready(objective, method)
    validate(config)
    for name, field in config.fields.items():
        assert field.meaning.endswith("."), name
        assert field.required or field.problem(field.default) is None, name
    assert flatten(config_of(flatten(config))) == flatten(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", -1.0),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.learning_rate", "fast"),
        ("optimizer.beta1", 1.0),
        ("data.batch_size", 0),
        ("data.batch_size", 8.0),
        ("data.batch_size", True),
        ("model.pooling", "men"),
        ("seed", -1),
        ("training.max_steps", 0),
        ("data.buckets", (1, 64)),
        ("data.buckets", (32, 64.0)),
        ("evaluation.metric", "perplexity"),
        ("retention.enabled", 1.5),
    ],
)
def test_a_value_that_does_not_fit_is_refused_on_the_line_that_sets_it(config, field, value):
    *sections, last = field.split(".")
    section = config
    for name in sections:
        section = section[name]
    with pytest.raises(ValueError, match=f"config.{field} is .*allowed: "):
        setattr(section, last, value)


def test_the_nearest_choice_is_named(config):
    with pytest.raises(ValueError, match="did you mean mean"):
        config.model.pooling = "men"


def test_all_that_must_be_set_is_named_at_once():
    with pytest.raises(ValueError, match=r"config\.model\.reference must be set") as error:
        validate(base_config())
    assert "config.name must be set" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.accumulation_steps": 5}, "does not divide"),
        ({"data.buckets": (64, 32)}, "rising"),
        ({"data.buckets": ()}, "rising"),
        ({"data.test_split": "train"}, "three different"),
        ({"training.mesh.data": 0}, "mesh.data"),
    ],
)
def test_combinations_that_cannot_be(config, overrides, message):
    with pytest.raises(ValueError, match=message):
        validate(override(config, overrides))


def test_a_choice_brings_its_fields_and_takes_those_of_others(config):
    assert "rank" not in config.tuning
    config.tuning.method = "lora"
    config.tuning.rank = 4
    assert config.tuning.alpha == 16.0
    with pytest.raises(ValueError, match=r"embedding_rows is read only with tuning\.method = 'ful"):
        config.tuning.embedding_rows = "all"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tuning.rank": 4}, "read only with tuning.method = 'lora'.*here tuning.method is 'full'"),
        ({"training.parallel": "pmap", "training.mesh.data": 4}, "training.parallel = 'mesh'"),
        (
            {"optimizer.schedule": "constant", "optimizer.final_fraction": 0.1},
            "schedule = 'linear'",
        ),
        ({"retention.enabled": False, "retention.limit": 9}, "retention.enabled = True"),
        ({"tuning.method": "linear_probe", "model.dropout": 0.2}, "not read with tuning.method"),
        ({"tuning.method": "linear_probe", "optimizer.layer_decay": 0.5}, "not read with"),
        ({"objective.name": "causal_lm", "data.buckets": (8, 16)}, "name = 'classification'"),
        ({"averaging.decay": 0.5}, "averaging.method = 'ema'"),
        ({"tuning.method": "houlsby", "averaging.wise_ft_alphas": (0.5,)}, "not read with"),
        ({"penalties.limit": 3}, "penalties.ewc = other than 0.0 or penalties.replay"),
    ],
)
def test_what_nobody_reads_is_refused_with_who_does(config, overrides, message):
    with pytest.raises(ValueError, match=message):
        override(config, overrides)


def test_what_a_choice_would_drop_is_refused_unless_it_switches_off(config):
    tuned = override(config, {"tuning.method": "lora", "tuning.rank": 4})
    with pytest.raises(ValueError, match=r"does not read config\.tuning\.rank, which is set to 4"):
        override(tuned, {"tuning.method": "full"})
    measured = override(config, {"retention.limit": 9})
    assert "limit" not in override(measured, {"retention.enabled": False}).retention


def test_a_default_follows_the_choice(config):
    other = override(config, {"objective.name": "causal_lm"})
    assert (config.evaluation.metric, other.evaluation.metric) == ("macro_f1", "perplexity")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("optimizer.learning_rte", "did you mean optimizer.learning_rate?"),
        ("optimizer.lr", "did you mean optimizer.learning_rate?"),
        ("lr", "did you mean optimizer.learning_rate?"),
        ("training.lr", "did you mean optimizer.learning_rate?"),
        ("epochs", "did you mean training.epochs?"),
        ("data.bs", "did you mean data.batch_size?"),
        ("tuning.rnk", "did you mean tuning.rank?"),
        ("nothing.like.it", "There is no field config.nothing.like.it"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_nearest(config, name, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        override(config, {name: 1e-3})


def test_override_changes_a_copy_in_whatever_order(config):
    changed = override(
        config, {"averaging.decay": 0.5, "averaging.method": "ema", "training.max_steps": 7}
    )
    assert (changed.averaging.decay, changed.training.max_steps) == (0.5, 7)
    assert config.training.max_steps is None
    assert "decay" not in config.averaging


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("training.max_steps", "None", None),
        ("training.max_steps", "7", 7),
        ("training.epochs", "2", 2.0),
        ("training.epochs", "0.5", 0.5),
        ("data.buckets", "(8,16)", (8, 16)),
        ("data.buckets", "[8, 16]", (8, 16)),
        ("data.buckets", "64", (64,)),
        ("data.second_text_field", "None", None),
        ("data.second_text_field", "", None),
        ("data.text_field", "7", "7"),
        ("evaluation.baselines", "false", False),
        ("retention.enabled", "False", False),
        ("optimizer.max_gradient_norm", "None", None),
    ],
)
def test_what_a_command_line_says(config, name, text, value):
    found = flatten(override(config, {name: text}, parse=True))[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.buckets", "(64.0,)", r"buckets is \(64.0,\); allowed: a tuple of whole numbers"),
        ("data.batch_size", "many", "batch_size is 'many'"),
        ("data.batch_size", "None", "has no value"),
    ],
)
def test_a_text_that_stands_for_no_value(config, name, text, message):
    with pytest.raises(ValueError, match=message):
        override(config, {name: text}, parse=True)


def test_what_is_printed_of_an_objective_and_a_method(capsys):
    main(["sft", "lora"])
    printed = capsys.readouterr().out
    for line in (
        "objective.name = 'sft'",
        "tuning.method = 'lora'",
        "optimizer.schedule = 'linear'",
    ):
        assert f"{line}\n" in printed
    assert "evaluation.baselines" not in printed


def test_readers_of_all_fields_are_known():
    readers = all_fields(FIELDS)
    assert ("tuning.method", "'lora'") in readers["tuning.rank"]
    assert readers["seed"] == []


def test_a_text_field_may_be_none_in_words():
    assert Field(None, "A text.", optional=str).parse("None of these") == "None of these"


def write(tmp_path, text):
    path = tmp_path / "experiment.py"
    path.write_text("from ftjax.config import base_config\n" + text)
    return path


def test_an_experiment_file_with_ablations_and_claims(tmp_path):
    path = write(
        tmp_path,
        "def get_config(rate='1e-3'):\n"
        "    config = base_config()\n"
        "    config.optimizer.learning_rate = float(rate)\n"
        "    return config\n"
        "def get_ablations():\n"
        "    return {'slow': {'optimizer.learning_rate': 1e-5}}\n"
        "def get_claims():\n"
        "    return ['slow is worse']\n",
    )
    experiment = load_experiment(path, "2e-3")
    assert experiment.config.optimizer.learning_rate == 2e-3
    slow = experiment.variant("slow")
    assert (slow.variant, slow.optimizer.learning_rate) == ("slow", 1e-5)
    assert experiment.claims == ["slow is worse"]
    with pytest.raises(ValueError, match="no variant 'slo'; did you mean slow"):
        experiment.variant("slo")
    with pytest.raises(ValueError, match=r"no variant 'x'\. It has: base, slow\."):
        experiment.variant("x")
    assert experiment.variant("base") is experiment.config


def test_an_experiment_file_that_is_none(tmp_path):
    path = write(tmp_path, "def get_config(): pass\n")
    with pytest.raises(FileNotFoundError, match=rf"did you mean {path}\?"):
        load_experiment(path.with_name(path.name.replace(".py", "s.py")))
    other = path.rename(path.with_suffix(".txt"))
    with pytest.raises(ValueError, match="is no Python file"):
        load_experiment(other)


def test_an_ablation_of_a_field_that_does_not_exist(tmp_path):
    path = write(
        tmp_path,
        "def get_config():\n    return base_config()\n"
        "def get_ablations():\n    return {'x': {'optimizer.learning_rat': 1.0}}\n",
    )
    with pytest.raises(ValueError, match=r"variant 'x'.*did you mean optimizer\.learning_rate"):
        load_experiment(path)


def test_arguments_of_experiment_files(tmp_path):
    path = write(tmp_path, "def get_config(path):\n    return base_config()\n")
    with pytest.raises(ValueError, match=r"needs an argument: --config=.*experiment\.py:<path>"):
        load_experiment(path)
    path = write(tmp_path, "def get_config():\n    return base_config()\n")
    with pytest.raises(ValueError, match="takes no argument"):
        load_experiment(path, "x")


def test_files_that_are_no_experiments(tmp_path):
    with pytest.raises(FileNotFoundError, match="no experiment file"):
        load_experiment(tmp_path / "missing.py")
    with pytest.raises(ValueError, match="no get_config"):
        load_experiment(write(tmp_path, ""))
    with pytest.raises(ValueError, match="must return what"):
        load_experiment(write(tmp_path, "def get_config():\n    return {}\n"))
