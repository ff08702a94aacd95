"""Orders at a coffee bar: conversations with its assistant, and turns that people judged."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ftjax.data.rows_builder import RowsBuilder, split_by_hash
from ftjax.locate import fetch

ADDRESS = (
    "https://raw.githubusercontent.com/google-research-datasets/Taskmaster/"
    "d92cb6af3005f1dc09c39e75e7daf4a04905e00b/TM-4-2024/"
)
FILES = {
    "data/data_00.json": "d9440d1a46e6ba9f8c680a77a7dc7a42b0b3266ef555aeac6160b0d5ac37c647",
    "data/data_01.json": "2577d6af1c9d7cc5540d5193206d35b000ebeff59925c1076ce724f1a85b8964",
    "data/data_02.json": "b353618d9709c6bdeafa08682526e04047ad28d5f9acd65ed7878482a90d49df",
    "data/data_03.json": "45fe8eb52af674b69972d172c911f9cfd6f5044b61338b524997edf1a4861641",
    "data/data_04.json": "bf5f2e3704aab48f657ec97f8d9bf041abec17a1cd3e56206c3424910875088d",
    "data/data_05.json": "3d158e9880bfea3e5db18d008cf1f726f1d802eca28c2b71fc291274b9ee60ba",
    "data/data_06.json": "dd0546a6aaf430a812f4cfb5d8f9f0c823136ba2e77e78103b50a8e95080759c",
    "data/data_07.json": "b61f11f3c950c330049906ae249e858503ec7c905fcad5b4a7edd851ccf07bbc",
    "reward/reward_00.json": "79f809857b90e8afe28c542dbcbdea79a1a1e365aa4626b6ec2fdc37785a9f24",
    "reward/reward_01.json": "818fe4604d23cbb3b77aebf98f28300ae411ca3305a4b730d19bd8ff69ab9455",
    "reward/reward_02.json": "433851379c7143299b2570ffc7c40a8f57ddabf0c8278ad123da7a7dac64c867",
    "reward/reward_03.json": "d2f96717912652d3bd0a7aa907aa0b798aa35465e5ee5a768f0de118d08fe149",
    "reward/reward_04.json": "73ae7f65dc98f1906eac243cf95cc75f7b6489ef5e4a7cf8c787f4704672a7df",
    "reward/reward_05.json": "8d0c124fd06b261596fc72e188fbd326d1b5dd559ecbf3a585a513c1f3e12cf1",
    "reward/reward_06.json": "55ce13a025dcfb842ef2de75e4cfafb07a1f1938905d5c4e59e5b440a7ce624c",
}
# Of the judged turns. In the dialogues they are named so already.
ROLES = {"user": "user", "agent": "assistant", "api": "tool"}


class CoffeeBar(RowsBuilder):
    """Taskmaster-4: 3,710 written conversations, or 3,228 assistant turns judged good or bad.

    `dialogues` (the default): `messages` of user and assistant, what is said only; the calls of the
    order system that are annotated between them are left out. `rewards`: `prompt` (messages),
    `completion` (the one message that was judged) and `label` (good or not), as KTO has them; here
    calls stand as JSON in messages of the assistant, answers of the order system in messages of the
    role `tool`. `preferences`: the 617 pairs of a good and a bad turn for one `prompt`, as `chosen`
    and `rejected`. None has published splits: conversations of the same words are of one split, and
    so are judged turns of conversations that begin with the same order (six open one: no prompt).
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="dialogues"),
        tfds.core.BuilderConfig(name="rewards"),
        tfds.core.BuilderConfig(name="preferences"),
    ]
    HOMEPAGE = "https://github.com/google-research-datasets/Taskmaster/tree/master/TM-4-2024"
    LICENSE = "CC-BY-4.0"
    CITATION = """\
@article{sidahmed2024perl,
  title = {PERL: Parameter Efficient Reinforcement Learning from Human Feedback},
  author = {Sidahmed, Hakim and Phatale, Samrat and Hutcheson, Alex and others},
  journal = {arXiv preprint arXiv:2403.10704},
  year = {2024},
}"""

    def features(self) -> Mapping:
        """Messages have `role` and `content`."""
        text = tfds.features.Text()
        messages = tfds.features.Sequence({"role": text, "content": text})
        if self.config_name == "dialogues":
            return {"messages": messages, "scenario": text, "conversation": text}
        if self.config_name == "preferences":
            return dict.fromkeys(("prompt", "chosen", "rejected"), messages)
        judged = {
            "prompt": messages,
            "completion": messages,
            "label": tfds.features.Scalar(np.bool_),
        }
        return {**judged, "conversation": text}

    def splits(self) -> Mapping:
        """The rows of all files, divided by hash."""
        dialogues = self.config_name == "dialogues"
        folder, read = ("data/", read_dialogue) if dialogues else ("reward/", read_judged)
        splits: dict[str, list] = {"train": [], "validation": [], "test": []}
        for name, sha256 in FILES.items():
            if name.startswith(folder):
                content = fetch(ADDRESS + name, sha256).read_bytes()
                for published in json.loads(content):
                    group, row = read(published)
                    splits[split_by_hash(group)].append(row)
        if self.config_name == "preferences":
            return {split: preferred(rows) for split, rows in splits.items()}
        return splits


def read_dialogue(published: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a conversation says, for its split, and its row."""
    messages = [
        {"role": turn["speaker"], "content": turn["text"].strip()}
        for turn in published["utterances"]
    ]
    said = "\n".join(message["content"].lower() for message in messages)
    scenario = published["scenario"] or ""
    row = {"messages": messages, "scenario": scenario}
    return said, {**row, "conversation": published["conversation_id"]}


def read_judged(published: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The customer's first words, for the split, and the row of a judged turn."""
    prompt = [read_turn(turn) for turn in json.loads(published["context"])]
    asked = next((turn["content"] for turn in prompt if turn["role"] == "user"), "")
    return " ".join(asked.lower().split()), {
        "prompt": prompt,
        "completion": [read_turn(json.loads(published["generation"]))],
        "label": published["reward"] == 1,
        "conversation": published["conversation_id"],
    }


def preferred(judged: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each good turn beside each bad one for the same prompt; none twice."""
    turns: dict[str, dict[bool, list]] = {}
    for row in judged:
        of_prompt = turns.setdefault(json.dumps(row["prompt"]), {True: [], False: []})
        if row["completion"] not in of_prompt[row["label"]]:
            of_prompt[row["label"]].append(row["completion"])
    return [
        {"prompt": json.loads(prompt), "chosen": good, "rejected": bad}
        for prompt, found in turns.items()
        for good, bad in itertools.product(found[True], found[False])
    ]


def read_turn(turn: dict[str, Any]) -> dict[str, str]:
    """A message of a turn, which is a text, a call (`api`) or its answer (`response`)."""
    (content,) = (turn[kind] for kind in ("text", "api", "response") if kind in turn)
    if not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False)
    return {"role": ROLES[turn["role"]], "content": content.strip()}
