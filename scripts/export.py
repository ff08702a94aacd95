"""Writes a finished run as a folder that transformers loads, or its adapter as peft loads it.

    python scripts/export.py --run=runs/my_run/base/seed-0 --folder=export/my_model
    python scripts/export.py --run=runs/my_run/lora/seed-0 --folder=export/my_adapter --adapter

A language model is written whole, adapters merged into it. Of a classifier, the tuned encoder is
written as a model of its family, and beside it the head: ftjax_head.safetensors (weight [classes,
hidden], bias) and ftjax_head.json with the classes and how tokens become one vector.
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

from ftjax.command_line import errors_as_sentences, parse_flags
from ftjax.files import write_json_atomically
from ftjax.pretrained.adapter import save_adapter
from ftjax.pretrained.export import export
from ftjax.use.finished import FinishedRun, load_finished_run, merged_backbone

RUN = flags.DEFINE_string("run", None, "Folder of a finished run.", required=True)
FOLDER = flags.DEFINE_string("folder", None, "Folder to make.", required=True)
ADAPTER = flags.DEFINE_bool("adapter", False, "Write only the adapter, in peft's format.")


def main(_) -> None:
    """Loads, exports, compares."""
    with errors_as_sentences():
        run = load_finished_run(RUN.value)
        folder = Path(FOLDER.value)
        if ADAPTER.value:
            save_adapter(run.network, run.base, folder)
        else:
            network, expected = merged_backbone(run)
            export(
                network,
                run.objective.network_name,
                run.base,
                folder,
                expected=expected,
                accept_fields=tuple(run.config.model.accept_fields),
            )
        if run.objective.has_new_head:
            write_head(run, folder)
    done = "written" if ADAPTER.value else "written, reloaded and compared"
    print(f"{FOLDER.value}: {done}.")


def write_head(run: FinishedRun, folder: Path) -> None:
    """The new head, which is no part of the family's checkpoint."""
    head = run.network.classifier
    weight = np.ascontiguousarray(np.asarray(head.kernel[...]).T)
    tensors = {"weight": weight, "bias": np.asarray(head.bias[...])}
    save_file(tensors, folder / "ftjax_head.safetensors")
    notes = {"classes": run.objective.facts["classes"], "pooling": run.config.model.pooling}
    write_json_atomically(folder / "ftjax_head.json", notes)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
