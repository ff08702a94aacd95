"""Sorts texts with a finished run: python scripts/predict.py --run=runs/... --text="..."

With --file (JSONL, CSV or Parquet, text in the run's text field), one JSON line per record.
"""

import json
import sys

import numpy as np
from absl import app, flags

from ftjax.command_line import errors_as_sentences, parse_flags, use_compilation_cache
from ftjax.data.sources import load_records
from ftjax.use.predict import TextClassificationPredictor

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
        predictor = TextClassificationPredictor(RUN.value)
        texts, second = TEXT.value, SECOND_TEXT.value or None
        if FILE.value:
            records = load_records(FILE.value, split="", fields=predictor.fields)
            texts = [record["text"] for record in records]
            second = [r["second_text"] for r in records] if "second_text" in records[0] else None
        probabilities = predictor(texts, second)
    for text, row in zip(texts, probabilities, strict=True):
        order = np.argsort(-row)
        scores = {predictor.classes[i]: round(float(row[i]), 4) for i in order}
        if FILE.value:
            print(json.dumps({"text": text, "label": next(iter(scores)), "probabilities": scores}))
            continue
        print(text)
        for name, probability in scores.items():
            print(f"  {probability:6.1%}  {name}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
