"""Draws the curves of runs over one another.

    ftjax plot --run=runs/a/base/seed-0 --run=runs/a/lora/seed-0 --file=curves.png

Needs matplotlib (pip install 'ftjax[plot]').
"""

from absl import app, flags

from ftjax.command_line import errors_as_sentences, parse_flags
from ftjax.runs.curves import draw

RUN = flags.DEFINE_multi_string("run", None, "Folder of a run; may be repeated.", required=True)
FILE = flags.DEFINE_string("file", "curves.png", "Picture to write: .png, .svg or .pdf.")


def main(_) -> None:
    """Draws."""
    with errors_as_sentences():
        draw(RUN.value, FILE.value)
    print(f"{FILE.value}: written.")


def start(arguments: list[str]) -> None:
    """The program, with its name and arguments."""
    app.run(main, argv=arguments, flags_parser=parse_flags)
