import pytest

from ftjax.config import (
    SCHEMA,
    Field,
    base_config,
    field_names,
    flatten,
    load_experiment,
    override,
    validate,
    with_none,
)


@pytest.fixture
def config():
    config = base_config()
    config.name, config.model.reference, config.data.source = "name", "reference", "source"
    return config


def test_defaults_are_valid(config):
    validate(config)


def test_every_field_has_a_meaning_and_a_default_that_it_allows():
    def fields(schema):
        for item in schema.values():
            yield from [item] if isinstance(item, Field) else fields(item)

    for field in fields(SCHEMA):
        assert field.meaning.endswith(".")
        assert field.required or field.problem(field.default) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", -1.0),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.beta1", 1.0),
        ("data.batch_size", 0),
        ("model.pooling", "men"),
        ("seed", -1),
        ("training.max_steps", 0),
        ("data.buckets", (1, 64)),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_field_and_what_is_allowed(config, field, value):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=f"config.{field} is .*allowed: "):
        validate(config)


def test_all_wrong_fields_are_named_at_once(config):
    config.optimizer.learning_rate = -1.0
    config.model.pooling = "men"
    with pytest.raises(ValueError, match="learning_rate") as error:
        validate(config)
    assert "did you mean mean?" in str(error.value)


def test_what_must_be_set_is_named():
    with pytest.raises(ValueError, match=r"config\.model\.reference must be set"):
        validate(base_config())


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


def test_a_misspelt_field_is_refused_with_the_nearest(config):
    with pytest.raises(ValueError, match=r"did you mean optimizer\.learning_rate\?"):
        override(config, {"optimizer.learning_rte": 1e-3})


def test_override_changes_a_copy(config):
    changed = override(config, {"optimizer.learning_rate": 1, "training.max_steps": 7})
    assert changed.optimizer.learning_rate == 1.0
    assert changed.training.max_steps == 7
    assert config.training.max_steps is None


def test_flat_form_has_every_field_and_goes_back(config):
    flat = flatten(config)
    assert list(flat) == field_names()
    assert flatten(override(base_config(), flat)) == flat


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
    assert experiment.variant("slow") == {"variant": "slow", "optimizer.learning_rate": 1e-5}
    assert experiment.claims == ["slow is worse"]
    with pytest.raises(ValueError, match="no variant 'slo'; did you mean slow"):
        experiment.variant("slo")


def test_an_ablation_of_a_field_that_does_not_exist(tmp_path):
    path = write(
        tmp_path,
        "def get_config():\n    return base_config()\n"
        "def get_ablations():\n    return {'x': {'optimizer.learning_rat': 1.0}}\n",
    )
    with pytest.raises(ValueError, match=r"variant 'x'.*did you mean optimizer\.learning_rate"):
        load_experiment(path)


def test_files_that_are_no_experiments(tmp_path):
    with pytest.raises(FileNotFoundError, match="no experiment file"):
        load_experiment(tmp_path / "missing.py")
    with pytest.raises(ValueError, match="no get_config"):
        load_experiment(write(tmp_path, ""))


@pytest.mark.parametrize("said", ["", "None"])
def test_what_a_flag_says_for_none(config, said):
    config.data.second_text_field = said
    config.tuning.targets = "None of these"
    found = with_none(config)
    assert found.data.second_text_field is None
    assert found.tuning.targets == "None of these"
