"""What objectives share that learn from chats with a causal language model."""

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
from ftjax.data.dialogues import Chat, Plain
from ftjax.data.examples import Examples, packed_examples
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadRecordError
from ftjax.data.supervised import SupervisedText
from ftjax.data.tokenizer import load_tokenizer
from ftjax.data.turns import Marked, mark_all, mark_turns
from ftjax.evaluation.answers import Answers
from ftjax.evaluation.measurement import Measurement, Retention
from ftjax.evaluation.retention import TEXT_FIELDS, text_retention
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import tokens
from ftjax.losses.forward import Forward
from ftjax.models.generate import max_positions, write
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Network
from ftjax.objectives.base import LossSums, Objective
from ftjax.objectives.fields import LOGITS_AT_ONCE
from ftjax.pretrained.generation_defaults import GenerationDefaults, generation_defaults

# (Index of an example, what is wrong with it) -> what to raise.
Refusal = Callable[[int, str], BadRecordError]

# Of the example that is shown.
MOST_TOKENS = 400

TOOLS: Fields = {
    "data.tools_field": Field(None, "Column with JSON schemas of tools, or null.", optional=str)
}
TEMPLATE: Fields = {
    "data.chat_template": Field(
        None, "File with a chat template in Jinja, in the place of the checkpoint's.", optional=str
    )
}


class ChatObjective(Objective):
    """An objective whose records are chats, or prompts with answers; see `Objective`."""

    fields: ClassVar[Fields] = {
        **LOGITS_AT_ONCE,
        "evaluation.answers": Field(
            0,
            "Turns of test chats, and as many of validation, that the network writes itself before "
            "and after tuning, to be compared with people's; 0: none.",
            minimum=0,
            if_set={"generation.max_new_tokens": Field(64, "Most tokens of an answer.", minimum=1)},
        ),
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

    @property
    def columns(self) -> dict[str, str]:
        """Our names -> columns of the records, tools among them if there are any."""
        raise NotImplementedError

    def shown_example(self) -> Text | None:
        """The first of the training split."""
        return self._shown

    def marked(
        self, split: str, records: Records, found: Sequence[Chat | Plain], *, answers_only: bool
    ) -> list[list[Marked]]:
        """The texts that are learned of each record, and what of them.

        Args:
            split: for notes.
            records: that were read.
            found: what each says.
            answers_only: whether only answers are learned; else all of a chat, or of a prompt with
                what follows it.

        Raises:
            BadRecordError: chats that cannot be learned from; see `mark_turns`.
        """
        chats = [index for index, one in enumerate(found) if isinstance(one, Chat)]
        groups: list[list[Marked]] = [[] for _ in found]
        if chats:
            dialogues = [cast(Chat, found[index]) for index in chats]
            told = self.template(), dialogues, lambda number: records.where(chats[number])
            special = self.tokenizer.get_added_vocab()
            try:
                rendered = mark_turns(*told, special) if answers_only else mark_all(*told)
            except BadRecordError as error:
                problems = {chats[number]: problem for number, problem in error.problems.items()}
                raise BadRecordError(problems) from error
            for index, group in zip(chats, rendered, strict=True):
                groups[index] = group
            opening = sum(
                chat.first == 0 and chat.dialogue.messages[0]["role"] == "assistant"
                for chat in dialogues
            )
            if opening and answers_only:
                self.notes.append(
                    f"{split}: {opening:,} chats begin with the assistant; nothing has asked for "
                    "such a turn, and it is read without being learned"
                )
        asks = any(isinstance(one, Plain) and one.prompt for one in found)
        if asks and template_of(self.tokenizer) is not None:
            self.notes.append(
                f"{split}: prompts are texts as they are, while scripts/chat.py asks in the chat "
                "template; give prompts and completions as messages to have both alike"
            )
        for index, one in enumerate(found):
            if isinstance(one, Plain):
                start = len(one.prompt) if answers_only else 0
                text = one.prompt + one.completion
                groups[index] = [Marked(text, ((start, len(text)),), rendered=False)]
        return groups

    def note_training_texts(
        self, marked: Sequence[Marked], where: str, text: SupervisedText
    ) -> None:
        """What a person should know of the texts of the training split, and the first of them.

        Args:
            marked: as they were rendered.
            where: what sentences call the record of the first.
            text: the same, tokenised.
        """
        self._shown = _shown(where, text, self.tokenizer)
        self._note_stop(text)
        if any(one.rendered for one in marked) and "strftime_now" in self.template().text:
            self.notes.append(
                "the chat template can write the date of today into each chat: a run that goes "
                "on another day may not end with the same bits"
            )

    def template(self) -> ChatTemplate:
        """What makes texts of chats.

        Raises:
            ValueError: there is none.
        """
        template = template_of(self.tokenizer, tools="tools" in self.columns)
        if template is None:
            raise ValueError(
                f"{self.config.model.reference} has no chat template, so that nothing says how it "
                "would read a chat. Take a network that was made for chats, name the file of a "
                "template (config.data.chat_template), or give prompts and what follows them as "
                "texts (of sft: config.data.format = 'prompt_completion')."
            )
        own = self.config.data.get("chat_template")
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

    def export(self, network: Network, folder: str | Path) -> None:
        """The network, and the chat template it was taught with."""
        super().export(network, folder)
        self.write_template(folder)

    def export_adapter(self, network: Network, folder: str | Path) -> None:
        """The adapter, and the chat template it was taught with."""
        super().export_adapter(network, folder)
        self.write_template(folder)

    def write_template(self, folder: str | Path) -> None:
        """The chat template of the config, beside what is exported."""
        if "chat_template" in self.facts:
            file = Path(folder) / "chat_template.jinja"
            file.write_text(self.facts["chat_template"], encoding="utf-8")

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

    def token_sums(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Sums of each row of a batch with `labels`, [rows, 4]: see `row_sums_and_entropy`."""
        return tokens.row_sums_and_entropy(network(batch), batch)

    def general_loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the next token."""
        return tokens.loss(forward.outputs, forward.batch)

    @property
    def draws(self) -> bool:
        """It also says which answers are written."""
        return bool(self._asked)

    def draw_asked(self, split: str, records: Records, found: Sequence[Chat | Plain]) -> None:
        """Draws turns of validation and test that the network is to write itself.

        Raises:
            ValueError: no prompt is short enough.
        """
        count, most = self.config.evaluation.answers, self.config.data.max_length
        if split == "train" or not count:
            return
        asked = self._asked[split] = draw_asked(
            found,
            self.tokenizer,
            self.template,
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

    def retention(self) -> Retention:
        """The perplexity of unrelated text."""
        return text_retention(self.config.retention, self.general_text, self.token_sums)

    def general_text(self, records: Records) -> Examples:
        """Packed, all of it to be predicted."""
        return packed_examples(records, self.tokenizer, self.config.data.max_length)


def refuse_all(problems: Mapping[int, str], refusal: Refusal) -> None:
    """Raises one error for all, which are known by the index of their example.

    Raises:
        BadRecordError: there are problems.
    """
    found: dict[int, str] = {}
    for index, problem in problems.items():
        found |= refusal(index, problem).problems
    if found:
        raise BadRecordError(found)


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
