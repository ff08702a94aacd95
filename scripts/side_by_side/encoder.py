"""The training step of MiniLM, and a whole epoch on licence clauses, next to torch's."""

import contextlib
import functools
import io
import os
import tempfile
import time

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from side_by_side.timing import OURS, Timing, report, seconds_of

from ftjax.config import override
from ftjax.data.examples import plan
from ftjax.experiment import load_experiment
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.training.build import Parts, build
from ftjax.training.loop import Clock, CompiledByShape
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.step import make_train_step, new_state

SHAPES = flags.DEFINE_list("shapes", ["32x128", "32x64"], "Rows x tokens of the encoder's step.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed rounds of each side.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("epochs", 2, "Timed epochs of each side.", lower_bound=1)
EXPERIMENT = flags.DEFINE_string(
    "experiment", "experiments/license_clauses.py", "What the encoder learns."
)

PARITY_STEPS = 5
PARITY_TOLERANCE = 1e-3


class Ours:
    """One training step after the other, as `ftjax.training.loop` takes them."""

    name = OURS

    def __init__(self, parts: Parts, config: ConfigDict, total_steps: int):
        schedule = make_schedule(config.optimizer, total_steps)
        optimizer = make_optimizer(config.optimizer, schedule, parts.trainable)
        step = make_train_step(parts.rebuild, parts.objective.loss, optimizer, schedule)
        self._parts, self._clock = parts, Clock()
        self._step = CompiledByShape(parts.parallel.map_train(step), self._clock)
        start = new_state(config.seed, parts.trainable, optimizer)
        self._state = parts.parallel.place(jax.tree.map(np.array, start))

    def steps(self, batches: list[dict]) -> list[float]:
        """Losses; returns when the device is done."""
        metrics = []
        for batch in batches:
            placed = self._parts.parallel.place_batch(batch)
            self._state, result = self._step(self._state, self._parts.frozen, placed)
            metrics.append(result["loss"])
        return [float(loss) for loss in metrics]

    @property
    def compile_seconds(self) -> float:
        """So far."""
        return self._clock.compile


class Torch:
    """The same with transformers' model: SDPA attention, fused AdamW."""

    name = "torch loop"

    def __init__(
        self, parts: Parts, config: ConfigDict, total_steps: int, *, with_lora: bool = False
    ):
        import torch

        self._torch, self.compile_seconds = torch, 0.0
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model = torch_classifier(parts, config).to(self.device).train()
        if with_lora:
            from side_by_side.adapters import with_lora as adapted

            self.model.encoder = adapted(self.model.encoder)
        self._forward = torch.compile(self.model) if self.device == "cuda" else self.model
        self._optimizer, self._schedule = torch_optimizer(self.model, config, total_steps)
        self._clip = config.optimizer.max_gradient_norm
        self._half = config.model.dtype == "bfloat16"
        self._seen: set[tuple] = set()

    def steps(self, batches: list[dict]) -> list[float]:
        """Losses; returns when the device is done."""
        losses = []
        for batch in batches:
            start = time.perf_counter()
            losses.append(self._one(batch))
            if self.device == "cuda" and batch["input_ids"].shape not in self._seen:
                self._torch.cuda.synchronize()
                self.compile_seconds += time.perf_counter() - start
                self._seen.add(batch["input_ids"].shape)
        return [float(loss) for loss in losses]

    def _one(self, batch: dict):
        torch = self._torch
        tensors = {
            name: torch.from_numpy(batch[name]).to(self.device)
            for name in ("input_ids", "attention_mask", "labels", "weights")
        }
        with torch.autocast(self.device, torch.bfloat16, enabled=self._half):
            loss = self._forward(**tensors)["loss"]
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self._optimizer.step()
        self._schedule.step()
        return loss.detach()


def torch_classifier(parts: Parts, config: ConfigDict):
    """transformers' encoder with our pooling and our head, at our start values."""
    import torch
    import transformers

    folder = checkpoint_folder(config.model.reference)
    rates = {}
    if config.model.dropout is not None:
        rates = dict.fromkeys(
            ("hidden_dropout_prob", "attention_probs_dropout_prob"), config.model.dropout
        )
    encoder = transformers.AutoModel.from_pretrained(
        folder, attn_implementation="sdpa", add_pooling_layer=False, dtype=torch.float32, **rates
    )

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            kernel = np.asarray(parts.trainable["classifier.kernel"])
            self.encoder = encoder
            self.dropout = torch.nn.Dropout(config.model.head_dropout)
            self.classifier = torch.nn.Linear(*kernel.shape)
            self.classifier.weight.data = torch.from_numpy(kernel.T.copy())
            self.classifier.bias.data.zero_()

        def forward(self, input_ids, attention_mask, labels, weights=None):
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
            mask = attention_mask[..., None].to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            logits = self.classifier(self.dropout(pooled))
            losses = torch.nn.functional.cross_entropy(
                logits.float(), labels.long(), reduction="none"
            )
            weights = torch.ones_like(losses) if weights is None else weights
            return {"loss": (losses * weights).sum() / weights.sum(), "logits": logits}

    return Classifier()


def torch_optimizer(model, config: ConfigDict, total_steps: int):
    """Fused AdamW with our decay mask, and our schedule."""
    import torch

    settings = config.optimizer
    moving = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in moving if p.ndim > 1]
    spared = [p for p in moving if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    ours = make_schedule(settings, total_steps)
    factors = [float(ours(step)) / settings.learning_rate for step in range(total_steps + 1)]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factors[min(step, total_steps)]
    )
    return optimizer, schedule


def trainer_epoch(parts: Parts, config: ConfigDict, seed: int) -> float:
    """Seconds of one epoch of the Hugging Face Trainer: grouped by length, dynamic padding."""
    import torch
    import transformers

    objective, size = parts.objective, config.data.batch_size
    tokens, labels = objective.examples["train"].tokens, objective.labels["train"]
    rows = [
        {
            "input_ids": tokens.input_ids[start:end].tolist(),
            "labels": int(label),
        }
        for start, end, label in zip(tokens.offsets[:-1], tokens.offsets[1:], labels, strict=True)
    ]
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=size,
            learning_rate=config.optimizer.learning_rate,
            max_grad_norm=config.optimizer.max_gradient_norm,
            warmup_steps=config.optimizer.warmup_fraction,
            weight_decay=config.optimizer.weight_decay,
            optim="adamw_torch_fused",
            train_sampling_strategy="group_by_length",
            bf16=on_gpu,
            torch_compile=on_gpu,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=not on_gpu,
            seed=seed,
        )
        trainer = transformers.Trainer(
            torch_classifier(parts, config),
            arguments,
            train_dataset=rows,
            data_collator=transformers.DataCollatorWithPadding(objective.tokenizer),
        )
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        return time.perf_counter() - start


def random_batches(parts: Parts, rows: int, length: int, count: int) -> list[dict]:
    """Full rows of random tokens of the training data."""
    random, classes = np.random.default_rng(0), len(parts.objective.classes)
    tokens = np.unique(parts.objective.examples["train"].token_ids())
    return [
        {
            "input_ids": random.choice(tokens, (rows, length)).astype(np.int32),
            "attention_mask": np.ones((rows, length), np.int32),
            "labels": random.integers(0, classes, rows).astype(np.int32),
            "weights": np.ones(rows, np.float32),
        }
        for _ in range(count)
    ]


def epoch_batches(parts: Parts, config: ConfigDict, epoch: int) -> list[dict]:
    """All batches of an epoch, in our buckets."""
    size = config.data.batch_size
    examples = parts.objective.examples["train"]
    return [
        examples.batch(planned.indices, rows=size, length=planned.length)
        for planned in plan(examples, size, seed=config.seed, epoch=epoch)
    ]


def check_losses(config: ConfigDict) -> float:
    """Largest difference of the losses over a few steps without dropout.

    Raises:
        ValueError: the two sides do not train the same network.
    """
    sure = override(config, {"model.dropout": 0.0, "model.head_dropout": 0.0})
    sure.model.dtype = "float32"
    parts = build(sure)
    batches = random_batches(parts, 8, 32, PARITY_STEPS)
    # A GPU's own choice, TensorFloat-32, keeps three digits; torch's is float32.
    with jax.default_matmul_precision("highest"):
        ours, theirs = (side(parts, sure, 100).steps(batches) for side in (Ours, Torch))
    difference = float(np.abs(np.subtract(ours, theirs)).max())
    if difference > PARITY_TOLERANCE:
        raise ValueError(f"Losses differ by {difference:.2e}: {ours} against {theirs}.")
    return difference


@functools.cache
def encoder_config() -> ConfigDict:
    """What is compared."""
    config = load_experiment(EXPERIMENT.value).config
    config.retention.enabled = False
    if jax.default_backend() == "gpu":
        config.model.dtype = "bfloat16"
    return config


@functools.cache
def parts_to_time(console: Console) -> Parts:
    """Data and weights, after a look at the losses."""
    difference = check_losses(encoder_config())
    console.print(f"Losses without dropout differ by {difference:.1e} at most.")
    return build(encoder_config())


def compare_steps(console: Console) -> dict:
    """Both sides in turn on each shape."""
    parts, config = parts_to_time(console), encoder_config()
    results = {}
    for shape in SHAPES.value:
        rows, length = (int(number) for number in shape.split("x"))
        batches = random_batches(parts, rows, length, 2)
        sides = [side(parts, config, 10_000) for side in (Ours, Torch)]
        for side in sides:
            side.steps(batches)
        timings = {side.name: Timing([], side.compile_seconds) for side in sides}
        for _ in range(ROUNDS.value):
            for side in sides:
                taken = seconds_of(functools.partial(side.steps, batches))
                timings[side.name].seconds.append(taken / len(batches))
        results[shape] = report(console, f"training step, {shape}", timings)
    return results


def compare_epochs(console: Console) -> dict:
    """Ours, the bare loop on the same batches, and the Trainer, in turn."""
    parts, config = parts_to_time(console), encoder_config()
    total = len(epoch_batches(parts, config, 0)) * EPOCHS.value
    sides = [side(parts, config, total) for side in (Ours, Torch)]
    shapes = {batch["input_ids"].shape: batch for batch in epoch_batches(parts, config, 0)}
    for side in sides:
        side.steps(list(shapes.values()))
    timings = {side.name: Timing([], side.compile_seconds) for side in sides}
    timings["Trainer"] = Timing([])
    for epoch in range(EPOCHS.value):
        for side in sides:
            batches = functools.partial(epoch_batches, parts, config, epoch)
            taken = seconds_of(lambda side=side, batches=batches: side.steps(batches()))
            timings[side.name].seconds.append(taken)
        timings["Trainer"].seconds.append(trainer_epoch(parts, config, epoch))
    return report(console, "one epoch", timings, len(parts.objective.labels["train"]), "examples")
