import os
import signal
import threading

import pytest

from ftjax.interrupt import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts():
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_has_no_handlers():
    found = []

    def work():
        with stop_on_signals() as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
