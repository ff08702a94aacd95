"""ftjax: fine-tuning in JAX that says what was learned, what was forgotten and what it cost.

import ftjax

result = ftjax.run(config)                    # of ftjax.config.base_config; a Result
finished = ftjax.load_run("runs/name/base/seed-0")
predict = ftjax.Predictor("runs/name/base/seed-0")
"""

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# transformers is here for its tokenizers; that torch is missing is no news to anyone.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# Imported when they are asked for: the rest of the package needs no network to be built.
PUBLIC = {
    "Predictor": ("ftjax.use.predict", "Predictor"),
    "base_config": ("ftjax.config", "base_config"),
    "load_run": ("ftjax.use.finished", "load_finished_run"),
    "run": ("ftjax.training.run", "run"),
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'ftjax' has no attribute {name!r}")
    module, attribute = PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)
