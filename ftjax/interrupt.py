"""SIGINT and SIGTERM: one sentence and the usual exit code, whatever a program is doing.

While it trains, a signal asks for a stop: the loop saves and returns (`stop_on_signals`). At any
other time there is nothing to save that is not on disk already: the program says so and ends
(`end_on_signals`). Imports nothing heavy, so that a program can call it first of all.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = "\x1b[?25h"


class Stopped(RuntimeError):
    """A run was asked to stop, and saved.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Whether someone asked the run to stop.

    Attributes:
        requested: the signal, or None.
    """

    def __init__(self):
        self.requested: signal.Signals | None = None


def end_on_signals(what_is_safe: str) -> None:
    """From now on, a signal ends the program with a sentence.

    At once, even while the main thread is in a long call of compiled code, such as XLA's compiler.

    Args:
        what_is_safe: told after "Stopped by SIGTERM.".
    """
    told = threading.Lock()

    def end(number, frame):
        if not told.acquire(blocking=False):
            return
        name = signal.Signals(number).name
        cursor = SHOW_CURSOR if sys.stderr.isatty() else ""
        # Not sys.exit: what runs on the way out may wait for threads, or print a traceback.
        os.write(2, f"{cursor}\nStopped by {name}. {what_is_safe}\n".encode())
        os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)
    # Python calls handlers between two instructions of the main thread, and only then.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)

    def watch():
        while True:
            (number,) = os.read(reading, 1)
            if signal.getsignal(number) is end:
                end(number, None)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and the first Ctrl-C into a request; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python allows no handlers, nothing is ever requested.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number, frame):
        if number == signal.SIGINT and request.requested:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)
        else:
            request.requested = signal.Signals(number)

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
