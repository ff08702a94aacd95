"""What people thought of the coffee bar's answers, learned behind `support_chat.py`.

python scripts/train.py --config=experiments/uses/support_chat.py
python scripts/export.py --run=runs/support_chat/lora/seed-0 --folder=export/support_chat
python scripts/train.py --config=experiments/uses/support_feedback.py
python scripts/train.py --config=experiments/uses/support_feedback.py --variant=dpo
python scripts/chat.py --run=runs/support_feedback/kto/seed-0
"""

from ftjax.config import base_config


def get_config():
    """KTO on single turns that people judged, LoRA on all layers, one pass."""
    config = base_config("kto", "lora")
    config.name = "support_feedback"
    config.variant = "kto"
    config.model.reference = "export/support_chat"
    config.data.source = "tfds://coffee_bar/rewards"
    # Six turns open a conversation, and answer nothing.
    config.data.on_bad_record = "skip"
    config.data.max_length = 384
    config.data.batch_size = 8
    config.evaluation.batch_size = 8
    config.evaluation.answers = 50
    # Six turns of seven are good ones.
    config.objective.undesirable_weight = 5.0
    config.optimizer.learning_rate = 1e-4
    config.training.epochs = 1
    config.retention.source = "tfds://vader/newspaper"
    config.retention.limit = 256
    return config


def get_ablations():
    """DPO on the pairs of a good and a bad turn for one context."""
    return {
        "dpo": {
            "objective.name": "preference",
            "data.source": "tfds://coffee_bar/preferences",
        },
    }
