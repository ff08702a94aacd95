import io
import threading
import time

import pytest
from rich.console import Console

from ftjax import progress
from ftjax.progress import shown_on, timed, track


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.05)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.01)


def shown(work, *, terminal):
    out = io.StringIO()
    with shown_on(Console(file=out, force_terminal=terminal, width=100)):
        work()
    return out.getvalue()


def slow_items():
    for number, item in enumerate(track("abcd", "spelling")):
        assert item == "abcd"[number]
        time.sleep(0.06)


def test_elsewhere_lines_say_how_far_and_how_long(impatient):
    text = shown(slow_items, terminal=False)
    assert "spelling: 1 of 4, 0 seconds left" in text


def test_a_terminal_shows_a_bar(impatient):
    assert "spelling: 2/4" in shown(slow_items, terminal=True)


def test_one_long_item_is_no_silence(impatient):
    def work():
        for _ in track(["long"], "waiting"):
            time.sleep(0.3)

    assert "waiting: 0 of 1, 0 seconds so far" in shown(work, terminal=False)


def test_what_is_soon_done_shows_nothing():
    assert shown(lambda: list(track(range(1000), "counting")), terminal=False) == ""


def test_without_anyone_to_tell_items_need_no_length():
    assert list(track(iter("ab"), "spelling")) == ["a", "b"]


def test_what_fails_or_is_left_ends_the_bar(impatient):
    def fails():
        with pytest.raises(ZeroDivisionError):
            for _ in track("ab", "failing"):
                1 / 0  # noqa: B018

    def leaves():
        for _ in track("ab", "leaving"):
            break

    before = threading.active_count()
    for work in (fails, leaves):
        shown(work, terminal=True)
        assert threading.active_count() == before


def test_a_phase_is_a_line_with_its_seconds():
    def fails():
        with pytest.raises(ZeroDivisionError), timed("Failing"):
            1 / 0  # noqa: B018

    def works():
        with timed("Merging"):
            time.sleep(0.1)

    assert shown(works, terminal=False) == "Merging ... 0.1 seconds\n"
    assert shown(fails, terminal=False) == "Failing ... stopped\n"
    works()
