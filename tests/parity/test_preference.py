"""Losses of pairs, their gradients and metrics against trl's trainers."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import Case, sums_of
from compare import assert_same_gradients
from fixtures import config_for, data_folder, family_folder  # noqa: F401

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

from ftjax.config import override  # noqa: E402
from ftjax.models import family_of  # noqa: E402
from ftjax.objectives import kto as kto_module  # noqa: E402
from ftjax.pretrained.export import published_tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

# Our loss type -> trl's trainer and its settings. What both call beta, both have at the same.
CASES = {
    "sigmoid": (trl.DPOTrainer, trl.DPOConfig, {}),
    "sigmoid_norm": (trl.DPOTrainer, trl.DPOConfig, {}),
    "ipo": (trl.DPOTrainer, trl.DPOConfig, {}),
    "robust": (trl.DPOTrainer, trl.DPOConfig, {"label_smoothing": 0.2}),
    "apo_zero": (trl.DPOTrainer, trl.DPOConfig, {}),
    "orpo": (ORPOTrainer, ORPOConfig, {}),
    "simpo": (CPOTrainer, CPOConfig, {"simpo_gamma": 0.7, "cpo_alpha": 0.0}),
    "cpo": (CPOTrainer, CPOConfig, {"cpo_alpha": 0.6}),
}
# trl's CPO has DPO's name for its own loss.
OTHER_NAMES = {"cpo": "sigmoid"}
LIVE = "objective.precompute_ref_log_probs"
METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")


@pytest.fixture
def trainer_of(tmp_path):
    """(loss type, network, folder of the checkpoint, records) -> trl's trainer, a pair a batch."""

    def make(loss_type, model, folder, records):
        kind, config, fields = CASES[loss_type]
        fields = fields | {"loss_type": OTHER_NAMES.get(loss_type, loss_type)}
        given = {}
        if kind is trl.DPOTrainer:
            given["ref_model"] = transformers.AutoModelForCausalLM.from_pretrained(folder)
        if kind is ORPOTrainer:
            del fields["loss_type"]
        args = config(
            output_dir=str(tmp_path / "trl"),
            beta=0.3,
            max_length=24,
            per_device_train_batch_size=1,
            report_to=[],
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            **fields,
        )
        return kind(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_list(records),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
            **given,
        )

    return make


@pytest.mark.parametrize("loss_type", CASES)
def test_loss_gradient_and_metrics(loss_type, config_for, trainer_of):  # noqa: F811
    config = override(config_for("preference", "llama"), {LIVE: True})
    config = override(config, {"objective.loss_type": loss_type})
    fields = {"beta": 0.3, **CASES[loss_type][2], "precompute_ref_log_probs": False}
    fields = {f"objective.{name}": value for name, value in fields.items()}
    config = override(config, {n: value for n, value in fields.items() if n in config.fields})
    case = Case(config)
    batch = case.batch()
    sums = case.sums(case.trainable, batch)
    ours = case.parts.rebuild(case.trainable, case.parts.frozen)

    folder = Path(config.model.reference)
    source = Path(config.data.source.format(split="train"))
    records = [json.loads(line) for line in source.read_text().splitlines()]
    # What we put between prompt and answer is nothing.
    records = [r | {n: f" {r[n]}" for n in ("chosen", "rejected")} for r in records]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    family = family_of(model.config.model_type)
    tensors = dict(published_tensors(ours.backbone, family))
    model.load_state_dict({n: torch.tensor(np.asarray(t)) for n, t in tensors.items()})
    trainer = trainer_of(loss_type, model.train(), folder, records)
    losses = [trainer.compute_loss(model, inputs) for inputs in trainer.get_train_dataloader()]
    assert len(losses) == len(records)
    loss = sum(losses) / len(losses)
    loss.backward()

    assert float(sums.loss / sums.weight) == pytest.approx(float(loss.detach()), abs=1e-5)
    gradients = {path: g / sums.weight for path, g in sums.gradient.items()}
    gradients = case.parts.rebuild(gradients, case.parts.frozen)
    assert_same_gradients(dict(published_tensors(gradients.backbone, family)), model)
    found = trainer._metrics if isinstance(trainer, trl.DPOTrainer) else trainer._stored_metrics
    for name in METRICS:
        total, count = sums.metrics[name]
        theirs = np.mean([float(value) for value in found["train"][name]])
        assert float(total / count) == pytest.approx(theirs, abs=1e-5), name


def test_kto(config_for, tmp_path, monkeypatch):  # noqa: F811
    """With trl's pairs, each answer beside that of the row before it."""
    monkeypatch.setattr(kto_module, "partners_of", lambda count, _: np.roll(np.arange(count), 1))
    fields = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7}
    config = config_for("kto", "llama", **{f"objective.{n}": v for n, v in fields.items()})
    case = Case(config)
    # From noise to a network that knows nothing: answers to other prompts become likelier.
    before = dataclasses.replace(case.parts, trainable=case.trainable)
    sums = jax.jit(functools.partial(sums_of, before))(case.parts.trainable, case.batch())
    ours = case.parts.rebuild(case.trainable, case.parts.frozen)
    folder = Path(config.model.reference)
    source = Path(config.data.source.format(split="train"))
    records = [json.loads(line) for line in source.read_text().splitlines()]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
    family = family_of(model.config.model_type)
    tensors = dict(published_tensors(ours.backbone, family))
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    reference.load_state_dict({n: torch.tensor(np.asarray(t)) for n, t in tensors.items()})
    trainer = trl.KTOTrainer(
        model=model,
        ref_model=reference,
        args=trl.KTOConfig(
            output_dir=str(tmp_path / "trl"),
            max_length=24,
            per_device_train_batch_size=len(records),
            train_sampling_strategy="sequential",
            report_to=[],
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            **fields,
        ),
        train_dataset=datasets.Dataset.from_list(
            [r | {"completion": f" {r['completion']}"} for r in records]
        ),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    (inputs,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    assert float(sums.metrics["kl"][0]) > 0
    assert float(sums.loss / sums.weight) == pytest.approx(float(loss.detach()), abs=1e-5)
    gradients = {path: g / sums.weight for path, g in sums.gradient.items()}
    gradients = case.parts.rebuild(gradients, case.parts.frozen)
    assert_same_gradients(dict(published_tensors(gradients.backbone, family)), model)
    for name in ("kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        total, count = sums.metrics[name]
        (theirs,) = trainer._metrics["train"][name]
        assert float(total / count) == pytest.approx(theirs, abs=1e-4), name


def test_reward(config_for, tmp_path):  # noqa: F811
    """With margins and centering."""
    fields = {"data.margin_field": "margin", "objective.center_rewards_coefficient": 0.05}
    config = config_for("reward", "llama")
    source = Path(config.data.source.format(split="train"))
    records = [json.loads(line) for line in source.read_text().splitlines()]
    records = [r | {"margin": n % 3 / 2} for n, r in enumerate(records)]
    for split in ("train", "validation", "test"):
        rows = records if split == "train" else records[: 6 if split == "test" else 7]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = override(config, fields | {"data.source": str(tmp_path / "{split}.jsonl")})
    case = Case(config)
    sums = case.sums(case.trainable, case.batch())
    ours = case.parts.rebuild(case.trainable, case.parts.frozen)
    folder = Path(config.model.reference)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, pad_token_id=0
    ).train()
    family = family_of(model.config.model_type)
    tensors = dict(published_tensors(ours.backbone, family))
    model.load_state_dict({n: torch.tensor(np.asarray(t)) for n, t in tensors.items()})
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(
            output_dir=str(tmp_path / "trl"),
            max_length=24,
            per_device_train_batch_size=len(records),
            center_rewards_coefficient=0.05,
            report_to=[],
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=datasets.Dataset.from_list(
            [
                {"margin": r["margin"]}
                | {n: f"{r['prompt']} {r[n]}" for n in ("chosen", "rejected")}
                for r in records
            ]
        ),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    (inputs,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    assert float(sums.loss / sums.weight) == pytest.approx(float(loss.detach()), abs=1e-5)
    gradients = {path: g / sums.weight for path, g in sums.gradient.items()}
    gradients = case.parts.rebuild(gradients, case.parts.frozen)
    assert_same_gradients(dict(published_tensors(gradients.backbone, family)), model)
    for name in ("accuracy", "margin", "mean_reward"):
        total, count = sums.metrics[name]
        (theirs,) = trainer._metrics["train"][name]
        assert float(total / count) == pytest.approx(theirs, abs=1e-5), name
