"""Speed next to transformers, peft and torch, on the same weights, data, dropout and threads.

    python scripts/benchmark.py                              # everything, about half an hour
    python scripts/benchmark.py --parts=step --shapes=32x128 # one shape of the encoder's step

Needs the parity extra (torch). The two sides run in turn, so that a machine that slows down slows
both; a ratio above 1 means that ftjax is faster. Results are compared first. On a GPU both sides
compute in bfloat16, torch with torch.compile.
"""

import datetime
import os
import platform
import re
import sys
from pathlib import Path

import jax
from absl import app, flags
from rich.console import Console
from side_by_side import adapters, encoder, language_model

from ftjax.command_line import errors_as_sentences, parse_flags
from ftjax.files import write_json_atomically
from ftjax.runs.manifest import code_version, package_versions, processor

PARTS = {
    "step": encoder.compare_steps,
    "epoch": encoder.compare_epochs,
    "generation": language_model.compare_generation,
    "causal_lm": language_model.compare_steps,
    "lora": adapters.compare_lora,
    "memory": adapters.compare_memory,
    "probe": adapters.compare_probe,
    "lanes": adapters.compare_lanes,
}
CHOSEN = flags.DEFINE_list("parts", list(PARTS), f"Which comparisons, of {', '.join(PARTS)}.")
OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file; results/benchmark-<platform>-<processor>.json if unset."
)


def hardware() -> str:
    """One line that says what was measured on."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    where = f"{processor()}, {cores} cores"
    if device.platform != "cpu":
        where = f"{len(jax.devices())} x {device.device_kind}, {where}"
    date = datetime.date.today().isoformat()
    return f"{where}, {platform.system()}, Python {platform.python_version()}, {date}"


def default_output() -> str:
    """One file per make of processor: ratios differ between them."""
    device = jax.devices()[0]
    name = processor() if device.platform == "cpu" else device.device_kind
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|\d+-core|processor|@.*", " ", name.lower())
    return f"results/benchmark-{'-'.join([device.platform, *re.findall('[a-z0-9]+', plain)])}.json"


def main(_) -> None:
    """Compares, times, prints, writes."""
    if unknown := set(CHOSEN.value) - set(PARTS):
        sys.exit(f"error: --parts: there is no {', '.join(unknown)}; choose of {', '.join(PARTS)}.")
    console = Console(width=110)
    results = {}
    with errors_as_sentences():
        for name in CHOSEN.value:
            results[name] = PARTS[name](console)
    import torch

    results |= {
        "hardware": hardware(),
        "command": "python scripts/benchmark.py " + " ".join(sys.argv[1:]),
        "code": code_version(),
        "packages": package_versions() | {"torch": torch.__version__},
    }
    console.print(results["hardware"])
    output = OUTPUT.value or default_output()
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(output, results)
    console.print(f"Written to {output}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
