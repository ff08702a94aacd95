"""What all scripts share: field names checked early, errors as sentences, a compilation cache."""

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags, logging

from ftjax.config import field_names, unknown_field
from ftjax.locate import cache_folder


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's flag parser, after a look at the names of overridden fields.

    Exits with a sentence that names the nearest field when one does not exist.
    """
    for argument in arguments[1:]:
        match = re.match(r"--(?:no)?config\.([\w.]+)", argument)
        if match and match[1] not in field_names():
            sys.exit(f"error: {unknown_field(match[1])}")
    logging.set_verbosity(logging.WARNING)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """An error that ftjax raised on purpose ends the program with its sentence alone."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if Path(__file__).parent not in raised_in.parents:
            raise
        sys.exit(f"error: {error}")


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, so that the second starts in seconds."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
