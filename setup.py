from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="ftjax",
    version="0.1.0",
    description="Fine-tuning in JAX: what was learned, what was forgotten, what it cost.",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ftjax", "ftjax.*"]),
    python_requires=">=3.11",
    entry_points={"console_scripts": ["ftjax=ftjax.command:main"]},
    install_requires=[
        "absl-py",
        "array-record",
        "filelock",
        "flax>=0.12.8",
        "gguf",
        "grain",
        "huggingface-hub",
        # tensorflow-datasets needs it on every Python, and declares it for old ones only.
        "importlib-resources",
        "jax>=0.10",
        # Chat templates; the sandbox of older ones can be left.
        "jinja2>=3.1.6",
        "license-expression",
        "ml-collections",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow",
        "pyyaml",
        "qwix",
        "requests",
        "rich",
        "rouge-score",
        "sacrebleu",
        "safetensors",
        "scikit-learn",
        "scipy",
        # Tokenizers that are a SentencePiece model alone.
        "sentencepiece",
        "tensorflow-datasets>=4.9.10",
        # Number words as digits.
        "text2num",
        "tokenizers",
        "transformers>=5",
    ],
    extras_require={
        "test": [
            *("hypothesis", "matplotlib", "onnx", "pyright[nodejs]", "pytest", "pytest-xdist"),
            *("ruff", "tensorboardX"),
        ],
        # The only torch release with a CPU build on every index this project was tried with.
        "parity": ["torch==2.13.0", "accelerate", "peft", "sentence-transformers", "trl"],
        "plot": ["matplotlib"],
        "tensorboard": ["tensorboardX"],
        "parquet": ["pyarrow"],
        "onnx": ["onnx"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    },
)
