"""A run that ends in the middle of training, and is continued."""

import functools
import io

import pytest
from rich.console import Console

import ftjax.training.fit as fit_module
from ftjax.training.run import run


def whole_and_continued(config, folder, monkeypatch, *, batch: int, step: int):
    """Results of a run, and of the same run that was lost at a batch and then continued.

    What both logged must be the same to the byte, and so must their scores.

    Args:
        config: of a run with more batches than `batch`.
        folder: for both run folders, "whole" and "broken".
        monkeypatch: pytest's.
        batch: the training batch, from 1 and over all phases, that cannot be made.
        step: of the checkpoint before it.
    """
    whole = run(config, folder / "whole", Console(file=io.StringIO()))
    original, made = fit_module._epoch_batches, []

    def counted(make):
        made.append(make)
        if len(made) == batch:
            raise OSError("the machine is gone")
        return make()

    def epoch_batches(*given):
        return [functools.partial(counted, make) for make in original(*given)]

    with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):
        patch.setattr(fit_module, "_epoch_batches", epoch_batches)
        run(config, folder / "broken", Console(file=io.StringIO()))
    console = Console(file=io.StringIO(), width=200)
    continued = run(config, folder / "broken", console)
    assert f"Continuing from step {step}." in console.file.getvalue()
    logs = [(folder / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken")]
    assert logs[0] == logs[1]
    assert continued.metrics == whole.metrics
    return whole, continued
