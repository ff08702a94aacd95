"""Runs an experiment: python scripts/train.py --config=experiments/quickstart.py

Any field is overridden by its name: --config.optimizer.learning_rate=1e-4 (python -m ftjax.config
lists them). The same command continues a run that was stopped.
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from ftjax.command_line import errors_as_sentences, parse_flags, use_compilation_cache
from ftjax.config import load_experiment, override, validate, with_none
from ftjax.training.report import make_console, print_result
from ftjax.training.run import run, run_folder_of

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file.")
VARIANT = flags.DEFINE_string("variant", None, "Variant of the experiment's get_ablations().")
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; runs/<name>/<variant>/seed-<seed>.")
flags.mark_flag_as_required("config")


def main(_) -> None:
    """Validates, runs, prints the result."""
    with errors_as_sentences():
        path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
        experiment = load_experiment(path, argument or None)
        config = CONFIG.value
        if VARIANT.value is not None:
            config = override(experiment.config, experiment.variant(VARIANT.value))
            config = override(config, config_flags.get_override_values(flags.FLAGS["config"]))
        config = with_none(config)
        validate(config)
        workdir = WORKDIR.value or run_folder_of(config)
        console = make_console()
        use_compilation_cache()
        result = run(config, workdir, console)
    if result is None:
        sys.exit(130)
    print_result(console, result, str(workdir))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
