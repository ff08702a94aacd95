"""What the tests of decoder families share."""

import json

import numpy as np
import torch
import transformers
from compare import assert_same_network

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def batch(*, length=17, left=False):
    """Three rows, one full, one with about half its tokens, one with a single one."""
    random = np.random.default_rng(1)
    mask = np.ones((3, length), np.int32)
    mask[1, 9:] = 0
    mask[2, 1:] = 0
    ids = random.integers(1, 99, (3, length)).astype(np.int32)
    if left:
        mask = mask[:, ::-1].copy()
    return {"input_ids": np.where(mask, ids, 0).astype(np.int32), "attention_mask": mask}


def random_model(network_class, config):
    """A torch model whose norms are random too, so that a norm left out shows."""
    torch.manual_seed(0)
    model = network_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ln_" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def assert_same_decoder(folder, network_class, config, *, inputs=None, **options):
    """Compares the causal language model, its hidden states and all gradients."""
    inputs = inputs or batch()
    valid = inputs.get("attention_mask")
    model = random_model(network_class, config)
    options = {"outputs": ("logits",), "valid": valid} | options
    assert_same_network(folder, model, "causal_lm", inputs, **options)


def rewrite_config(folder, change):
    """Applies `change(fields)` to a saved config.json."""
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


__all__ = ["TINY", "assert_same_decoder", "batch", "random_model", "rewrite_config", "transformers"]
