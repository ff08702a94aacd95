"""Runs an experiment: python scripts/train.py --config=experiments/quickstart.py

Any field is overridden by its name: --config.optimizer.learning_rate=1e-4 (python -m ftjax.config
lists them). The same command continues a run that was stopped.
"""

from absl import app, flags

from ftjax.command_line import (
    errors_as_sentences,
    parse_flags,
    take_overrides,
    use_compilation_cache,
)
from ftjax.config import override, validate
from ftjax.experiment import load_experiment
from ftjax.runs.report import make_console, print_result
from ftjax.training.run import run, run_folder_of

CONFIG = flags.DEFINE_string(
    "config", None, "Experiment file, perhaps with ':argument'.", required=True
)
VARIANT = flags.DEFINE_string("variant", None, "Variant of the experiment's get_ablations().")
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; runs/<name>/<variant>/seed-<seed>.")


def main(overrides: dict[str, str]) -> None:
    """Validates, runs, prints the result."""
    with errors_as_sentences():
        path, _, argument = CONFIG.value.partition(":")
        experiment = load_experiment(path, argument or None)
        config = experiment.config if VARIANT.value is None else experiment.variant(VARIANT.value)
        config = override(config, overrides, parse=True)
        validate(config)
        workdir = WORKDIR.value or run_folder_of(config)
        console = make_console()
        use_compilation_cache()
        result = run(config, workdir, console)
        print_result(console, result, str(workdir))


def start(arguments: list[str]) -> None:
    """The program, with its name and arguments."""
    rest, fields = take_overrides(arguments)
    app.run(lambda _: main(fields), argv=rest, flags_parser=parse_flags)
