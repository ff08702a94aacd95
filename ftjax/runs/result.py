"""What a finished run found: result.json, declared."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run took.

    Attributes:
        seconds: of all sessions, from their start to the last that was saved.
        train_seconds: training steps.
        compile_seconds: building the programs of the steps.
        validation_seconds: scoring while training.
        checkpoint_seconds: what saving held training up.
        examples_per_second: of the training steps.
        flops_per_step: floating-point operations of an average step, as the compiler counts them.
        peak_memory_bytes: the most that was in use at once.
        trainable_parameters: how many move.
        parameters: all of the network.
    """

    seconds: float
    train_seconds: float
    compile_seconds: float
    validation_seconds: float
    checkpoint_seconds: float
    examples_per_second: float
    flops_per_step: float
    peak_memory_bytes: int
    trainable_parameters: int
    parameters: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run found.

    Attributes:
        name: of the experiment.
        variant: of the experiment.
        seed: of the run.
        method: how it was tuned.
        metrics: `<split>/<metric>`, `test/<baseline>/<metric>` and `retention/...`.
        steps: updates done.
        best_step: the update whose parameters were kept.
        test_examples: how many there are.
        cost: what it took.
        intervals: some of the metrics of the test split -> the 95 % interval over its examples.
        wise_ft: `alpha` and `metrics` of the networks between the start and the tuned one.
        details: more of the test split than numbers by name.
        notes: what a person was told of the data.
    """

    name: str
    variant: str
    seed: int
    method: str
    metrics: Mapping[str, float]
    steps: int
    best_step: int
    test_examples: int
    cost: Cost
    intervals: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    wise_ft: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Result":
        """The inverse of `to_json`.

        Raises:
            ValueError: fields are missing or unknown.
        """
        try:
            return cls(**{**values, "cost": Cost(**values["cost"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"The result was written by another version of ftjax: {error}.") from (
                error
            )
