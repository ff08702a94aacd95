"""What all programs share: flags checked early, errors as sentences, a compilation cache."""

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags, logging

from ftjax.interrupt import Stopped
from ftjax.locate import cache_folder

OVERRIDE = "config."
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)
# Of a disk or a right to it, and not of a program.
OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's flag parser; a flag that does not exist is a sentence."""
    _quiet_libraries()
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(f"error: {error}")


def _quiet_libraries() -> None:
    """Errors are raised, too: no library prints their tracebacks before our sentence."""
    logging.set_verbosity(logging.FATAL)
    told = sys.unraisablehook

    def hook(unraisable):
        # Orbax closes its event loop at the first error; what the disk answers after that finds
        # it closed.
        if str(unraisable.exc_value) != "Event loop is closed":
            told(unraisable)

    sys.unraisablehook = hook


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
    """What ftjax raises on purpose, or a disk causes, ends the program with a sentence alone."""
    try:
        yield
        # What is held back is written now, while an error of it can be told.
        sys.stdout.flush()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except BrokenPipeError:
        # Whoever read the output has enough, as `| head` has.
        _drop_output()
        sys.exit(0)
    except Exception as error:
        sentence = _own_words(error) or _about_the_disk(error) or _about_memory(error)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def _own_words(error: Exception) -> str | None:
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    ours = Path(__file__).parent in raised_in.parents
    return str(error) if ours and isinstance(error, EXPECTED) else None


def _about_the_disk(error: Exception) -> str | None:
    full = os.strerror(errno.ENOSPC)
    what_to_do = "Free space there, or write to another place."
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        if error.filename is None:
            _drop_output()
        name = error.filename2 or error.filename or "The output"
        return f"{name} cannot be written or read ({error.strerror}). {what_to_do}"
    # Writers in other languages have errors of their own.
    return f"{full} ({str(error).splitlines()[0]}). {what_to_do}" if full in str(error) else None


def _about_memory(error: Exception) -> str | None:
    told = str(error).splitlines()[0] if str(error) else ""
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in told:
        return None
    return (
        f"There is not enough memory ({told.removeprefix('RESOURCE_EXHAUSTED: ').rstrip('.')}). "
        "Divide batches (config.optimizer.accumulation_steps) or lower config.data.batch_size and "
        "config.evaluation.batch_size, shorten texts (config.data.buckets or max_length), keep "
        "less of a pass (config.model.remat = 'block'), or train less (config.tuning.method = "
        "'lora'). Checkpoints that were written are kept; a run with other settings needs another "
        "folder (config.name, --workdir)."
    )


def _drop_output() -> None:
    """Nothing more is printed, nor what is held back, which would fail again at the very end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, so that the second starts in seconds.

    Where JAX_COMPILATION_CACHE_DIR says another folder, they are kept there.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = cache_folder() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        print(
            f"Every run compiles its programs anew: the cache folder {folder} cannot be written "
            f"({error.strerror}). Set FTJAX_CACHE to another.",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
