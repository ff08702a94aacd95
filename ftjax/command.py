"""The `ftjax` program: `ftjax train --config=...` is what scripts/train.py is, and so on."""

import difflib
import importlib
import sys

from ftjax.interrupt import end_on_signals

# Name -> what it does, and what is safe when a signal ends it.
COMMANDS = {
    "train": ("Runs an experiment.", "What was done is saved; the same command continues."),
    "predict": ("Predicts with a finished run.", "What was printed is all that was done."),
    "recommend": (
        "Recommends with a finished run.",
        "What was printed is all that was done.",
    ),
    "chat": ("Talks with a network or a finished run.", "No answer had begun."),
    "export": ("Writes a finished run for other programs.", "Nothing was written."),
    "import_weights": ("Makes a checkpoint folder.", "Nothing was written."),
    "plot": ("Draws the curves of runs.", "Nothing was written."),
}


def main() -> None:
    """`ftjax <command> --flags`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "help"
    if name in ("help", "-h", "--help", "--helpfull"):
        print("ftjax <command> --flags; ftjax <command> --help lists them.\n")
        for command, (what, _) in COMMANDS.items():
            print(f"  {command:16} {what}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        sys.exit(f"error: There is no ftjax {name}. {hint}There are {', '.join(COMMANDS)}.")
    run(name, [f"ftjax {name}", *sys.argv[2:]])


def run(name: str, arguments: list[str]) -> None:
    """One of the commands.

    Args:
        name: of it.
        arguments: what the program is called, and its flags.
    """
    # Before the rest is imported, so that a signal meanwhile is answered, too.
    end_on_signals(COMMANDS[name][1])
    module = importlib.import_module(f"ftjax.commands.{name}")
    # absl prints the main module's for --help.
    sys.modules["__main__"].__doc__ = module.__doc__
    module.start(arguments)
