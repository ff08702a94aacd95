"""Predicts for texts with a finished run: python scripts/predict.py --run=runs/... --text="..."

With --file (all kinds of files of docs/data.md, with the run's fields), one JSON line per record.
For a run that finds answers, --text is the question and --second_text its context.
"""

import json
import sys
from pathlib import Path

from absl import app, flags
from rich.console import Console

from ftjax.command_line import errors_as_sentences, parse_flags, use_compilation_cache
from ftjax.data.sources import Source
from ftjax.data.sources.conll import columns_of
from ftjax.files import write_text_atomically
from ftjax.progress import shown_on
from ftjax.use.page import marked_page
from ftjax.use.predict import Predictor

RUN = flags.DEFINE_string("run", None, "Folder of a finished run.", required=True)
TEXT = flags.DEFINE_multi_string("text", [], "A text; may be given more than once.")
SECOND_TEXT = flags.DEFINE_multi_string("second_text", [], "Its other half, for pairs.")
FILE = flags.DEFINE_string("file", None, "A file of texts: .csv, .jsonl, .parquet, ...")
HTML = flags.DEFINE_string(
    "html", None, "With --file, write a page with each text coloured by its labels instead."
)
CONLL = flags.DEFINE_string(
    "conll", None, "With --file, write words and tags in CoNLL's columns instead."
)
ACCEPT_FIELDS = flags.DEFINE_list(
    "accept_fields", [], "Fields of the checkpoint's config.json to ignore, by commas."
)


def main(_) -> None:
    """Loads, predicts, prints."""
    if bool(TEXT.value) == bool(FILE.value):
        sys.exit("error: give --text (once or more) or --file.")
    for name, value in (("html", HTML.value), ("conll", CONLL.value)):
        if value and not FILE.value:
            sys.exit(f"error: --{name} needs --file.")
    with errors_as_sentences(), shown_on(Console(stderr=True)):
        use_compilation_cache()
        predictor = Predictor(RUN.value, accept_fields=tuple(ACCEPT_FIELDS.value))
        if HTML.value and not predictor.objective.gives_labels:
            sys.exit("error: this run gives texts no labels to colour them by; leave out --html.")
        if CONLL.value and "tokens" not in predictor.fields:
            sys.exit("error: this run tags no words to write in columns; leave out --conll.")
        if FILE.value:
            source = Source(FILE.value)
            records = source.records("", predictor.fields)
            for note in source.notes:
                print(note, file=sys.stderr)
        else:
            second = SECOND_TEXT.value or [None] * len(TEXT.value)
            records = [
                {"text": a, "second_text": b} for a, b in zip(TEXT.value, second, strict=True)
            ]
        predictions = predictor(records)
        if FILE.value and CONLL.value:
            columns = [(found["tokens"], found["tags"]) for found in predictions]
            write_text_atomically(CONLL.value, columns_of(columns))
            print(f"Written to {CONLL.value}")
            return
        if FILE.value and HTML.value:
            marks = [predictor.objective.marks(prediction) for prediction in predictions]
            texts = [record["text"] for record in records]
            write_text_atomically(HTML.value, marked_page(Path(FILE.value).name, texts, marks))
            print(f"Written to {HTML.value}")
            return
        for record, prediction in zip(records, predictions, strict=True):
            if FILE.value:
                print(json.dumps({**record, **prediction}, ensure_ascii=False))
                continue
            print(record["text"])
            for line in predictor.objective.describe_prediction(prediction):
                print(f"  {line}")


def start(arguments: list[str]) -> None:
    """The program, with its name and arguments."""
    app.run(main, argv=arguments, flags_parser=parse_flags)
