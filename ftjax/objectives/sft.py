"""Supervised fine-tuning: what an assistant answers, learned from chats."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from rich.text import Text

from ftjax.data.asked import Asked, draw_asked, prompts_of
from ftjax.data.chat import ChatTemplate, template_of
from ftjax.data.dialogues import Chat, Plain, read_chats
from ftjax.data.examples import Examples, packed_examples
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadRecordError, bad_record
from ftjax.data.supervised import (
    STRATEGIES,
    SupervisedExamples,
    SupervisedText,
    fill_rows,
    tokenize_marked,
)
from ftjax.data.tokenizer import load_tokenizer
from ftjax.data.turns import Marked, mark_all, mark_turns
from ftjax.evaluation.answers import Answers
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.measurement import Measurement, Retention
from ftjax.evaluation.metrics import (
    SUPERVISED_TOKEN_METRICS,
    supervised_token_metrics,
    token_intervals,
)
from ftjax.evaluation.retention import TEXT_FIELDS, text_retention
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import tokens
from ftjax.losses.forward import Forward
from ftjax.models.generate import max_positions, write
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Network
from ftjax.objectives.base import LOGITS_AT_ONCE, LossSums, Objective, metric_field
from ftjax.pretrained.generation_defaults import GenerationDefaults, generation_defaults

# (Index of an example, what is wrong with it) -> what to raise.
Refusal = Callable[[int, str], BadRecordError]

# Of the example that is shown.
MOST_TOKENS = 400

TOOLS: Fields = {
    "data.tools_field": Field(None, "Column with JSON schemas of tools, or null.", optional=str)
}
ASSISTANT_ONLY: Fields = {
    "objective.assistant_only_loss": Field(
        True, "Learn what the assistant says, its end of turn included; else the whole chat."
    )
}
COMPLETION_ONLY: Fields = {
    "objective.completion_only_loss": Field(
        True, "Learn what the assistant says in the completion; else the prompt, too."
    )
}
TEMPLATE: Fields = {
    "data.chat_template": Field(
        None, "File with a chat template in Jinja, in the place of the checkpoint's.", optional=str
    )
}
FORMATS: dict[str, Fields] = {
    "messages": {
        "data.messages_field": Field("messages", "Column with messages: role and content."),
        **TOOLS,
        **TEMPLATE,
        **ASSISTANT_ONLY,
    },
    "prompt_completion": {
        "data.prompt_field": Field("prompt", "Column with a text, or messages."),
        "data.completion_field": Field("completion", "Column with what follows, of the same kind."),
        **TOOLS,
        **TEMPLATE,
        **COMPLETION_ONLY,
    },
    "sharegpt": {
        "data.conversations_field": Field("conversations", "Column with turns: from and value."),
        **TOOLS,
        **TEMPLATE,
        **ASSISTANT_ONLY,
    },
    "alpaca": {
        "data.instruction_field": Field("instruction", "Column with what is asked."),
        "data.input_field": Field("input", "Column with what it is about.", optional=str),
        "data.output_field": Field("output", "Column with the answer."),
        **TEMPLATE,
        **COMPLETION_ONLY,
    },
    "text": {"data.text_field": Field("text", "Column with the text; all of it is learned.")},
}


class SupervisedFineTuning(Objective):
    """Predicts what the assistant says in chats, given what stands before; see `Objective`."""

    metrics: ClassVar = SUPERVISED_TOKEN_METRICS
    fields: ClassVar[Fields] = {
        **LOGITS_AT_ONCE,
        "data.format": Field("messages", "What a record holds.", options=FORMATS),
        "data.max_length": Field(
            1024, "Most tokens of a row; what an example has beyond is cut or divided.", minimum=3
        ),
        "data.packing": Field(
            False,
            "Fill rows with several examples each, which do not see each other.",
            options={
                True: {
                    "data.packing_strategy": Field(
                        "bfd",
                        "Best fit decreasing, too long examples cut or divided (bfd_split); or in "
                        "order, an example going on in the next row (wrapped).",
                        choices=STRATEGIES,
                    )
                },
                False: {},
            },
        ),
        "evaluation.answers": Field(
            0,
            "Turns of test chats, and as many of validation, that the network writes itself before "
            "and after tuning, to be compared with people's; 0: none.",
            minimum=0,
            if_set={"generation.max_new_tokens": Field(64, "Most tokens of an answer.", minimum=1)},
        ),
        **metric_field(metrics, "loss"),
        **TEXT_FIELDS,
    }

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self._shown: Text | None = None
        self._asked: dict[str, list[Asked]] = {}
        if facts is None and (file := config.data.get("chat_template")) is not None:
            if not Path(file).is_file():
                raise FileNotFoundError(f"config.data.chat_template: there is no file {file}.")
            self.facts["chat_template"] = Path(file).read_text(encoding="utf-8")

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """Answers to texts that ask for none."""
        if config.evaluation.answers and config.data.format == "text":
            return (
                "config.evaluation.answers compares answers, and records of config.data.format = "
                "'text' ask for none; leave it at 0."
            )
        return None

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own, with the chat template of the config if it has one."""
        tokenizer = load_tokenizer(self.folder, grow_table=self.config.model.grow_table)
        if "chat_template" in self.facts:
            tokenizer.chat_template = self.facts["chat_template"]
        return tokenizer

    @property
    def network_name(self) -> str:
        """Every published decoder has one."""
        return "causal_lm"

    def read_split(self, split: str) -> SupervisedExamples:
        """Chats, rendered and tokenised, in rows."""
        records = self.load(split, self._columns)
        found = read_chats(records, self.config.data.format)
        marked, record_of = self._marked(split, records, found)
        if split != "train" and self.config.evaluation.answers:
            self._asked[split] = self._draw_asked(split, records, found)

        def refusal(index: int, problem: str) -> BadRecordError:
            return bad_record(records, record_of[index], problem)

        text = tokenize_marked(marked, self.tokenizer, refusal)
        self._refuse_shares(text, refusal)
        length, strategy = self.config.data.max_length, self.config.data.get("packing_strategy")
        pieces, rows = fill_rows(text, length, strategy)
        if strategy not in ("bfd_split", "wrapped"):
            _refuse_cut_off(text, pieces, length, refusal)
        buckets = sorted({max(-(-length // part), 3) for part in (8, 4, 2, 1)})
        buckets = [length] if strategy else buckets
        examples = SupervisedExamples(text, pieces, rows, buckets, records.fingerprint)
        self._note(split, len(records), examples)
        if split == "train":
            self._shown = _shown(records.where(record_of[0]), text, self.tokenizer)
            self._note_stop(text)
            if any(one.rendered for one in marked) and "strftime_now" in self._template().text:
                self.notes.append(
                    "the chat template can write the date of today into each chat: a run that goes "
                    "on another day may not end with the same bits"
                )
        return examples

    @property
    def _columns(self) -> dict[str, str]:
        """Our names -> columns, of the format."""
        data = self.config.data
        fields = [name.split(".")[1] for name in FORMATS[data.format] if name.endswith("_field")]
        named = {field.removesuffix("_field"): data[field] for field in fields}
        return {ours: theirs for ours, theirs in named.items() if theirs is not None}

    @property
    def _only(self) -> str | None:
        """The field that says that a part is learned, where it does."""
        names = ("assistant_only_loss", "completion_only_loss")
        return next((name for name in names if self.config.objective.get(name)), None)

    def _marked(
        self, split: str, records: Records, found: Sequence[Chat | Plain]
    ) -> tuple[list[Marked], list[int]]:
        """The texts that are learned, and the record that each is of."""
        chats = [index for index, one in enumerate(found) if isinstance(one, Chat)]
        groups: list[list[Marked]] = [[] for _ in found]
        if chats:
            dialogues = [cast(Chat, found[index]) for index in chats]
            told = self._template(), dialogues, lambda number: records.where(chats[number])
            special = self.tokenizer.get_added_vocab()
            try:
                rendered = mark_turns(*told, special) if self._only else mark_all(*told)
            except BadRecordError as error:
                problems = {chats[number]: problem for number, problem in error.problems.items()}
                raise BadRecordError(problems) from error
            for index, group in zip(chats, rendered, strict=True):
                groups[index] = group
            opening = sum(chat.dialogue.messages[0]["role"] == "assistant" for chat in dialogues)
            if opening and self._only:
                self.notes.append(
                    f"{split}: {opening:,} chats begin with the assistant; nothing has asked for "
                    "such a turn, and it is read without being learned"
                )
        plain = len(chats) < len(found) and self.config.data.format != "text"
        if plain and template_of(self.tokenizer) is not None:
            self.notes.append(
                f"{split}: prompts are texts as they are, while scripts/chat.py asks in the chat "
                "template; give prompts and completions as messages to have both alike"
            )
        for index, one in enumerate(found):
            if isinstance(one, Plain):
                start = len(one.prompt) if self._only else 0
                text = one.prompt + one.completion
                groups[index] = [Marked(text, ((start, len(text)),), rendered=False)]
        record_of = [index for index, group in enumerate(groups) for _ in group]
        return [one for group in groups for one in group], record_of

    def _template(self) -> ChatTemplate:
        template = template_of(self.tokenizer, tools="tools" in self._columns)
        if template is None:
            raise ValueError(
                f"{self.config.model.reference} has no chat template, so that nothing says how it "
                "would read a chat. Take a network that was made for chats, name the file of a "
                "template (config.data.chat_template), or give prompts and completions as texts "
                "(config.data.format = 'prompt_completion')."
            )
        own = self.config.data.chat_template
        return template if own is None else dataclasses.replace(template, file=Path(own))

    @functools.cached_property
    def _defaults(self) -> GenerationDefaults:
        """How the checkpoint wants answers to be written."""
        end: Any = self.tokenizer.eos_token_id
        ends = () if end is None else (end,)
        return generation_defaults(self.folder, ends, is_encoder_decoder=False)

    def _note_stop(self, text: SupervisedText) -> None:
        """Notes if nothing that is learned ends an answer."""
        stops = self._defaults.stop_token_ids
        learned = text.input_ids[text.supervised]
        if not np.isin(learned, list(stops)).any():
            names = ", ".join(self.tokenizer.convert_ids_to_tokens(list(stops)))
            self.notes.append(
                f"none of the tokens at which writing stops ({names}) is learned: a finished "
                "network will not know when to end"
            )

    def _refuse_shares(self, text: SupervisedText, refusal: Refusal) -> None:
        """Raises BadRecordError for examples of which nothing is learned, or all of it."""
        told = dict.fromkeys(np.flatnonzero(text.shares == 0).tolist(), "nothing of it is learned")
        if self._only is not None:
            all_of_it = (
                "all of its tokens would be learned, as nothing stands before them, and "
                f"config.objective.{self._only} is to learn a part. Give it a prompt, or set the "
                "field to False."
            )
            told |= dict.fromkeys(np.flatnonzero(text.shares == 1).tolist(), all_of_it)
        _refuse(told, refusal)

    def _note(self, split: str, records: int, examples: SupervisedExamples) -> None:
        text, data = examples.text, self.config.data
        lengths, counts = examples.lengths, np.diff(text.offsets)
        told = f"{split}: {records:,} records"
        if len(counts) > records:
            told += (
                f" as {len(counts):,} examples, since the chat template writes earlier answers "
                "otherwise than a last one"
            )
        told += f", {lengths.sum():,} tokens, {examples.share_supervised:.0%} of them learned"
        if data.packing:
            full = lengths.mean() / data.max_length
            told += f", in {len(lengths):,} rows of {data.max_length:,} that are {full:.0%} full"
        if longer := int((counts > data.max_length).sum()):
            lost = 1 - lengths.sum() / counts.sum()
            cut = "divided" if data.get("packing_strategy") in ("bfd_split", "wrapped") else "cut"
            told += f"; {longer:,} longer than {data.max_length:,} tokens were {cut}"
            told += f", {lost:.1%} of all tokens left out"
        self.notes.append(told)

    def export(self, network: Network, folder: str | Path) -> None:
        """The network, and the chat template it was taught with."""
        super().export(network, folder)
        self._write_template(folder)

    def export_adapter(self, network: Network, folder: str | Path) -> None:
        """The adapter, and the chat template it was taught with."""
        super().export_adapter(network, folder)
        self._write_template(folder)

    def _write_template(self, folder: str | Path) -> None:
        if "chat_template" in self.facts:
            file = Path(folder) / "chat_template.jinja"
            file.write_text(self.facts["chat_template"], encoding="utf-8")

    def shown_example(self) -> Text | None:
        """The first of the training split."""
        return self._shown

    def network(self, backbone: Network) -> LanguageModel:
        """The published network with its published head.

        Raises:
            ValueError: prompts and answers longer than the network has positions for.
        """
        if self._asked:
            self._refuse_without_room(backbone)
        return LanguageModel(backbone, self.config.model.logits_at_once)

    def _refuse_without_room(self, backbone: Network) -> None:
        most, new = max_positions(backbone), self.config.generation.max_new_tokens
        longest = max(len(one.prompt) for asked in self._asked.values() for one in asked)
        if most is not None and longest + new > most:
            raise ValueError(
                f"Answers of {new} tokens (config.generation.max_new_tokens) behind prompts of "
                f"{longest} do not fit the {most} positions of the network; lower it, or "
                "config.data.max_length."
            )

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the tokens that are learned; each counts once, whatever its example."""
        total, weight, metrics = tokens.loss_and_entropy(forward.outputs, forward.batch)
        real = jnp.sum(forward.batch["segment_ids"] > 0).astype(jnp.float32)
        return total, weight, metrics | {"share_supervised": (weight, real)}

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Sums of each row, [rows, 4]: see `row_sums_and_entropy`."""
        return tokens.row_sums_and_entropy(network(batch), batch)

    @property
    def draws(self) -> bool:
        """It also says which answers are written."""
        return bool(self._asked)

    def _draw_asked(
        self, split: str, records: Records, found: Sequence[Chat | Plain]
    ) -> list[Asked]:
        """Turns of a split that the network is to write.

        Raises:
            ValueError: no prompt is short enough.
        """
        count, most = self.config.evaluation.answers, self.config.data.max_length
        asked = draw_asked(
            found,
            self.tokenizer,
            self._template,
            records.where,
            count=count,
            most=most,
            seed=self.config.data.split_seed,
        )
        if not asked:
            raise ValueError(
                f"config.evaluation.answers: no chat of {records.name} has an answer with at most "
                f"config.data.max_length = {most} tokens before it. Raise that, or leave "
                "evaluation.answers at 0."
            )
        if len(asked) < count:
            self.notes.append(
                f"{split}: {len(asked):,} answers are written for comparison, as no more chats ask "
                f"for one within {most:,} tokens"
            )
        return asked

    def answers(self) -> Answers | None:
        """The turns of validation and test that the network writes itself."""
        if not self._asked:
            return None
        length, defaults = self.config.data.max_length, self._defaults
        buckets = (max(length // 2, 3), length)
        how = {
            "max_new_tokens": self.config.generation.max_new_tokens,
            "sampling": defaults.sampling(temperature=0.0),
            "stop_token_ids": defaults.stop_token_ids,
        }

        def outputs(network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
            found = write(network.backbone, batch["input_ids"], batch["attention_mask"], **how)
            # float32 holds every id below 2**24.
            return found.astype(jnp.float32)

        def texts(written: dict[str, np.ndarray]) -> dict[str, list[str]]:
            return {n: defaults.texts(self.tokenizer, rows) for n, rows in written.items()}

        examples = {
            name: prompts_of(asked, self.tokenizer, buckets, self.examples[name].fingerprint)
            for name, asked in self._asked.items()
        }
        return Answers(self._asked, Measurement(examples, outputs, texts))

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `token_intervals`."""
        return token_intervals(outputs["test"], "mean_token_accuracy")

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `supervised_token_metrics`, and `share_supervised` of the split's tokens."""
        examples = cast(SupervisedExamples, self.examples[split])
        found = supervised_token_metrics(outputs, examples.predicted_bytes)
        return {**found, "share_supervised": examples.share_supervised}

    def retention(self) -> Retention:
        """The perplexity of unrelated text."""
        return text_retention(self.config.retention, self.general_text, self.outputs)

    def general_text(self, records: Records) -> Examples:
        """Packed, all of it to be predicted."""
        return packed_examples(records, self.tokenizer, self.config.data.max_length)


def _refuse(problems: Mapping[int, str], refusal: Refusal) -> None:
    """Raises one error for all, which are known by the index of their example."""
    found: dict[int, str] = {}
    for index, problem in problems.items():
        found |= refusal(index, problem).problems
    if found:
        raise BadRecordError(found)


def _refuse_cut_off(
    text: SupervisedText, pieces: np.ndarray, length: int, refusal: Refusal
) -> None:
    """What would be learned of an example must not all be cut off."""
    learned, counts = text.predicted(pieces[:, 0]), np.diff(text.offsets)
    problems = {
        index: f"the first {length:,} of its {counts[index]:,} tokens hold nothing that is "
        "learned. Raise config.data.max_length, divide it (packing_strategy = 'bfd_split'), or "
        "leave the record out."
        for index, (start, end) in enumerate(pieces)
        if not learned[start:end].any()
    }
    _refuse(problems, refusal)


def _shown(where: str, text: SupervisedText, tokenizer: Any) -> Text:
    """The first text; what is learned in colour, and between brackets for who sees none."""
    end = text.offsets[1]
    ids, learned = text.input_ids[:end], text.supervised[:end]
    shown = Text(f"{where}, as it is read; what is learned stands between ⟦ and ⟧:\n")
    bounds = np.flatnonzero(np.diff(learned)) + 1
    for run, is_learned in zip(np.split(ids, bounds), learned[[0, *bounds]], strict=True):
        told = _decoded(run, tokenizer)
        shown.append(f"⟦{told}⟧" if is_learned else told, "bold green" if is_learned else "dim")
    return shown


def _decoded(ids: np.ndarray, tokenizer: Any) -> str:
    if len(ids) <= MOST_TOKENS:
        return tokenizer.decode(ids)
    half = MOST_TOKENS // 2
    return f"{tokenizer.decode(ids[:half])} [...] {tokenizer.decode(ids[-half:])}"
