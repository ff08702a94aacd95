import signal
import subprocess
import sys
import threading

import pytest

from ftjax.interrupt import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.requested is None
        signal.raise_signal(number)
        assert stop.requested == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts():
    # A job in the background of a shell is started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), stop_on_signals():
            # To this thread and at once; two that wait for another thread would become one.
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_has_no_handlers():
    found = []

    def work():
        with stop_on_signals() as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", ["hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)", "while_()"])
def test_a_program_ends_at_once_whatever_it_does(number, busy):
    program = (
        "import hashlib\nfrom ftjax.interrupt import end_on_signals\n"
        "def while_():\n    while True: pass\n"
        f"end_on_signals('All is safe.')\nprint('busy', flush=True)\n{busy}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert errors == f"\nStopped by {number.name}. All is safe.\n"
