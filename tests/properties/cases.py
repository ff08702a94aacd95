"""An objective on a tiny network of a family, as a run builds it, and its batches changed.

One program of one shape gives loss and gradient of all batches of a case, so that what is compared
bit by bit was computed by the same code.
"""

import dataclasses
import functools
import json
import random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from made import PROCESSOR, SIZES, VOCABULARY
from matrix import ROWS, checkpoint_fields, is_encoder, network_of
from tiny import end_texts, write_checkpoint, write_subword_tokenizer, write_tokenizer

from ftjax.config import Config, base_config, override
from ftjax.losses.forward import START, forward
from ftjax.models import FAMILIES
from ftjax.training.build import Parts, build

LENGTH, WIDER = 24, 8
SETTINGS = {
    "name": "properties",
    "data.batch_size": len(SIZES),
    "evaluation.batch_size": len(SIZES),
    "model.dropout": 0.0,
}
# Set where they are read.
WHERE_READ = {
    "data.buckets": (LENGTH,),
    "data.max_length": LENGTH,
    "model.head_dropout": 0.0,
    "retention.enabled": False,
    "evaluation.baselines": False,
}
# Arrays of a batch by what hides an entry of them: the mask of tokens, or a weight of 0.
OF_TOKENS = ("input_ids", "token_type_ids", "position_ids")
PLACES = ("start_positions", "end_positions")
ITEMS = ("target_ids", "known_ids", "log_shares")
REWARDS = ("advantages", "rewards", "reward_deviations", "completion_lengths", "truncated")
REWARDED = (*REWARDS, "rewards/letters", "sampling_logps")
LABELS = ("pixel_values", "labels", "desirable", "margins", "text_ids", *ITEMS, *REWARDED, *PLACES)
POSITIONS = ("masked_positions", "null_positions", "context_start", "context_end")
MASKS = ("attention_mask", "segment_ids")
Batch = dict[str, np.ndarray]


class Sums(NamedTuple):
    """Of a batch: loss and weight, metrics, and the gradient of the summed loss by path."""

    loss: jax.Array
    weight: jax.Array
    metrics: dict[str, Any]
    gradient: dict[str, jax.Array]


class Case:
    """An objective on a family.

    Attributes:
        parts: as a run has them.
        trainable: the parameters, with noise, so that no bias is 0 and no norm does nothing.
        sums: (trainable, batch) -> `Sums`; compiled for each shape.
    """

    def __init__(self, config: Config):
        self.config = config
        self.parts: Parts = build(config)
        generator = np.random.default_rng(0)
        self.trainable = {
            path: value + jnp.asarray(0.1 * generator.normal(size=value.shape), value.dtype)
            for path, value in self.parts.trainable.items()
        }
        self.sums = jax.jit(functools.partial(sums_of, self.parts))

    def silent(self, batch: Batch) -> "Sums":
        """Of the network that says nothing, all its parameters 0, at the start too."""
        nothing = jax.tree.map(jnp.zeros_like, self.parts.trainable)
        parts = dataclasses.replace(self.parts, trainable=nothing)
        return jax.jit(functools.partial(sums_of, parts))(nothing, batch)

    def batch(self, examples: int = len(SIZES)) -> Batch:
        """The first so many examples, one a row; further rows have weight 0."""
        if ROWS[self.config.objective.name].packs:
            batch = apart(self.together(), len(SIZES))
            batch["weights"][examples:] = 0.0
            return batch
        found = self.parts.objective.epoch_examples(0)
        batch = found.batch(np.arange(examples), rows=len(SIZES), length=LENGTH)
        return dict(ROWS[self.config.objective.name].learned(self.parts.objective, batch))

    def together(self) -> Batch:
        """All examples, as many in a row as fit."""
        found = self.parts.objective.examples["train"]
        count = min(len(found.lengths), len(SIZES))
        return found.batch(np.arange(count), rows=len(SIZES), length=LENGTH)


def sums_of(parts: Parts, trainable, batch) -> Sums:
    """Loss, metrics and gradient, as the training step takes them."""
    # What a step is given beside the frozen parameters, for objectives that compare with the start.
    frozen = parts.frozen | {START + path: value for path, value in parts.trainable.items()}

    def loss(trainable):
        def network(parameters, key):
            return parts.rebuild(parameters, parts.frozen)

        total, weight, metrics = parts.objective.loss(
            forward(network, trainable, frozen, batch, None)
        )
        return total, (weight, metrics)

    (total, (weight, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(trainable)
    return Sums(total, weight, metrics, gradient)


def write_family(folder, family: str, layers: int = 2):
    """A tiny checkpoint with a tokenizer."""
    fields = checkpoint_fields(family, layers)
    write_checkpoint(folder, FAMILIES[fields["model_type"]], fields, network_of(family))
    if "image_size" in fields:
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        return
    if is_encoder(family):
        write_subword_tokenizer(folder)
    else:
        write_tokenizer(folder, with_end=True)
        if network_of(family) == "seq2seq_lm":
            end_texts(folder)


def write_records(folder, objective: str, times: int):
    """Three splits of so many times eight examples of unequal length."""
    if (write := ROWS[objective].write) is not None:
        write(folder, times)
        return
    generator = random.Random(0)
    for split in ("train", "validation", "test"):
        rows = [ROWS[objective].example(generator, words) for words in SIZES * times]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def config_of(objective: str, checkpoint, data, *, choices=None, **fields) -> Config:
    """Of a run of the objective over these files.

    Args:
        objective: its name.
        checkpoint: folder.
        data: folder.
        choices: fields that are set where they are read.
        fields: further ones.
    """
    files = {field: str(data / name) for field, name in ROWS[objective].files.items()}
    files |= {"model.reference": str(checkpoint)}
    config = override(base_config(objective), SETTINGS | files | dict(ROWS[objective].fields))
    # Choices first: they say which of the others are read.
    for wanted in (choices or {}, WHERE_READ):
        read = {name: value for name, value in wanted.items() if name in config.fields}
        config = override(config, read)
    return override(config, fields)


def columns_of(batch: Batch) -> list[str]:
    """Arrays with an entry for each token of a row."""
    if "input_ids" not in batch:
        return []
    length = batch["input_ids"].shape[1]
    return [name for name, a in batch.items() if a.ndim >= 2 and a.shape[1] == length]


def real_tokens(batch: Batch) -> np.ndarray:
    """Bool [rows, length], where a token is read."""
    return next(batch[name] for name in MASKS if name in batch) > 0


def hidden(batch: Batch) -> Batch:
    """Of each array that may hold garbage, bool, where."""
    nothing = batch["weights"] == 0
    rows = nothing if nothing.ndim == 1 else nothing.all(1)
    found = {}
    for name, array in batch.items():
        if name in OF_TOKENS:
            found[name] = ~real_tokens(batch) | rows[:, None]
        elif name in LABELS or name in POSITIONS:
            where = nothing if array.ndim >= nothing.ndim else rows
            where = where.reshape(where.shape + (1,) * (array.ndim - where.ndim))
            found[name] = np.broadcast_to(where, array.shape)
        elif name in MASKS and nothing.ndim == 1:
            # Without weights of its own tokens, a row of weight 0 is no example at all.
            found[name] = np.broadcast_to(rows[:, None], array.shape)
    unknown = batch.keys() - found.keys() - {"weights", "example_ids", *MASKS}
    assert not unknown, (
        f"A batch has the arrays {sorted(unknown)}, and tests/properties/cases.py does not know "
        "what hides their entries: name them in OF_TOKENS, LABELS, POSITIONS or MASKS."
    )
    return found


def poisoned(batch: Batch, kind: str) -> Batch:
    """Garbage of a kind wherever nothing is to be read.

    A token under padding is always one that the table has (`tokenizer._choose_padding`), and a
    position one of the row; labels have no such promise.
    """
    generator, found = np.random.default_rng(5), dict(batch)
    limits = dict.fromkeys(("token_type_ids", "attention_mask"), 2) | {"segment_ids": 3}
    limits |= dict.fromkeys(("position_ids", *POSITIONS, *PLACES), LENGTH)
    for name, where in hidden(batch).items():
        array = batch[name]
        garbage = generator.integers(0, limits.get(name, VOCABULARY), array.shape)
        if name in LABELS and kind != "other":
            numbers, ids = {"nothing": (np.nan, -100), "huge": (np.inf, 2**31 - 1)}[kind]
            garbage = np.full(array.shape, numbers if array.dtype.kind == "f" else ids)
        found[name] = np.where(where, garbage.astype(array.dtype), array)
    return found


def wider(batch: Batch) -> Batch:
    """The same with columns of padding on the right, and more labels of no weight."""
    padded = [*columns_of(batch)]
    if batch["weights"].ndim == 2:
        padded += [n for n, a in batch.items() if a.shape == batch["weights"].shape]
    return {
        name: np.pad(array, ((0, 0), (0, WIDER), *((0, 0),) * (array.ndim - 2)))
        if name in padded
        else array
        for name, array in batch.items()
    }


def on_the_left(batch: Batch) -> Batch:
    """The same with the padding of each row before it."""
    real = real_tokens(batch)
    # A row of padding alone stays as it is.
    behind = np.where(real.any(1), np.argmax(real[:, ::-1], axis=1), 0)
    found = dict(batch)
    for name in columns_of(batch):
        rows = [np.roll(row, by, axis=0) for row, by in zip(batch[name], behind, strict=True)]
        found[name] = np.stack(rows)
    for name in {*POSITIONS, *PLACES} & batch.keys():
        array = batch[name]
        by = behind.reshape(behind.shape + (1,) * (array.ndim - 1))
        found[name] = ((array + by) % real.shape[1]).astype(array.dtype)
    return found


def apart(batch: Batch, rows: int) -> Batch:
    """A packed batch with a row for each text; those that do not fit are left out."""
    found = {name: np.zeros((rows, *a.shape[1:]), a.dtype) for name, a in batch.items()}
    segments = batch["segment_ids"]
    texts = [(row, s) for row in range(len(segments)) for s in range(1, segments[row].max() + 1)]
    for new, (row, segment) in enumerate(texts[:rows]):
        (here,) = np.nonzero(segments[row] == segment)
        masked = batch.get("masked_positions")
        for name, array in batch.items():
            if array.ndim == 1:
                found[name][new] = array[row]
            elif name in columns_of(batch):
                found[name][new, : len(here)] = array[row, here]
            elif masked is not None and array.shape == masked.shape:
                (own,) = np.nonzero(np.isin(masked[row], here) & (batch["weights"][row] > 0))
                shift = here[0] if name == "masked_positions" else 0
                found[name][new, : len(own)] = array[row, own] - shift
            elif masked is None:
                found[name][new] = array[row]
        found["segment_ids"][new, : len(here)] = 1
    return found


def only_segment(batch: Batch, segment: int) -> Batch:
    """With weight for one text of each row alone."""
    own = batch["segment_ids"] == segment
    if "masked_positions" in batch:
        own = np.take_along_axis(own, batch["masked_positions"], axis=1)
    return batch | {"weights": np.where(own, batch["weights"], 0).astype(np.float32)}


def with_other_neighbours(batch: Batch, segment: int) -> Batch:
    """All texts of the rows but one changed, and what was to be learned of them."""
    generator, others = np.random.default_rng(6), batch["segment_ids"] != segment
    others &= batch["segment_ids"] > 0
    ids = generator.integers(4, VOCABULARY, others.shape)
    labels = generator.integers(0, VOCABULARY, batch["labels"].shape)
    return batch | {
        "input_ids": np.where(others, ids, batch["input_ids"]).astype(np.int32),
        "labels": np.where(batch["weights"] > 0, batch["labels"], labels).astype(np.int32),
    }
