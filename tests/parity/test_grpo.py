"""GRPO's losses, gradients and metrics against trl's trainer, on the same completions."""

import os
from pathlib import Path

import numpy as np
import pytest
from cases import Case
from compare import assert_same_gradients
from fixtures import config_for, data_folder, family_folder  # noqa: F401

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from ftjax.config import override  # noqa: E402
from ftjax.models import family_of  # noqa: E402
from ftjax.pretrained.export import published_tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
LONGEST = 8


def trainer_of(model, folder, output, **fields):
    args = trl.GRPOConfig(
        output_dir=str(output),
        num_generations=2,
        per_device_train_batch_size=8,
        max_completion_length=LONGEST,
        report_to=[],
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        **fields,
    )
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=args,
        train_dataset=datasets.Dataset.from_list([{"prompt": "word1"}] * 8),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder, padding_side="left"),
    )


def inputs_of(batch):
    """Prompts padded on the left and completions on the right, as trl has them."""
    rows = np.flatnonzero((batch["weights"] > 0).any(1))
    found = {
        name: np.zeros((len(rows), size), np.int64)
        for name, size in (("prompt", 24), ("completion", LONGEST))
    }
    masks = {name: np.zeros_like(array) for name, array in found.items()}
    old = np.zeros((len(rows), LONGEST), np.float32)
    for row, index in enumerate(rows):
        places = np.flatnonzero(batch["weights"][index] > 0)
        prompt, count = places[0] + 1, len(places)
        found["prompt"][row, 24 - prompt :] = batch["input_ids"][index, :prompt]
        masks["prompt"][row, 24 - prompt :] = 1
        found["completion"][row, :count] = batch["labels"][index, places]
        masks["completion"][row, :count] = 1
        old[row, :count] = batch["old_logps"][index, places]
    tensors = {f"{name}_ids": torch.tensor(array) for name, array in found.items()}
    tensors |= {f"{name}_mask": torch.tensor(array) for name, array in masks.items()}
    tensors["advantages"] = torch.tensor(batch["advantages"][rows])
    tensors["old_per_token_logps"] = torch.tensor(old)
    tensors["num_items_in_batch"] = tensors["completion_mask"].sum()
    return tensors


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_loss_gradient_and_metrics(loss_type, beta, config_for, tmp_path):  # noqa: F811
    fields = {
        "loss_type": loss_type,
        "beta": beta,
        "temperature": 0.7,
        "epsilon": 0.1,
        "epsilon_high": 0.25,
    }
    config = override(
        config_for("grpo", "llama"), {f"objective.{name}": v for name, v in fields.items()}
    )
    case = Case(config)
    batch = case.batch()
    ours = case.parts.rebuild(case.trainable, case.parts.frozen)
    # The network as it was a little earlier, so that some ratios are clipped.
    logps = np.asarray(case.parts.objective._scored(ours, batch)["old_logps"])
    noise = np.random.default_rng(0).normal(scale=0.3, size=logps.shape)
    batch["old_logps"] = (logps + noise).astype(np.float32)
    sums = case.sums(case.trainable, batch)

    folder = Path(config.model.reference)
    family = family_of("llama")
    networks = []
    for parameters in (case.trainable, case.parts.trainable):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        network = case.parts.rebuild(parameters, case.parts.frozen)
        tensors = dict(published_tensors(network.backbone, family))
        model.load_state_dict({n: torch.tensor(np.asarray(t)) for n, t in tensors.items()})
        networks.append(model)
    model, before = networks
    trainer = trainer_of(model.train(), folder, tmp_path / "trl", **fields | {"beta": 0.0})
    # Set here, so that it does not load a reference of its own: its log-probabilities are given.
    trainer.beta = beta
    inputs = inputs_of(batch)
    if beta:
        ids, mask = (
            torch.cat([inputs[f"{part}_{name}"] for part in ("prompt", "completion")], dim=1)
            for name in ("ids", "mask")
        )
        with torch.no_grad():
            logits = before(input_ids=ids, attention_mask=mask).logits[:, 23:-1]
        logs = (logits / 0.7).log_softmax(-1)
        wanted = inputs["completion_ids"][..., None]
        inputs["ref_per_token_logps"] = logs.gather(-1, wanted)[..., 0]
    trainer.current_gradient_accumulation_steps = 1
    trainer.args.steps_per_generation = 1
    loss = trainer._compute_loss(model, inputs)
    loss.backward()

    assert float(sums.loss / sums.weight) == pytest.approx(float(loss.detach()), abs=1e-5)
    gradients = {path: g / sums.weight for path, g in sums.gradient.items()}
    gradients = case.parts.rebuild(gradients, case.parts.frozen)
    assert_same_gradients(dict(published_tensors(gradients.backbone, family)), model)
    names = ["clip_ratio/region_mean", "entropy", *(["kl"] if beta else [])]
    for name in names:
        total, count = sums.metrics[name]
        theirs = np.mean([float(value) for value in trainer._metrics["train"][name]])
        assert float(total / count) == pytest.approx(theirs, abs=1e-5), name
    assert float(sums.metrics["clip_ratio/region_mean"][0]) > 0
