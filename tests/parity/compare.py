"""Holds a network of ours against transformers' torch model of the same weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from ftjax.models import family_of
from ftjax.models.layers import Compute
from ftjax.pretrained.checkpoint import Checkpoint
from ftjax.pretrained.export import export
from ftjax.pretrained.load import dotted, load_model


def assert_same_network(
    folder,
    torch_model,
    network: str,
    inputs: dict[str, np.ndarray],
    *,
    outputs: tuple[str, ...] = ("last_hidden_state",),
    valid: np.ndarray | None = None,
    tolerance: float = 1e-5,
    gradient_tolerance: float = 1e-5,
    hidden_states: bool = True,
    compute: Compute = Compute(),  # noqa: B008
    torch_names: dict[str, str] | None = None,
    torch_inputs: dict[str, np.ndarray] | None = None,
):
    """Saves `torch_model`, loads it here, and compares outputs, a loss and all its gradients.

    The loss is the mean of the (valid) outputs times fixed random numbers, so that every output
    matters and has its own weight. Gradients are compared relative to the largest of each tensor
    (plus the typical gradient of the whole network, since some are zero but for rounding).

    Args:
        folder: where to save it.
        torch_model: transformers' model, any mode; it is put in eval mode.
        network: name of our network.
        inputs: keyword arguments of both, numpy.
        torch_inputs: keyword arguments of torch's, where they differ.
        outputs: fields to compare.
        valid: [batch, length], rows and columns to compare; all by default.
        tolerance: largest absolute difference of outputs, hidden states and the loss.
        gradient_tolerance: largest relative difference of gradients.
        hidden_states: whether to compare every layer's.
        compute: how ours is computed.
        torch_names: our output field ("hidden_states" too) -> torch's, where they differ.
    """
    torch_model = torch_model.float().eval()
    torch_model.save_pretrained(folder)
    model = load_model(folder, network, compute)
    tensors = {name: torch.tensor(value) for name, value in (torch_inputs or inputs).items()}
    reference = torch_model(**tensors, output_hidden_states=hidden_states)
    names = torch_names or {}
    targets = {field: reference[names.get(field, field)] for field in outputs}
    random = np.random.default_rng(0)
    weights = {
        field: random.normal(size=target.shape).astype(np.float32) * _mask(valid, target)
        for field, target in targets.items()
    }
    count = sum(np.count_nonzero(weight) for weight in weights.values())

    torch_loss = sum((targets[f] * torch.tensor(weights[f])).sum() for f in outputs) / count
    torch_loss.backward()
    torch_loss = torch_loss.item()

    graphdef, state, constants = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(state):
        def loss(state):
            result = nnx.merge(graphdef, state, constants)(**inputs)
            return sum(jnp.sum(getattr(result, f) * weights[f]) for f in outputs) / count, result

        return jax.value_and_grad(loss, has_aux=True)(state)

    (loss, result), gradients = run(state)
    for field, target in targets.items():
        _assert_close(field, getattr(result, field), target, valid, tolerance)
    if hidden_states:
        ours = result.hidden_states
        theirs = reference[names.get("hidden_states", "hidden_states")]
        assert len(ours) == len(theirs), (len(ours), len(theirs))
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            _assert_close(f"hidden_states[{index}]", mine, other, valid, tolerance)
    assert abs(float(loss) - torch_loss) <= tolerance, (float(loss), torch_loss)
    _assert_same_gradients(folder, torch_model, network, gradients, gradient_tolerance)
    _assert_export_goes_back(folder, torch_model, model, network)
    return model


def _assert_export_goes_back(folder, torch_model, model, network):
    """transformers loads our export, and every tensor in it is the one it saved, bit for bit."""
    export(model, network, folder, folder / "export")
    again = type(torch_model).from_pretrained(folder / "export")
    again.save_pretrained(folder / "again")
    first, second = Checkpoint(folder), Checkpoint(folder / "again")
    exported = set(Checkpoint(folder / "export").files)
    assert exported <= set(second.files) | {n for n in exported if n not in first.files}
    for name in exported & set(first.files):
        assert np.array_equal(first.read(name), second.read(name)), f"{name} changed on export"
    lost = set(first.files) - exported
    family = family_of(first.fields["model_type"])
    for name in lost:
        bare = name.removeprefix(family.prefix)
        left = any(re.fullmatch(p, bare) for p in (*family.heads, *family.buffers))
        assert left or name in family.tied, f"{name} is lost on export"


def assert_same_gradients(found: dict[str, np.ndarray], torch_model, tolerance: float = 1e-5):
    """`found`, by published names, are those of torch's parameters, relative to each one's largest.

    Some are zero but for rounding: a share of the typical gradient of the network is added.
    """
    expected = {n: p.grad.numpy() for n, p in torch_model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    typical = np.mean([np.abs(gradient).max() for gradient in expected.values()])
    for name, gradient in expected.items():
        within = tolerance * (np.abs(gradient).max() + 0.1 * typical)
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=within, err_msg=name)


def _assert_same_gradients(folder, torch_model, network, gradients, tolerance):
    published = Checkpoint(folder).files
    family = family_of(Checkpoint(folder).fields["model_type"])
    theirs = _published_gradients(folder, torch_model)
    with_prefix = any(name.startswith(family.prefix) for name in theirs) if family.prefix else False
    ours = {dotted(path): leaf[...] for path, leaf in nnx.to_flat_state(gradients)}
    typical = np.sqrt(np.mean([float(jnp.mean(g**2)) for g in ours.values()]))
    inside = any(path.startswith("backbone.") for path in ours)
    compared = set()
    for path, gradient in ours.items():
        name = family.published_name(
            path if inside else f"backbone.{path}", with_prefix=with_prefix
        )
        copies = (copy for copy, original in family.tied.items() if original == name)
        candidates = (name, family.tied.get(name, name), *copies)
        name = next((candidate for candidate in candidates if candidate in theirs), name)
        if name not in theirs:
            assert name in published, f"torch has no parameter {name} ({path})"
            assert not np.any(gradient), f"{name} has a gradient, but torch makes no use of it"
            continue
        compared.add(name)
        gradient = family.to_published(path, np.asarray(gradient))
        reference = theirs[name]
        scale = np.abs(reference).max() + typical
        difference = np.abs(gradient - reference).max() / scale
        assert difference <= tolerance, f"gradient of {name}: relative difference {difference:.2e}"
    left_out = set(theirs) - compared
    assert not left_out, f"torch has gradients of parameters that we lack: {sorted(left_out)}"


def _published_gradients(folder, torch_model):
    """torch's gradients by the names and in the shapes that its parameters have in the file.

    transformers renames and splits some tensors between file and module, and undoes it on saving;
    so the gradients are saved in place of the parameters.
    """
    gradients = {n: p.grad for n, p in torch_model.named_parameters() if p.grad is not None}
    torch_model.save_pretrained(folder / "gradients", state_dict=gradients)
    checkpoint = Checkpoint(folder / "gradients")
    return {name: checkpoint.read(name) for name in checkpoint.files}


def _mask(valid, target):
    if valid is None or tuple(target.shape[:2]) != valid.shape:
        return 1.0
    return valid.reshape(valid.shape + (1,) * (target.ndim - 2)).astype(np.float32)


def _assert_close(name, ours, theirs, valid, tolerance):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape, f"{name}: {ours.shape} against {theirs.shape}"
    difference = np.abs(ours - theirs) * _mask(valid, theirs)
    assert difference.max() <= tolerance, f"{name}: max |Δ| = {difference.max():.2e}"
