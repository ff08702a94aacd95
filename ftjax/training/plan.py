"""How many steps a run takes, and which of its settings they never reach."""

import dataclasses
from collections.abc import Collection

from ftjax.config import Config
from ftjax.data.examples import Examples, plan
from ftjax.tuning.stages import make_stages


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training run does when.

    Attributes:
        total_steps: the schedule's length.
        steps_per_epoch: the same in every epoch.
        validate_every: steps between validations; the last step always validates.
        checkpoint_every: steps between checkpoints, besides those at validations; None for no more.
        log_every: steps between logged lines.
        patience: stop after so many validations without improvement; None: never.
    """

    total_steps: int
    steps_per_epoch: int
    validate_every: int
    checkpoint_every: int | None
    log_every: int
    patience: int | None

    @property
    def validations(self) -> int:
        """How many there are, if training is not stopped early."""
        return -(-self.total_steps // self.validate_every)


def make_plan(config: Config, examples: Examples, updates: int = 1) -> Plan:
    """The plan of training on examples.

    Args:
        config: validated.
        examples: of the training split.
        updates: steps from each batch of them.

    Raises:
        ValueError: more steps are asked for than the epochs have.
    """
    training = config.training
    # Every epoch has as many batches as this order, which needs no shuffle.
    per_epoch = updates * len(plan(examples, config.data.batch_size))
    total = max(round(per_epoch * training.epochs), 1)
    if training.max_steps is not None:
        if training.max_steps > total:
            raise ValueError(
                f"config.training.max_steps = {training.max_steps} is above the {total} steps of "
                f"{training.epochs:g} epochs; raise config.training.epochs, or set max_steps to "
                "None."
            )
        total = training.max_steps
    return Plan(
        total_steps=total,
        steps_per_epoch=per_epoch,
        validate_every=config.evaluation.every or per_epoch,
        checkpoint_every=training.checkpoint_every,
        log_every=training.log_every,
        patience=config.evaluation.patience,
    )


def never_reached(config: Config, planned: Plan, trainable: Collection[str]) -> list[str]:
    """Sentences on what the config asks for and the run is too short for.

    Args:
        config: validated.
        planned: from `make_plan`.
        trainable: paths of all parameters that move.
    """
    steps = f"the {planned.total_steps:,} steps of this run"
    found = []
    if planned.validate_every > planned.total_steps and config.evaluation.every is not None:
        found.append(
            f"config.evaluation.every = {planned.validate_every} is beyond {steps}: it is "
            "validated once, at the end."
        )
    # Of what stops after the last validation, nothing is left to be saved.
    if planned.patience is not None and planned.patience > planned.validations - 2:
        found.append(
            f"config.evaluation.patience = {planned.patience} cannot stop this run early: it has "
            f"{planned.validations} validations."
        )
    if planned.checkpoint_every is not None and planned.checkpoint_every > planned.total_steps:
        found.append(
            f"config.training.checkpoint_every = {planned.checkpoint_every} is beyond {steps}: "
            "there are checkpoints at validations only."
        )
    stages = make_stages(trainable, config.tuning)
    late = [s for s in stages if s.first_epoch * planned.steps_per_epoch >= planned.total_steps]
    if late:
        found.append(
            f"config.tuning.unfreeze_epochs = {config.tuning.unfreeze_epochs}: of {len(stages)} "
            f"groups from the head down, the lowest {len(late)} would begin to move only after "
            f"{steps}, and so never do."
        )
    return found
