"""Sorts texts with a finished run: python scripts/predict.py --run=runs/... --text="..."

With --file (JSONL, CSV or Parquet, text in the run's text field), one JSON line per record.
"""

import json
import sys

from absl import app, flags
from rich.console import Console

from ftjax.command_line import errors_as_sentences, parse_flags, use_compilation_cache
from ftjax.data.sources import load_records
from ftjax.training.report import tracker
from ftjax.use.predict import Predictor

RUN = flags.DEFINE_string("run", None, "Folder of a finished run.", required=True)
TEXT = flags.DEFINE_multi_string("text", [], "A text; may be given more than once.")
SECOND_TEXT = flags.DEFINE_multi_string("second_text", [], "Its other half, for pairs.")
FILE = flags.DEFINE_string("file", None, "A .jsonl, .csv or .parquet file of texts.")


def main(_) -> None:
    """Loads, sorts, prints."""
    if bool(TEXT.value) == bool(FILE.value):
        sys.exit("error: give --text (once or more) or --file.")
    with errors_as_sentences():
        use_compilation_cache()
        predictor = Predictor(RUN.value, tracker(Console(stderr=True)))
        if FILE.value:
            records = load_records(FILE.value, split="", fields=predictor.fields)
        else:
            second = SECOND_TEXT.value or [None] * len(TEXT.value)
            records = [
                {"text": a, "second_text": b} for a, b in zip(TEXT.value, second, strict=True)
            ]
        predictions = predictor(records)
        for record, prediction in zip(records, predictions, strict=True):
            show(record["text"], prediction)


def show(text: str, prediction: dict) -> None:
    """One JSON line per record of a file; for a person, the text and the probabilities."""
    if FILE.value:
        print(json.dumps({"text": text, **prediction}, ensure_ascii=False))
        return
    print(text)
    for name, probability in prediction["probabilities"].items():
        print(f"  {probability:6.1%}  {name}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
