"""The divergence from a teacher against trl's GKD trainer."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from trl.experimental.gkd import GKDTrainer  # noqa: E402

from ftjax.losses.distillation import of_classes  # noqa: E402


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_loss_and_gradient(beta, temperature):
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 3, 4, 11)).astype(np.float32) * 2
    theirs = torch.tensor(student, requires_grad=True)
    loss = GKDTrainer.generalized_jsd_loss(
        theirs, torch.tensor(teacher), beta=beta, temperature=temperature, reduction="sum"
    )
    loss.backward()

    def total(student):
        # What trl leaves out is the temperature's square.
        found = of_classes(student, jnp.asarray(teacher), temperature=temperature, beta=beta)
        return found.sum() / temperature**2

    found, gradient = jax.value_and_grad(total)(jnp.asarray(student))
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-5)
