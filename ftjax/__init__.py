"""ftjax: fine-tuning in JAX that says what was learned, what was forgotten and what it cost."""

import os

__version__ = "0.1.0"

# transformers is here for its tokenizers; that torch is missing is no news to anyone.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
