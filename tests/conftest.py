"""Four forced host devices for every test, and tiny checkpoints and data that need no network."""

import atexit
import csv
import importlib.metadata
import os
import random
import shutil
import tempfile

# Before jax is imported anywhere. Most of a test's time is compiling; unoptimised code is faster.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)
if importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.")):
    # XLA's older emitters of fused loops take a third of the newer ones' time; later it has none.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# A program that one test compiled is there for all: whole runs are run again to be compared.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ftjax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import pytest
from tiny import TINY, WORDS, end_texts, write_checkpoint, write_tokenizer

from ftjax.config import base_config, override
from ftjax.models import FAMILIES


@pytest.fixture
def tiny_checkpoint(tmp_path):
    """(model_type, fields, network) -> the folder of a random checkpoint with a tokenizer."""

    def make(model_type, fields, network):
        folder = tmp_path / model_type
        folder.mkdir()
        write_checkpoint(folder, FAMILIES[model_type], fields, network)
        write_tokenizer(folder, with_end=network == "causal_lm")
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """The folder of a tiny random BERT checkpoint with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    fields = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    write_checkpoint(folder, FAMILIES["bert"], fields, "backbone")
    write_tokenizer(folder, with_end=False)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """The folder of a tiny random Llama checkpoint with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    fields = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    write_checkpoint(folder, FAMILIES["llama"], fields, "causal_lm")
    write_tokenizer(folder, with_end=True)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory):
    """The folder of a tiny random T5 with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_t5")
    fields = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
        "eos_token_id": 3,
    }
    write_checkpoint(folder, FAMILIES["t5"], fields, "seq2seq_lm")
    write_tokenizer(folder, with_end=True)
    end_texts(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory):
    """A pattern for CSV files: three classes, each with words of its own; uneven lengths."""
    folder = tmp_path_factory.mktemp("tiny_texts")
    generator = random.Random(0)
    for split, count in (("train", 45), ("validation", 13), ("test", 14)):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for index in range(count):
                label = index % 3
                own = [WORDS[20 * label + generator.randrange(20)] for _ in range(3)]
                other = generator.choices(WORDS, k=generator.randrange(12))
                writer.writerow([" ".join(own + other), "abc"[label]])
    return folder / "{split}.csv"


@pytest.fixture
def tiny_config(tiny_bert, tiny_texts):
    """A valid config over the two, which trains in seconds."""
    files = {"model.reference": str(tiny_bert), "data.source": str(tiny_texts)}
    retention = {"retention.source": str(tiny_texts), "retention.max_length": 16}
    return override(base_config(), TINY | files | retention)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
