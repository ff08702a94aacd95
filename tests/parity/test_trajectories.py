"""Fifty steps of AdamW in torch for each objective, on the batches and from the start of ours.

The networks and, but for levels, the losses are transformers' own; the optimizer is torch's, the
schedule transformers', and the norm the one that torch clips by.
"""

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from cases import apart
from fixtures import config_for, data_folder, family_folder  # noqa: F401
from made import VOCABULARY
from matrix import ROWS
from steps import STEPS, track_of

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
transformers = pytest.importorskip("transformers")

from ftjax.models import family_of  # noqa: E402
from ftjax.pretrained.export import published_tensors  # noqa: E402

LARGEST, MEAN = 5e-4, 5e-5
"""Of loss and gradient norm, relative to torch's where that is above 1."""


def inputs_of(batch):
    """One text a row, as transformers has it, and which rows count."""
    if "pixel_values" in batch:
        rows = batch["weights"] > 0
        pixels = np.moveaxis((batch["pixel_values"][rows] / 255 - 0.5) / 0.5, -1, 1)
        return {"pixel_values": torch.tensor(pixels, dtype=torch.float32)}, rows, batch
    if "segment_ids" in batch:
        batch = apart(batch, int((batch["position_ids"] == 0).sum()))
        mask = batch["segment_ids"]
    else:
        mask = batch["attention_mask"]
    weights = batch["weights"]
    rows = (weights if weights.ndim == 1 else weights.sum(1)) > 0
    found = {"input_ids": batch["input_ids"], "attention_mask": mask}
    if "token_type_ids" in batch:
        found["token_type_ids"] = batch["token_type_ids"]
    return {name: torch.tensor(array[rows]).long() for name, array in found.items()}, rows, batch


def labels_of_rows(batch, rows):
    labels = torch.tensor(batch["labels"][rows])
    return labels if labels.is_floating_point() else labels.long()


def labels_of_tokens(batch, rows):
    wanted = np.where(batch["weights"] > 0, batch["labels"], -100)
    return torch.tensor(wanted[rows]).long()


def labels_of_guesses(batch, rows):
    wanted = np.full(batch["input_ids"].shape, -100)
    for row, guess in zip(*np.nonzero(batch["weights"]), strict=True):
        wanted[row, batch["masked_positions"][row, guess]] = batch["labels"][row, guess]
    return torch.tensor(wanted[rows])


def following_tokens(batch, rows):
    """Each token where it stands, if it is to be predicted: transformers shifts them."""
    wanted = np.full(batch["input_ids"].shape, -100)
    wanted[:, 1:] = np.where(batch["weights"] > 0, batch["labels"], -100)[:, :-1]
    return torch.tensor(wanted[rows])


def both_ends(batch, rows):
    ends = [batch[name][rows] for name in ("start_positions", "end_positions")]
    return torch.tensor(np.stack(ends)).long()


def of_transformers(model, inputs, labels):
    return model(**inputs, labels=labels).loss


def of_levels(model, inputs, labels):
    """CORN by its paper (2111.08851, eq. 5), but the mean over texts and not over questions."""
    logits, total = model(**inputs).logits, 0.0
    for level in range(logits.shape[1]):
        asked = labels >= level
        above = (labels[asked] > level).float()
        total = total + torch.nn.functional.binary_cross_entropy_with_logits(
            logits[asked, level], above, reduction="sum"
        )
    return total / len(labels)


def of_label_sets(model, inputs, labels):
    return of_transformers(model, inputs, labels.float())


def of_ends(model, inputs, labels):
    """transformers' but that padding is no place for an answer."""
    found, real = model(**inputs), inputs["attention_mask"] > 0
    losses = [
        torch.nn.functional.cross_entropy(logits.masked_fill(~real, -torch.inf), ends)
        for logits, ends in zip((found.start_logits, found.end_logits), labels, strict=True)
    ]
    return sum(losses) / 2


def log_ratios(model, inputs, labels):
    """How much likelier texts have become since the start."""
    if not hasattr(model, "before"):
        # In a list, so that its parameters are not the model's.
        model.before = [copy.deepcopy(model)]

    def logps(network):
        found = network(**inputs).logits[:, :-1].log_softmax(-1)
        wanted = labels[:, 1:]
        found = found.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
        return (found * (wanted >= 0)).sum(-1)

    with torch.no_grad():
        before = logps(model.before[0])
    return logps(model) - before


def of_pairs(model, inputs, labels):
    """DPO by its paper (2305.18290, eq. 7); chosen and rejected texts in turn."""
    chosen, rejected = log_ratios(model, inputs, labels).reshape(-1, 2).T
    return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()


def of_judged(model, inputs, labels):
    """KTO by its paper (2402.01306, eq. 8): answers and those of other prompts in turn."""
    texts, liked = labels
    ratios, others = log_ratios(model, inputs, texts).reshape(-1, 2).T
    margin = 0.1 * (ratios - others.mean().clamp(min=0).detach())
    return torch.where(liked, 1 - margin.sigmoid(), 1 - (-margin).sigmoid()).mean()


def liked_texts(batch, rows):
    """Answers and those of other prompts in turn, and which of the answers are liked."""
    return following_tokens(batch, rows), torch.tensor(batch["desirable"][rows][::2] > 0)


def of_rewards(model, inputs, labels):
    """As InstructGPT has it (2203.02155, eq. 1); chosen and rejected texts in turn."""
    chosen, rejected = model(**inputs).logits.reshape(-1, 2).T
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


def of_neighbours(model, inputs, labels):
    """Each anchor's positive among all (1705.00652, section 4.4); anchors and they in turn."""
    hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    scores = 20 * vectors[::2] @ vectors[1::2].T
    return torch.nn.functional.cross_entropy(scores.masked_fill(labels, -torch.inf), own(scores))


def of_cosines(model, inputs, labels):
    """Squared differences (1908.10084, section 3); both texts of a pair in turn."""
    hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    vectors = (hidden * mask).sum(1) / mask.sum(1)
    cosines = torch.cosine_similarity(vectors[::2], vectors[1::2])
    return torch.nn.functional.mse_loss(cosines, labels)


def alike(batch, rows):
    """Of pairs, whether they are."""
    return torch.tensor(batch["labels"][rows][::2])


def own(scores):
    return torch.arange(len(scores))


def equal_texts(batch, rows):
    """Positives that are the text of an anchor or of another positive."""
    ids = torch.tensor(batch["text_ids"][rows][::2])
    found = (ids[:, 1] == ids[:, 1:]) | (ids[:, 1] == ids[:, :1])
    return found & ~torch.eye(len(ids), dtype=bool)


def of_next_likes(model, inputs, labels):
    """Sampled softmax with logQ (Yi et al. 2019, eq. 3 to 5), the mean over each history's."""
    hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    histories, items, rows = [], [], []
    for place, (ids, shares) in enumerate(labels):
        histories.append(len(histories) + len(items))
        for number, share in zip(ids["next"], shares, strict=True):
            items.append((len(histories) + len(items), number, share))
            rows.append(place)
    scores = 20 * vectors[histories] @ vectors[[at for at, _, _ in items]].T
    scores = scores - torch.tensor([share for _, _, share in items])
    total = 0.0
    for own, place in enumerate(rows):
        liked = labels[place][0]["next"] + labels[place][0]["known"]
        others = [n for n, (_, number, _) in enumerate(items) if number not in liked]
        found = scores[place, [own, *others]]
        total = total + (found.logsumexp(0) - found[0]) / len(labels[place][0]["next"])
    return total / len(labels)


def items_of_rows(batch, rows):
    """Of each history the items that are known and that came next, and the shares of these."""
    found = []
    _, first = np.unique(batch["example_ids"][rows], return_index=True)
    for row in np.flatnonzero(rows)[np.sort(first)]:
        real = batch["target_ids"][row] >= 0
        ids = {
            "known": batch["known_ids"][row].tolist(),
            "next": batch["target_ids"][row][real].tolist(),
        }
        found.append((ids, batch["log_shares"][row][real].tolist()))
    return found


def completions_of(batch, rows):
    """Tokens that were drawn, and what each completion is worth beside its prompt's others."""
    return following_tokens(batch, rows), torch.tensor(batch["advantages"][rows])


def of_completions(model, inputs, labels):
    """DAPO's mean over tokens (2503.14476, eq. 12) where the ratio is 1: REINFORCE's gradient."""
    texts, gains = labels
    logps = model(**inputs).logits[:, :-1].log_softmax(-1)
    wanted = texts[:, 1:]
    logps = logps.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    ratio = (logps - logps.detach()).exp()
    return -(ratio * gains[:, None])[wanted >= 0].mean()


SEQUENCES = "AutoModelForSequenceClassification"
# Objective -> (transformers' class, its labels of our batch, loss, further fields of its config).
REFERENCES = {
    "classification": (SEQUENCES, labels_of_rows, of_transformers, {}),
    "multi_label": (
        SEQUENCES,
        labels_of_rows,
        of_label_sets,
        {"problem_type": "multi_label_classification"},
    ),
    "ordinal": (SEQUENCES, labels_of_rows, of_levels, {}),
    "regression": (SEQUENCES, labels_of_rows, of_transformers, {"problem_type": "regression"}),
    "token_classification": (
        "AutoModelForTokenClassification",
        labels_of_tokens,
        of_transformers,
        {},
    ),
    "masked_lm": ("AutoModelForMaskedLM", labels_of_guesses, of_transformers, {}),
    "causal_lm": ("AutoModelForCausalLM", following_tokens, of_transformers, {}),
    "preference": ("AutoModelForCausalLM", following_tokens, of_pairs, {}),
    "kto": ("AutoModelForCausalLM", liked_texts, of_judged, {}),
    "grpo": ("AutoModelForCausalLM", completions_of, of_completions, {}),
    "reward": (SEQUENCES, following_tokens, of_rewards, {"num_labels": 1}),
    "image_classification": (
        "AutoModelForImageClassification",
        labels_of_rows,
        of_transformers,
        {},
    ),
    "embedding": ("AutoModel", equal_texts, of_neighbours, {}),
    "recommendation": ("AutoModel", items_of_rows, of_next_likes, {}),
    "setfit": ("AutoModel", alike, of_cosines, {}),
    "sft": ("AutoModelForCausalLM", following_tokens, of_transformers, {}),
    "seq2seq": ("AutoModelForSeq2SeqLM", labels_of_tokens, of_transformers, {}),
    "span_extraction": ("AutoModelForQuestionAnswering", both_ends, of_ends, {}),
}


TIED = ("decoder.weight", "decoder.bias", "lm_head.weight", "embed_tokens.weight")
# Of what is compared, nothing goes through it.
UNUSED = ("pooler.dense.weight", "pooler.dense.bias")


def torch_model(track, name, fields):
    """transformers' network with the parameters that ours starts from."""
    network = track.parts.rebuild(track.start, track.parts.frozen).backbone
    folder = Path(track.config.model.reference)
    kept = json.loads((folder / "config.json").read_text())
    outputs = len(getattr(track.parts.objective, "classes", [])) or 2
    rates = ("attention_probs_dropout_prob", "hidden_dropout_prob", "dropout_rate")
    kept |= dict.fromkeys(rates, 0.0) | {"num_labels": outputs, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(**kept | fields)
    assert getattr(config, "vocab_size", VOCABULARY) == VOCABULARY
    model = getattr(transformers, name).from_config(config).train()
    tensors = published_tensors(network, family_of(kept["model_type"]))
    state = {path: torch.tensor(np.asarray(value)) for path, value in tensors}
    if "image_size" in kept:
        # In memory transformers has other names for them than in files.
        return loaded_from_file(model, state)
    missing, unknown = model.load_state_dict(state, strict=False)
    model.tie_weights()
    assert not unknown
    assert all(path.endswith((*TIED, *UNUSED)) for path in missing), missing
    return model


def loaded_from_file(model, state):
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        state["dinov2.embeddings.mask_token"] = torch.zeros(1, model.config.hidden_size)
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(state, f"{folder}/model.safetensors", {"format": "pt"})
        kind = type(model)
        found, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    return found.train()


def torch_steps(model, loss, batches, settings):
    """Loss and gradient norm before each step of AdamW with a linear schedule."""
    # Scales of branches decay as kernels do.
    named = [(p, p.ndim > 1 or n.endswith("lambda1")) for n, p in model.named_parameters()]
    kernels, rest = ([p for p, decays in named if decays == wanted] for wanted in (True, False))
    groups = [
        {"params": kernels, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, len(batches))
    found = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
        optimizer.step()
        schedule.step()
        found.append((float(value.detach()), float(norm)))
    return np.asarray(found)


@pytest.mark.parametrize("objective", ROWS)
def test_steps_of_torch(objective, config_for, record_property):  # noqa: F811
    assert objective in REFERENCES, "name its reference in tests/parity/test_trajectories.py"
    name, labels_of, loss_of, fields = REFERENCES[objective]
    track = track_of(objective, config_for)
    model = torch_model(track, name, fields)

    def loss(model, batch):
        inputs, rows, batch = inputs_of(batch)
        return loss_of(model, inputs, labels_of(batch, rows))

    expected = torch_steps(model, loss, track.batches, track.config.optimizer)
    differences = (track.steps - expected) / np.maximum(1.0, np.abs(expected))
    largest, mean = np.abs(differences).max(0), np.abs(differences.mean(0))
    assert len(expected) == STEPS
    assert (largest <= LARGEST).all() and (mean <= MEAN).all(), (largest, mean)
    record_property("reference", type(model).__name__)
    record_property("largest", f"{largest.max():.0e}")
