"""What is tested of which objective on which family; what is not, says why.

A new objective is a `Row` here: how one example of it looks, which families it is tried on, what
its loss is where the network says nothing, and the test that stops it and starts it again. All else
follows: see `cases.py` for how it is built and `test_properties.py` for what is asked of it.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made import (
    NEW,
    REWARDS,
    VOCABULARY,
    painted,
    some_text,
    with_completions,
    write_likes,
)
from test_decoder import FIELDS as DECODERS
from test_encoders import CONFIGS as ENCODERS
from test_families import CONFIGS as OTHERS
from tiny import WORDS

PROPERTIES = {
    "garbage": "garbage and NaN where nothing is to be read change no bit of loss or gradient",
    "wider": "more padding, on this side, changes nothing beyond 1e-6",
    "packed": "texts that share a row have the loss and gradients of texts alone",
    "neighbour": "another text in the row changes no bit of a text's gradient",
    "divided": "8 rows at once are 2 x 4, 8 x 1, a mesh of 4 devices and pmap over 4",
    "permuted": "rows in another order change nothing beyond 1e-6",
    "step_0": "a network that says nothing has the loss of chance; LoRA begins as its base",
    "resumed": "stopped and started again is the run that never stopped",
}
SIDES = ("right", "left")


@dataclasses.dataclass(frozen=True)
class Row:
    """An objective in the matrix.

    Attributes:
        example: (random, words) -> a record of about so many words.
        families: it is tried on; the first also stands for all where one is enough.
        chance: (objective, batch) -> the loss of a network whose every output is 0.
        resumed: "file::test" that stops and resumes a whole run of it; "" has it done here.
        fields: of the config.
        packs: whether texts share a row.
        files: field of the config -> what lies in the folder of the data.
        learned: (objective, batch of examples) -> what a step is given, where that is another one.
        write: (folder, times) -> nothing; what is written where it is no file for each split.
        left_out: property, or (property, family, side), -> why it is not asked.
        other_families: why the others say nothing new, or cannot.
    """

    example: Callable[[random.Random, int], Mapping[str, Any]]
    families: Sequence[str]
    chance: Callable[[Any, Mapping[str, np.ndarray]], float]
    resumed: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    packs: bool = False
    files: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"data.source": "{split}.jsonl"}
    )
    write: Callable[[Path, int], None] | None = None
    learned: Callable[[Any, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = (
        lambda objective, batch: batch
    )
    left_out: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    other_families: str = ""


ENDS = {"decoder_start_token_id": 0, "eos_token_id": 3, "pad_token_id": 0}
PLAIN_DEBERTA = "deberta-v2 without convolution"


def checkpoint_fields(family: str, layers: int) -> dict[str, Any]:
    """config.json of a tiny network, with positions for every row here."""
    variants = {
        PLAIN_DEBERTA: ENCODERS["deberta-v2"] | {"conv_kernel_size": 0},
        # What stands under padding has no position of its own if it is not known to be padding.
        "roberta": ENCODERS["roberta"] | {"pad_token_id": 0},
        # Targets begin with padding, as T5's do, and end with [SEP]. ReLU's gradient jumps, and so
        # fifty steps would not be those of torch.
        "t5": OTHERS["t5"] | ENDS | {"feed_forward_proj": "gated-gelu"},
        "bart": OTHERS["bart"] | ENDS,
    }
    fields = {**OTHERS, **ENCODERS, **DECODERS, **variants}[family]
    fields = fields | {"model_type": family.split()[0]}
    for name in ("max_position_embeddings", "n_positions"):
        if name in fields:
            fields[name] = 64
    for name in ("num_hidden_layers", "num_layers", "n_layer"):
        if name in fields:
            fields[name] = layers
    return fields


def is_encoder(family: str) -> bool:
    return family.split()[0] in ENCODERS


def network_of(family: str) -> str:
    """The published network with the most in it; objectives load what they need of it."""
    if is_encoder(family):
        return "masked_lm"
    if "image_size" in OTHERS.get(family, {}):
        return "backbone"
    return "causal_lm" if family in DECODERS else "seq2seq_lm"


def in_a_column(name: str, value: Callable[[random.Random], Any]) -> Callable:
    """Texts with something said of each."""
    return lambda generator, words: {"text": some_text(generator, words), name: value(generator)}


def tagged(generator: random.Random, words: int) -> dict[str, list[str]]:
    tags = generator.choices(["O", "B-NAME", "B-PLACE"], k=words)
    return {"tokens": some_text(generator, words).split(), "ner_tags": tags}


def asked(generator: random.Random, words: int) -> dict[str, Any]:
    context = some_text(generator, words)
    answer = generator.choice(context.split())
    found = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"question": generator.choice(WORDS), "context": context, "answers": found}


def answered(*names: str) -> Callable:
    """Two texts by their names."""
    return lambda generator, words: dict(
        zip(names, (some_text(generator, 8 - words), some_text(generator, words)), strict=True)
    )


def judged(generator: random.Random, words: int) -> dict[str, str]:
    """Two answers to a text, of unequal length."""
    names = {"prompt": 8 - words, "chosen": words, "rejected": 1 + words % 5}
    return {name: some_text(generator, count) for name, count in names.items()}


def judged_alone(generator: random.Random, words: int) -> dict[str, Any]:
    """An answer that somebody liked or not."""
    found = answered("prompt", "completion")(generator, words)
    return found | {"label": words % 2 == 0}


def near(generator: random.Random, words: int) -> dict[str, str]:
    """Two texts of up to three words, which fit one row."""
    counts = {"anchor": 1 + words % 3, "positive": 1 + words // 3}
    return {name: some_text(generator, count) for name, count in counts.items()}


def of_the_shares(objective, batch) -> float:
    """Items are found by how seldom they are, among those that a row's user does not like."""
    ids, real = batch["target_ids"], batch["target_ids"] >= 0
    begins = np.asarray(objective._prior(ids), np.float64)
    rarity = np.exp(begins - batch["log_shares"].astype(np.float64))
    found = []
    for row in np.flatnonzero(batch["weights"] > 0):
        known = {*batch["known_ids"][row], *ids[row]}
        others = sum(rarity[r, c] for r, c in np.argwhere(real) if ids[r, c] not in known)
        found.append(np.mean(np.log(1 + others / rarity[row][real[row]])))
    return float(np.mean(found))


def of_the_advantages(objective, batch) -> float:
    """Of completions that were just drawn the ratio is 1."""
    tokens = batch["weights"].sum(1)
    return float(-(batch["advantages"] * tokens).sum() / tokens.sum())


def sorted_briefly(generator: random.Random, words: int) -> dict[str, str]:
    """A text of up to three words, two of which fit one row."""
    return {"text": some_text(generator, 1 + words % 3), "label": generator.choice("ab")}


def of_the_places(objective, batch) -> float:
    """Both ends of an answer may be any token of a row."""
    rows = batch["weights"] > 0
    return float(np.log(batch["attention_mask"][rows].sum(1)).mean())


def of_the_vocabulary(objective, batch) -> float:
    return math.log(VOCABULARY)


def of_the_candidates(objective, batch) -> float:
    """Any text of the batch that is neither the anchor nor the positive once more."""
    anchors, positives = batch["text_ids"].T
    other = (positives != positives[:, None]) & (positives != anchors[:, None])
    return float(np.log(1 + other.sum(1)).mean())


def of_the_level(objective, batch) -> float:
    """Every question that a level was asked has been answered by chance."""
    last = len(objective.levels) - 1
    rows = batch["weights"] > 0
    return float(np.minimum(batch["labels"][rows] + 1, last).mean()) * math.log(2)


def of_the_mean(objective, batch) -> float:
    return float((batch["labels"][batch["weights"] > 0].astype(np.float64) ** 2).mean())


FROM_THE_COLUMN = (
    "the family counts positions from the row's first column, as its reference does without "
    "position_ids; ftjax pads on the right, where that is the same"
)
FROM_THE_IDS = (
    "the family reads off the ids what is padding and counts positions so, as its reference does; "
    "ftjax pads on the right, behind all that counts"
)
LEFT = {("wider", family, "left"): FROM_THE_COLUMN for family in ("bert", "deberta-v2", "gpt2")} | {
    ("garbage", "roberta", "left"): FROM_THE_IDS
}
ONE_VECTOR = "one vector is made of a row, so a row is one text"
ONE_SENTENCE = "windows of sentences are padded, one a row"
ONE_ROW = "the two texts of a row are one pair, and their answers are compared with each other"
ONE_ROW_EACH = "a prompt and a completion are one text, one a row"
ONE_IMAGE = "an image has a row for itself, and all of one size: nothing pads it"
ONE_PAIR = "a source and its target are a row each"
BEHIND_A_SOURCE = "a target follows its source in the row, whose padding is behind both, always"
UNPACKED = {"packed": ONE_VECTOR, "neighbour": ONE_VECTOR}
SAME_NETWORK = (
    "its network is classification's, which is tried on all; here only the loss of one vector "
    "differs"
)
RESUMED = "tests/system/test_text_objectives.py::test_stopped_and_started_again_is_the_same_run"
OF_TEXTS = (
    "ELECTRA, DistilBERT, ALBERT and MPNet mask as BERT does; BART and its like have no network "
    "that makes one vector of a text"
)

ROWS: dict[str, Row] = {
    "classification": Row(
        in_a_column("label", lambda generator: generator.choice("abc")),
        (
            "bert",
            "roberta",
            "modernbert",
            "deberta-v2",
            "llama",
            "gemma3_text",
            "gpt2",
            "qwen3",
            "t5",
        ),
        lambda objective, batch: math.log(len(objective.classes)),
        "tests/system/test_kills.py::test_killed_and_continued",
        left_out=UNPACKED | LEFT,
        other_families=OF_TEXTS,
    ),
    "multi_label": Row(
        in_a_column("label", lambda generator: [x for x in "abc" if generator.random() < 0.5]),
        ("bert",),
        lambda objective, batch: math.log(2),
        RESUMED,
        left_out=UNPACKED | LEFT,
        other_families=SAME_NETWORK,
    ),
    "ordinal": Row(
        in_a_column("label", lambda generator: generator.randrange(4)),
        ("bert",),
        of_the_level,
        RESUMED,
        left_out=UNPACKED | LEFT,
        other_families=SAME_NETWORK,
    ),
    "regression": Row(
        in_a_column("label", lambda generator: round(generator.gauss(3, 2), 3)),
        ("bert",),
        of_the_mean,
        RESUMED,
        left_out=UNPACKED | LEFT,
        other_families=SAME_NETWORK,
    ),
    "token_classification": Row(
        tagged,
        ("bert", "roberta", "modernbert", "deberta-v2"),
        lambda objective, batch: math.log(len(objective.classes)),
        "",
        {"data.stride": 2},
        left_out={"packed": ONE_SENTENCE, "neighbour": ONE_SENTENCE} | LEFT,
        other_families="they differ from these in nothing that a tag sees",
    ),
    "masked_lm": Row(
        lambda generator, words: {"text": some_text(generator, words)},
        ("bert", "roberta", "modernbert", PLAIN_DEBERTA),
        of_the_vocabulary,
        "tests/system/test_masked_lm.py::test_stopped_and_started_again_sees_the_same_masks",
        {"objective.mlm_probability": 0.5},
        packs=True,
        other_families=(
            "ELECTRA, DistilBERT, ALBERT and MPNet pack rows as BERT does; DeBERTa's convolution "
            "would mix packed texts and is refused"
        ),
    ),
    "causal_lm": Row(
        lambda generator, words: {"text": some_text(generator, words)},
        ("llama", "gemma3_text", "gpt2", "qwen3"),
        of_the_vocabulary,
        "tests/system/test_kills.py::test_killed_and_continued",
        packs=True,
        other_families="Mistral, Qwen 2, Phi 3 and Gemma 1 and 2 have these attention masks",
    ),
    "sft": Row(
        answered("prompt", "completion"),
        ("llama",),
        of_the_vocabulary,
        "tests/system/test_sft.py::test_stopped_and_started_again_ends_with_the_same_bits",
        {"data.format": "prompt_completion", "data.packing": True},
        packs=True,
        other_families="its network and rows are causal_lm's; here only some tokens bear weight",
    ),
    "preference": Row(
        judged,
        ("llama",),
        lambda objective, batch: math.log(2),
        "",
        {"objective.precompute_ref_log_probs": False},
        left_out={"packed": ONE_ROW, "neighbour": ONE_ROW},
        other_families="its network is causal_lm's; here the two texts of a row are one pair",
    ),
    "kto": Row(
        judged_alone,
        ("llama",),
        lambda objective, batch: 0.5,
        "",
        {"objective.precompute_ref_log_probs": False},
        left_out={
            "packed": ONE_ROW,
            "neighbour": ONE_ROW,
            "divided": (
                "how far the network has gone is the mean of a batch, so that its parts are "
                "another batch, and dividing is refused"
            ),
        },
        other_families="its network and rows are preference's",
    ),
    "reward": Row(
        judged,
        ("llama",),
        lambda objective, batch: math.log(2),
        "",
        left_out={"packed": ONE_ROW, "neighbour": ONE_ROW},
        other_families="its rows are preference's, and its head's families are classification's",
    ),
    "grpo": Row(
        lambda generator, words: {"prompt": some_text(generator, words)},
        ("llama",),
        of_the_advantages,
        "tests/system/test_grpo.py::test_stopped_and_started_again_ends_with_the_same_bits",
        {
            "data.max_prompt_length": 16,
            "objective.max_completion_length": NEW,
            "objective.num_generations": 2,
            "objective.reward_funcs": (f"{REWARDS}:letters",),
        },
        learned=with_completions,
        left_out={"packed": ONE_ROW_EACH, "neighbour": ONE_ROW_EACH},
        other_families="its network and rows are causal_lm's; here tokens have advantages",
    ),
    "seq2seq": Row(
        answered("source", "target"),
        ("t5", "bart", "llama"),
        of_the_vocabulary,
        "tests/system/test_seq2seq.py::test_stopped_and_started_again_has_the_same_bits",
        {"data.target_buckets": (16,)},
        left_out={
            "packed": ONE_PAIR,
            "neighbour": ONE_PAIR,
            ("wider", "bart", "left"): FROM_THE_COLUMN,
            ("wider", "llama", "left"): BEHIND_A_SOURCE,
            ("garbage", "llama", "left"): BEHIND_A_SOURCE,
        },
        other_families="mBART, Marian and mT5 mask as these; of decoders causal_lm has tried more",
    ),
    "embedding": Row(
        near,
        ("bert", "llama"),
        of_the_candidates,
        "",
        left_out={
            "packed": ONE_ROW,
            "neighbour": ONE_ROW,
            "divided": (
                "the texts of a batch are each other's negatives, so that its parts are another "
                "batch, and dividing is refused"
            ),
        },
        other_families=(
            "they pool as these do, and masked_lm and seq2seq try their rows and masks; DeBERTa's "
            "convolution would mix the texts of a row"
        ),
    ),
    "recommendation": Row(
        near,
        ("bert", "llama"),
        of_the_shares,
        "",
        {
            "data.eval_args": "leaky_leave_one_out",
            "data.targets": 2,
            "data.item_max_length": 6,
            "data.max_history": 3,
            # Tried in tests/system; without it the loss is the paper's.
            "objective.popularity": False,
        },
        files={"data.source": "likes.jsonl", "data.catalogue": "items.jsonl"},
        write=write_likes,
        left_out={
            "packed": ONE_ROW,
            "neighbour": ONE_ROW,
            "divided": (
                "what others like is what a user's likes are told from, so that parts of a batch "
                "are another batch, and dividing is refused"
            ),
        },
        other_families="its network and rows are embedding's",
    ),
    "image_classification": Row(
        painted,
        ("dinov2", "vit"),
        lambda objective, batch: math.log(len(objective.classes)),
        "tests/system/test_image_classification.py::"
        "test_stopped_and_started_again_ends_with_the_same_bits",
        left_out={"packed": ONE_IMAGE, "neighbour": ONE_IMAGE, "wider": ONE_IMAGE}
        | {("garbage", family, "left"): ONE_IMAGE for family in ("dinov2", "vit")},
        other_families="CLIP and SigLIP have the same blocks, and another mean of them",
    ),
    "setfit": Row(
        sorted_briefly,
        ("bert", "llama"),
        of_the_mean,
        "tests/system/test_setfit.py::test_stopped_and_started_again_is_the_same_run",
        {"objective.num_iterations": 1},
        left_out={"packed": ONE_ROW, "neighbour": ONE_ROW},
        other_families=(
            "its rows are embedding's, and its solved head sits on classification's one vector"
        ),
    ),
    "span_extraction": Row(
        asked,
        ("bert", "roberta", "modernbert", "deberta-v2"),
        of_the_places,
        "tests/system/test_span_extraction.py::test_stopped_and_started_again",
        {"data.doc_stride": 2, "data.id_field": None},
        left_out={"packed": ONE_SENTENCE, "neighbour": ONE_SENTENCE} | LEFT,
        other_families="they differ from these in nothing that a position sees",
    ),
}


def reason(objective: str, name: str, family: str = "", side: str = "") -> str | None:
    """Why a property is not asked, or None."""
    left_out = ROWS[objective].left_out
    return left_out.get(name) or left_out.get((name, family, side))


def reasons(objective: str, name: str) -> str:
    """All that is not asked of a property, and why, as a sentence; "" where nothing is left out."""
    found: dict[str, list[str]] = {}
    for key, why in ROWS[objective].left_out.items():
        if key == name:
            return why
        if key[0] == name and key[1] in ROWS[objective].families:
            found.setdefault(f"padded on the {key[2]}: {why}", []).append(key[1])
    return "; ".join(f"{', '.join(families)} {why}" for why, families in found.items())


def cells(name: str) -> list[tuple[str, str]]:
    """The objectives and families that a property is asked of."""
    return [
        (objective, family)
        for objective, row in ROWS.items()
        for family in row.families
        if reason(objective, name) is None
    ]


def sided_cells(name: str) -> list[tuple[str, str, str, str]]:
    """The same with each side of padding, alone and (where texts share rows) packed."""
    return [
        (objective, family, side, packing)
        for (objective, family), side in itertools.product(cells(name), SIDES)
        for packing in (("alone", "packed") if ROWS[objective].packs else ("alone",))
        if reason(objective, name, family, side) is None
    ]
