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
# Read when the first device is asked for. Without it a GPU adds in the order in which its threads
# end, and the same run ends with other bits. A flag that is set outside comes later and holds.
SAME_BITS = "--xla_gpu_exclude_nondeterministic_ops=true"
if SAME_BITS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{SAME_BITS} {os.environ.get('XLA_FLAGS', '')}"

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
