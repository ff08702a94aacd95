"""Writes a finished run as a folder that transformers loads, or its adapter as peft loads it.

    python scripts/export.py --run=runs/my_run/base/seed-0 --folder=export/my_model
    python scripts/export.py --run=runs/my_run/lora/seed-0 --folder=export/my_adapter --adapter

Adapters are merged into the network. A classifier with `model.head = "published"` becomes the
family's own, for `AutoModelForSequenceClassification` and `pipeline("text-classification")`; one
with our head becomes modules of sentence-transformers, whose `encode` gives the logits.
"""

from absl import app, flags
from rich.console import Console

from ftjax.command_line import errors_as_sentences, parse_flags
from ftjax.progress import shown_on, timed
from ftjax.use.finished import load_finished_run

RUN = flags.DEFINE_string("run", None, "Folder of a finished run.", required=True)
FOLDER = flags.DEFINE_string("folder", None, "Folder to make.", required=True)
ADAPTER = flags.DEFINE_bool("adapter", False, "Write only the adapter, in peft's format.")
ACCEPT_FIELDS = flags.DEFINE_list(
    "accept_fields", [], "Fields of the checkpoint's config.json to ignore, by commas."
)


def main(_) -> None:
    """Loads, exports, compares."""
    with errors_as_sentences(), shown_on(Console(stderr=True)):
        with timed("Loading the run"):
            run = load_finished_run(RUN.value, accept_fields=tuple(ACCEPT_FIELDS.value))
        if ADAPTER.value:
            run.objective.export_adapter(run.network, FOLDER.value)
        else:
            run.objective.export(run.network, FOLDER.value)
    print(f"{FOLDER.value}: written, reloaded and compared.")


def start(arguments: list[str]) -> None:
    """The program, with its name and arguments."""
    app.run(main, argv=arguments, flags_parser=parse_flags)
