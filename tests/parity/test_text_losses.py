"""Losses of labels and numbers against torch's, as transformers' classifiers use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ftjax.losses import label_sets, numbers  # noqa: E402

ROWS, LABELS = 6, 4
SIZE = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}


def assert_same(ours, theirs, logits):
    """Loss and gradient of [rows, outputs] logits; ours is given a row that does not count."""
    tensor = torch.tensor(logits, requires_grad=True)
    expected = theirs(tensor)
    expected.backward()
    padded = np.concatenate([logits, np.full_like(logits[:1], 7.0)])

    def mean(values):
        total, weight, _ = ours(values)
        return total / weight

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(padded))
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(gradient[:-1], tensor.grad, rtol=1e-5, atol=1e-7)
    assert not gradient[-1].any()


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    logits = (3 * random.normal(size=(ROWS, LABELS))).astype(np.float32)
    labels = random.integers(0, 2, (ROWS + 1, LABELS))
    weights = np.append(np.ones(ROWS, np.float32), 0)
    return logits, {"labels": labels, "weights": weights}


@pytest.mark.parametrize("weights", [None, (2.0, 0.5, 1.0, 10.0)])
def test_labels(case, weights):
    logits, batch = case
    theirs = torch.nn.BCEWithLogitsLoss(
        pos_weight=None if weights is None else torch.tensor(weights)
    )
    targets = torch.tensor(batch["labels"][:ROWS], dtype=torch.float32)
    assert_same(
        lambda values: label_sets.loss(values, batch, pos_weight=weights),
        lambda values: theirs(values, targets),
        logits,
    )


@pytest.mark.parametrize("delta", [None, 0.7, 2.0])
def test_numbers(case, delta):
    logits, batch = case
    batch = batch | {"labels": batch["labels"][:, 0] * 2.5 - 1.0}
    targets = torch.tensor(batch["labels"][:ROWS], dtype=torch.float32)
    theirs = torch.nn.MSELoss() if delta is None else torch.nn.HuberLoss(delta=delta)
    scale = 1.0 if delta is None else 2.0
    assert_same(
        lambda values: numbers.loss(values, batch, huber_delta=delta),
        lambda values: scale * theirs(values[:, 0], targets),
        logits[:, :1],
    )


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_what_transformers_makes_of_its_problem_types(case, problem):
    _, batch = case
    outputs = LABELS if problem == "multi_label_classification" else 1
    config = transformers.BertConfig(**SIZE, num_labels=outputs, problem_type=problem)
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(0, 30, (ROWS, 8))
    targets = batch["labels"][:, :outputs].astype(np.float32)
    found = model(input_ids=ids, labels=torch.tensor(targets[:ROWS]).squeeze(-1))
    padded = np.concatenate([found.logits.detach().numpy(), np.zeros((1, outputs), np.float32)])
    if problem == "regression":
        total, weight, _ = numbers.loss(padded, batch | {"labels": targets[:, 0]})
    else:
        total, weight, _ = label_sets.loss(padded, batch)
    assert float(total / weight) == pytest.approx(float(found.loss.detach()), rel=1e-6)
