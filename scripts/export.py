"""Writes a finished run as a folder that transformers loads.

    python scripts/export.py --run=runs/my_run/base/seed-0 --folder=export/my_model

A language model is written whole. Of a classifier, the tuned encoder is written as a model of its
family, and beside it the head: ftjax_head.safetensors (weight [classes, hidden], bias) and
ftjax_head.json with the classes and how tokens become one vector.
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

from ftjax.command_line import errors_as_sentences, parse_flags
from ftjax.files import write_json_atomically
from ftjax.finished_run import load_finished_run
from ftjax.pretrained.export import export

RUN = flags.DEFINE_string("run", None, "Folder of a finished run.", required=True)
FOLDER = flags.DEFINE_string("folder", None, "Folder to make.", required=True)


def main(_) -> None:
    """Loads, exports, compares."""
    with errors_as_sentences():
        run = load_finished_run(RUN.value)
        folder = Path(FOLDER.value)
        export(run.network.backbone, run.backbone_name, run.base, folder)
        if run.config.task == "text_classification":
            head = run.network.classifier
            weight = np.ascontiguousarray(np.asarray(head.kernel[...]).T)
            bias = np.asarray(head.bias[...])
            save_file({"weight": weight, "bias": bias}, folder / "ftjax_head.safetensors")
            notes = {"classes": run.facts["classes"], "pooling": run.config.model.pooling}
            write_json_atomically(folder / "ftjax_head.json", notes)
    print(f"{FOLDER.value}: written, reloaded and compared.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
