"""The process in which chat templates run, seen from here: asked, watched, ended, started anew."""

import atexit
import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("template_worker.py")

# Beyond the worker's own limit on processor time: a machine may be busy, or out of memory.
SECONDS_TO_ANSWER = 15.0
SECONDS_TO_START = 60.0

# How the error of a template that was stopped begins.
ENDLESS = "does not end"

# All of the environment that it sees: what Python and the time of day need.
ENVIRONMENT = ("LD_LIBRARY_PATH", "TZ")


class TemplateProcess:
    """Renders with any templates, one question at a time.

    The first question starts it. It may be asked from several threads, and after a fork.
    """

    def __init__(self):
        self._worker: _Worker | None = None
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def ask(
        self, template: str, names: Mapping[str, Any], dialogues: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Renders dialogues, up to the first that fails.

        Args:
            template: its text.
            names: what it may use in each of the dialogues, JSON values.
            dialogues: what it may use besides in one, each a JSON object.

        Returns:
            First {"names": [...]}, the names that the template uses; then {"text": str, "spans":
            [[start, end], ...] or None} for each. The last has "error", a verb and what follows it,
            if anything failed.

        Raises:
            RuntimeError: the process does not start.
            ImportError: jinja2 is not installed.
        """
        begin = json.dumps({"template": template, "names": names})[:-1]
        request = f'{begin}, "dialogues": [{", ".join(dialogues)}]}}\n'.encode()
        with self._lock:
            if self._worker is None or self._worker.owner != os.getpid():
                self._worker = _Worker()
            is_whole = False
            try:
                answers, is_whole = self._worker.ask(request, 1 + len(dialogues))
            finally:
                if not is_whole:
                    # What it would still say is no answer to the next question.
                    self.stop()
            return answers

    def stop(self) -> None:
        """Ends the process, whatever it is doing; the next question starts another."""
        worker, self._worker = self._worker, None
        if worker is not None and worker.owner == os.getpid():
            worker.stop()


class _Worker:
    """One process, while it lives.

    Attributes:
        owner: the process that started it.
    """

    def __init__(self):
        folders = {str(_origin(name).parents[1]) for name in ("jinja2", "markupsafe")}
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(WORKER), *sorted(folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            # Ctrl-C on the terminal is not for it.
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self._rest = b""
        self._readable = selectors.DefaultSelector()
        self._readable.register(self._answers, selectors.EVENT_READ)
        try:
            self._answer(SECONDS_TO_START)
        except (EOFError, TimeoutError) as error:
            self.stop()
            raise RuntimeError(
                f"The process that renders chat templates does not start; `{sys.executable} -I "
                f"{WORKER}` says why."
            ) from error
        except BaseException:
            self.stop()
            raise

    def ask(self, request: bytes, count: int) -> tuple[list[dict[str, Any]], bool]:
        """At most so many answers, and whether the process goes on."""
        answers: list[dict[str, Any]] = []
        try:
            self._questions.write(request)
            self._questions.flush()
            while len(answers) < count and not (answers and "error" in answers[-1]):
                answers.append(self._answer(SECONDS_TO_ANSWER))
        except TimeoutError:
            error = f"{ENDLESS} (stopped after {SECONDS_TO_ANSWER:g} seconds)"
            return [*answers, {"error": error}], False
        except (EOFError, BrokenPipeError):
            return [*answers, {"error": self._cause_of_death()}], False
        return answers, not answers[-1].get("spent")

    def stop(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        self._readable.close()
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _answer(self, seconds: float) -> dict[str, Any]:
        """The next line. Raises EOFError if the process has ended, TimeoutError."""
        end, pieces = time.monotonic() + seconds, [self._rest]
        while b"\n" not in pieces[-1]:
            if not self._readable.select(max(end - time.monotonic(), 0)):
                raise TimeoutError
            pieces.append(os.read(self._answers.fileno(), 1 << 16))
            if not pieces[-1]:
                raise EOFError
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return json.loads(line)

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return f"{ENDLESS} (stopped by its limit of processor time)"
        return f"needs too much memory or depth (its process ended with exit code {code})"


def _origin(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"Chat templates need {module}: pip install {module}.")
    return Path(spec.origin)
