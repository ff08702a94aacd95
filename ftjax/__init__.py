"""ftjax: fine-tuning in JAX that says what was learned, what was forgotten and what it cost."""

__version__ = "0.1.0"
