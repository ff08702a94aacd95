"""What all programs share: flags checked early, errors as sentences, a compilation cache."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags, logging

from ftjax.interrupt import Stopped
from ftjax.locate import cache_folder

OVERRIDE = "config."


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's flag parser; a flag that does not exist is a sentence."""
    logging.set_verbosity(logging.WARNING)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(f"error: {error}")


def take_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without `--config.<field>=<value>`, and those as field -> text of its value.

    Values may also follow as a further argument, and `--noconfig.<field>` is False.
    """
    rest, overrides = [], {}
    waiting = iter(arguments)
    for argument in waiting:
        name, has_value, value = argument.removeprefix("--").partition("=")
        is_flag = argument.startswith("--")
        if is_flag and name.startswith(OVERRIDE):
            field = name.removeprefix(OVERRIDE)
            overrides[field] = value if has_value else next(waiting, "")
        elif is_flag and name.startswith(f"no{OVERRIDE}"):
            overrides[name.removeprefix(f"no{OVERRIDE}")] = "False"
        else:
            rest.append(argument)
    return rest, overrides


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """An error that ftjax raised on purpose ends the program with its sentence alone."""
    try:
        yield
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except BrokenPipeError:
        # Whoever read the output has enough, as `| head` has.
        sys.stderr.close()
        sys.exit(0)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if Path(__file__).parent not in raised_in.parents:
            raise
        sys.exit(f"error: {error}")


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, so that the second starts in seconds."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
