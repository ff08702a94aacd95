"""LoRA next to peft, a probe on kept features, and several runs in one step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from side_by_side import encoder, language_model
from side_by_side.timing import OURS, in_turn, report

from ftjax.config import base_config, override
from ftjax.training.lanes import make_lane_step, stack_lanes
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.run import build
from ftjax.training.step import make_train_step, new_state
from ftjax.tuning.tune import tune

ROUNDS = 7
LANES = 4
PROBE_EPOCHS = 5


def lora_config():
    """LoRA of rank 8 on queries and values."""
    return override(encoder.encoder_config(), {"tuning.method": "lora"})


def compare_lora(console: Console) -> dict:
    """Training steps of LoRA on MiniLM (32x64) and SmolLM2, next to peft."""
    results = {}
    parts, config = build(lora_config()), lora_config()
    batches = encoder.random_batches(parts, 32, 64, 1)
    ours = encoder.Ours(parts, config, 10_000)
    theirs = encoder.Torch(parts, config, 10_000, with_lora=True)
    sides = {OURS: lambda: ours.steps(batches), "peft": lambda: theirs.steps(batches)}
    title = "LoRA training step of MiniLM, 32x64"
    results["minilm"] = report(console, title, in_turn(sides, ROUNDS))

    rows, length = language_model.TRAIN_SHAPE
    ids = language_model.random_ids()
    split = functools.partial(tune, settings=config.tuning, seed=0)
    sides = {
        OURS: language_model.our_step(ids, split=split),
        "peft": language_model.torch_step(ids, with_lora(language_model.torch_model())),
    }
    title = f"LoRA training step of SmolLM2, {rows}x{length}"
    results["smollm2"] = report(console, title, in_turn(sides, ROUNDS))
    return results


def compare_memory(console: Console) -> dict:
    """Bytes that a step of SmolLM2 needs, as the compiled program counts them.

    Each block is recomputed in the backward pass, inside a loop over blocks: the setting in which
    the weights are what is left.
    """
    compute = dataclasses.replace(language_model.TRAINING, scan_layers=True, remat="block")
    results = {}
    rows, length = language_model.TRAIN_SHAPE
    table = Table(title=f"memory of a training step of SmolLM2, {rows}x{length}")
    for column in ("", "arguments, MB", "temporary, MB"):
        table.add_column(column, justify="right" if column else "left")
    for method in ("full", "lora", "qlora"):
        config = override(base_config(), {"tuning.method": method})
        if method == "lora":
            config.tuning.targets = r".*_proj"
        split = functools.partial(tune, settings=config.tuning, seed=0)
        step, *arguments = language_model.our_program(language_model.random_ids(), split, compute)
        memory = step.lower(*arguments).compile().memory_analysis()
        sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes)
        results[method] = dict(zip(("arguments", "temporary"), sizes, strict=True))
        table.add_row(method, *(f"{size / 1e6:.0f}" for size in sizes))
    console.print(table)
    return results


def with_lora(model):
    """peft's LoRA with the same rank, scale and targets."""
    import peft

    settings = lora_config().tuning
    is_encoder = any("query" in name for name, _ in model.named_modules())
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=["query", "value"] if is_encoder else ["q_proj", "v_proj"],
        ),
    )


def compare_probe(console: Console) -> dict:
    """Five epochs of a linear probe: on kept features, and through the network each time."""
    config = override(encoder.encoder_config(), {"tuning.method": "linear_probe"})
    parts = build(config)

    def epochs(batches_of):
        side = encoder.Ours(parts, config, 10_000)
        for epoch in range(PROBE_EPOCHS):
            side.steps(batches_of(encoder.epoch_batches(parts, config, epoch)))

    features = jax.jit(
        lambda trainable, frozen, batch: parts.rebuild(trainable, frozen).features(batch)
    )

    def on_kept_features():
        kept = np.zeros((len(parts.objective.labels["train"]), 384), np.float32)
        for batch in encoder.epoch_batches(parts, config, 0):
            real = batch["example_ids"] >= 0
            found = features(parts.trainable, parts.frozen, batch)
            kept[batch["example_ids"][real]] = np.asarray(found)[real]

        def replaced(batches):
            return [
                {k: v for k, v in batch.items() if v.ndim == 1}
                | {"features": kept[batch["example_ids"]]}
                for batch in batches
            ]

        epochs(replaced)

    sides = {OURS: on_kept_features, "through the network": lambda: epochs(lambda batches: batches)}
    title = f"{PROBE_EPOCHS} epochs of a linear probe"
    return report(console, title, in_turn(sides, 1))


def compare_lanes(console: Console) -> dict:
    """A step of four LoRA runs at once, and of the four in turn."""
    config = lora_config()
    parts = build(config)
    (batch,) = encoder.random_batches(parts, 32, 64, 1)
    unit = make_schedule(override(config, {"optimizer.learning_rate": 1.0}).optimizer, 100)

    def make_step(rate):
        def schedule(step):
            return rate * unit(step)

        optimizer = make_optimizer(config.optimizer, schedule, parts.trainable)
        return make_train_step(parts.rebuild, parts.objective.loss, optimizer, schedule)

    optimizer = make_optimizer(config.optimizer, unit, parts.trainable)
    states = [new_state(seed, parts.trainable, optimizer) for seed in range(LANES)]
    rates = jnp.linspace(1e-4, 1e-3, LANES)
    together = jax.jit(make_lane_step(make_step))
    alone = jax.jit(lambda rate, state, frozen, batch: make_step(rate)(state, frozen, batch))
    stacked = stack_lanes(states)

    def in_one_step():
        jax.block_until_ready(together(rates, stacked, parts.frozen, batch))

    def one_after_the_other():
        for rate, state in zip(rates, states, strict=True):
            jax.block_until_ready(alone(rate, state, parts.frozen, batch))

    sides = {OURS: in_one_step, "in turn": one_after_the_other}
    return report(console, f"{LANES} LoRA runs, one step of each", in_turn(sides, ROUNDS))
