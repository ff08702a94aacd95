"""Writes the tables of docs: what tests tell of families, methods, objectives; measured speed.

    python -m pytest tests/parity tests/tuning tests/properties --junitxml=results/verified.xml
    python scripts/tables.py --junit=results/verified.xml --into=docs
    python scripts/tables.py --benchmark=results/benchmark-cpu-amd-epyc.json --into=docs

A number of tests is that of those that passed; what failed or did not run is not in it. A table of
which no test ran stays as it is.
"""

import collections
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from side_by_side.timing import OURS

from ftjax.command_line import errors_as_sentences, parse_flags
from ftjax.files import read_json
from ftjax.objectives import OBJECTIVES
from ftjax.tuning import METHODS

JUNIT = flags.DEFINE_list("junit", [], "JUnit XML files of the tests.")
BENCHMARK = flags.DEFINE_string("benchmark", None, "JSON file that scripts/benchmark.py wrote.")
INTO = flags.DEFINE_string("into", None, "Folder of pages with markers; without it, prints.")

PAGES = {
    "families": "models.md",
    "methods": "tuning.md",
    "objectives": "objectives.md",
    "speed": "speed.md",
}
# Tests of tests/properties/test_properties.py, and what a column calls them.
PROPERTIES = {
    "garbage": "garbage",
    "wider": "wider",
    "packed": "packed",
    "neighbour": "neighbour",
    "divided": "divided",
    "permuted": "permuted",
    "step_0": "step 0",
    "resumed": "resumed",
}

# The file of tests/parity that holds a row's families against transformers.
FAMILIES = {
    "bert": "bert",
    "roberta": "roberta, xlm-roberta, camembert",
    "distilbert": "distilbert",
    "electra": "electra",
    "albert": "albert",
    "mpnet": "mpnet",
    "deberta_v2": "deberta-v2",
    "modernbert": "modernbert",
    "gpt2": "gpt2",
    "llama": "llama (Llama, SmolLM, TinyLlama), mistral",
    "qwen": "qwen2, qwen3",
    "phi3": "phi3",
    "gemma": "gemma, gemma2, gemma3_text",
    "t5": "t5, mt5",
    "bart": "bart, mbart, marian",
    "vit": "vit, deit, dinov2",
    "clip": "clip, siglip, their towers",
}
GENERATION = {
    "gpt2": "gpt2",
    "llama": "llama|mistral",
    "qwen": "qwen",
    "phi3": "phi3",
    "gemma": "gemma",
    "t5": "t5",
    "bart": "bart|marian",
}
REAL = {
    "bert": ("test_bert", "minilm|real", "all-MiniLM-L6-v2"),
    "llama": ("test_real_models", "SmolLM2", "SmolLM2-135M, 64 greedy tokens"),
    "gemma": ("test_real_models", "Gemma", "Gemma 3 270M, 64 greedy tokens"),
    "vit": ("test_real_models", "dinov2", "DINOv2-S"),
}
# Comparisons of the benchmark, by their place in its file.
SPEED = {
    "step 32x128": "MiniLM training step, 32 x 128",
    "step 32x64": "MiniLM training step, 32 x 64",
    "epoch": "MiniLM, an epoch of licence clauses",
    "causal_lm": "SmolLM2-135M training step, 4 x 128",
    "generation prefill 1": "SmolLM2 reads 1 x 128 tokens",
    "generation prefill 8": "SmolLM2 reads 8 x 128 tokens",
    "generation decode 1": "SmolLM2 writes 1 x 63 tokens",
    "generation decode 8": "SmolLM2 writes 8 x 63 tokens",
    "lora minilm": "LoRA step, MiniLM 32 x 64",
    "lora smollm2": "LoRA step, SmolLM2 4 x 128",
    "probe": "linear probe, 5 epochs on kept features",
    "lanes": "four LoRA runs in one step",
}


def main(_) -> None:
    """Reads, counts, writes."""
    with errors_as_sentences():
        tables = {}
        if JUNIT.value:
            cases = [case for file in JUNIT.value for case in passed_tests(Path(file))]
            ran = {file for file, _, _ in cases}
            tables |= {
                name: write(cases) for name, (test, write) in OF_TESTS.items() if test in ran
            }
        if BENCHMARK.value:
            tables["speed"] = speed_table(read_json(BENCHMARK.value))
        for name, table in tables.items():
            if INTO.value is None:
                print(table)
            else:
                replace_between_markers(Path(INTO.value) / PAGES[name], name, table)


def passed_tests(file: Path) -> list[tuple[str, str, dict[str, str]]]:
    """(test file, test name with its parameters, recorded properties) of what passed."""
    found = []
    for case in ElementTree.parse(file).iter("testcase"):
        if any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
            continue
        properties = {p.get("name"): p.get("value") for p in case.iter("property")}
        file_name = case.get("classname", "").split(".")[-1]
        found.append((file_name, case.get("name", ""), properties))
    return found


def families_table(cases) -> str:
    """One row per test file."""
    lines = [
        "| `model_type` | tests: outputs, gradients, export | generation | real weights |",
        "| --- | --- | --- | --- |",
    ]

    def count(module: str, pattern: str = "") -> int:
        return sum(
            file == module and bool(re.search(pattern, name, re.I)) for file, name, _ in cases
        )

    for key, families in FAMILIES.items():
        configs = count(f"test_{key}") + (count("test_bert_heads") if key == "bert" else 0)
        generation = count("test_generate", GENERATION[key]) if key in GENERATION else ""
        real = ""
        if key in REAL and count(*REAL[key][:2]):
            real = REAL[key][2]
        lines.append(f"| {families} | {configs} | {generation} | {real} |")
    return "\n".join(lines)


def methods_table(cases) -> str:
    """One row per method."""
    works, refused = collections.defaultdict(list), collections.defaultdict(set)
    for file, name, properties in cases:
        match = re.fullmatch(r"test_(combination|three_steps)\[(.+)\]", name)
        if file not in ("test_tuning_matrix", "test_methods") or not match:
            continue
        method = next(m for m in METHODS if re.match(rf"{m}-|.*-{m}$", match[2]))
        family = match[2].removeprefix(f"{method}-").removesuffix(f"-{method}")
        if properties.get("refused"):
            refused[method].add((family, properties["refused"]))
        else:
            works[method].append(family)
    lines = [
        "| `tuning.method` | what moves | families tried | refused |",
        "| --- | --- | --- | --- |",
    ]
    for method, what in METHODS.items():
        reasons = collections.defaultdict(list)
        for family, reason in sorted(refused[method]):
            reasons[reason].append(family)
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        meaning = " ".join((what.apply.__doc__ or "").split("\n\n")[0].split()).rstrip(".")
        lines.append(f"| {method} | {meaning} | {len(works[method])} | {told} |")
    return "\n".join(lines)


def objectives_table(cases) -> str:
    """One row per objective, and a line per reason for which something is not asked."""
    passed, left_out = collections.Counter(), collections.defaultdict(list)
    references: dict[str, str] = {}
    for file, name, properties in cases:
        test, _, parameters = name.removesuffix("]").partition("[")
        parts = parameters.split("-")
        objective = next((part for part in parts if part in OBJECTIVES), None)
        if objective is None:
            continue
        if file == "test_trajectories":
            references[objective] = f"{properties['reference']}, {properties['largest']}"
        elif file == "test_properties":
            passed[objective, test.removeprefix("test_").removesuffix("_of_lora")] += 1
            if why := properties.get("left_out"):
                left_out[PROPERTIES[parts[-1]], why].append(objective)
    lines = [
        f"| objective | 50 steps beside | {' | '.join(PROPERTIES.values())} |",
        f"| --- | --- |{' --- |' * len(PROPERTIES)}",
    ]
    for objective in OBJECTIVES:
        counts = [str(passed[objective, name] or "–") for name in PROPERTIES]
        lines.append(f"| {objective} | {references.get(objective, '–')} | {' | '.join(counts)} |")
    merged = collections.defaultdict(list)
    for (column, why), objectives in left_out.items():
        merged[why, tuple(objectives)].append(column)
    told = [f"- {', '.join(cs)} of {', '.join(os)}: {why}." for (why, os), cs in merged.items()]
    return "\n".join([*lines, "", "Not asked, and why:", "", *told])


def speed_table(results: dict) -> str:
    """One row per comparison and other side."""
    found = dict(comparisons(results))
    lines = [
        "| what | ftjax, s | the other side, s | ratio of minima | of medians |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, what in SPEED.items():
        sides = found.get(key, {})
        for name in sorted(sides.keys() - {OURS}):
            ours, theirs = sides[OURS], sides[name]
            ratios = [theirs[kind] / ours[kind] for kind in ("minimum", "median")]
            lines.append(
                f"| {what} | {ours['minimum']:.3f} | {theirs['minimum']:.3f} ({name}) "
                f"| {ratios[0]:.2f} | {ratios[1]:.2f} |"
            )
    return "\n".join(lines)


def comparisons(results: dict, place: str = "") -> Iterator[tuple[str, dict]]:
    """(place in the file, side -> its seconds) of all comparisons."""
    for key, value in results.items():
        if not isinstance(value, dict):
            continue
        inner = f"{place} {key}".strip()
        if OURS in value and isinstance(value[OURS], dict):
            yield inner, value
        else:
            yield from comparisons(value, inner)


# Tables by a file of tests without which they would say nothing.
OF_TESTS = {
    "families": ("test_bert", families_table),
    "methods": ("test_methods", methods_table),
    "objectives": ("test_properties", objectives_table),
}


def replace_between_markers(file: Path, name: str, table: str) -> None:
    """Puts a table between `<!-- name -->` and `<!-- /name -->`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = file.read_text(encoding="utf-8")
    if start not in text or end not in text:
        raise ValueError(f"{file} has no markers {start} ... {end}.")
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    file.write_text(f"{before}{start}\n{table}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
