"""Stopping cleanly: SIGTERM and Ctrl-C ask for it, the loop saves and returns."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopRequest:
    """Whether someone asked the run to stop.

    Attributes:
        requested: the signal's name, or None.
    """

    def __init__(self):
        self.requested: str | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and the first Ctrl-C into a request; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python allows no handlers, nothing is ever requested.
    """
    request = StopRequest()

    def handle(number, frame):
        if number == signal.SIGINT and request.requested:
            raise KeyboardInterrupt
        request.requested = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
