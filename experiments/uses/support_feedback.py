"""What people thought of the coffee bar's answers, learned behind `support_chat.py`.

python scripts/train.py --config=experiments/uses/support_chat.py
python scripts/export.py --run=runs/support_chat/lora/seed-0 --folder=export/support_chat
python scripts/train.py --config=experiments/uses/support_feedback.py
python scripts/train.py --config=experiments/uses/support_feedback.py:dpo
python scripts/chat.py --run=runs/support_feedback/kto/seed-0
"""

from typing import Literal

from ftjax.config import base_config


def get_config(how: Literal["kto", "dpo"] = "kto"):
    """LoRA on all layers, one pass.

    Args:
        how: "kto", on single turns that people judged; "dpo", on the pairs of a good and a bad one
            for one context.
    """
    config = base_config("kto" if how == "kto" else "preference", "lora")
    config.name = "support_feedback"
    config.variant = how
    config.model.reference = "export/support_chat"
    if how == "kto":
        config.data.source = "tfds://coffee_bar/rewards"
        # For a run of half an hour on two cores.
        config.data.train_limit = 800
        config.data.batch_size = 4
        # Six turns of seven are good ones.
        config.objective.undesirable_weight = 5.0
    else:
        config.data.source = "tfds://coffee_bar/preferences"
        config.data.batch_size = 8
        config.optimizer.accumulation_steps = 4
    # Some contexts hold whole menus; and six turns open a conversation, and answer nothing.
    config.data.max_length = 800
    config.data.on_bad_record = "skip"
    config.evaluation.batch_size = 4
    config.evaluation.answers = 30
    config.optimizer.learning_rate = 1e-4
    config.training.epochs = 1
    config.retention.source = "tfds://vader/newspaper"
    config.retention.limit = 256
    return config
