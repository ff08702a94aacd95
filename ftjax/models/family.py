"""What a model family is: its config, its networks, and how its names stand to the published ones.

Modules carry the names of the published checkpoint wherever those make sense, so most families
need no table at all: `encoder.layer.0.attention.self.query.kernel` here is
`encoder.layer.0.attention.self.query.weight` there. What differs is listed in `Family.renames`,
and read in both directions, so that export is the inverse of loading.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from reprlib import repr
from typing import Any

import numpy as np

from ftjax.models.reference import fields_read, is_default, rope_parameters_read
from ftjax.models.rotary import Rotary
from ftjax.models.schema import as_object, require_values

MOST_NAMED = 20
ROPE_FIELDS = frozenset(["rope_parameters", "rope_scaling"])
# Fields of config.json that say nothing about what the network computes.
HARMLESS_FIELDS = frozenset(
    [
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "_num_labels",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_weights_",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "unk_token_id",
        "use_cache",
    ]
)

# Fields that change the computation in a way no family here has, with the values that do not.
NEUTRAL_VALUES: Mapping[str, tuple] = {
    "add_cross_attention": (False,),
    "decoder_layerdrop": (0.0,),
    "encoder_layerdrop": (0.0,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False,),
    "use_bfloat16": (False,),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of published checkpoints.

    Attributes:
        model_type: the field of config.json that selects this family.
        config: frozen dataclass with the fields of config.json that the computation uses; field
            names and defaults are those of transformers' config class. Its `__post_init__` refuses
            values that are not implemented. A classmethod `from_fields(fields: dict) -> dict`, if
            there is one, first rewrites older spellings into the present ones.
        networks: purpose -> module class, constructed as `cls(config, compute, rngs=rngs)`.
            "backbone" gives hidden states; others ("masked_lm", "causal_lm", "seq2seq_lm", ...) add
            a published head and hold the backbone in the attribute `backbone`.
        prefix: what precedes the backbone's names in checkpoints of networks with a head
            (`bert.`); a checkpoint of the bare backbone comes without.
        renames: (ours, theirs) pairs of leading parts of a name; `{}` stands for one path segment,
            the first pair that fits is used, and names without one are the same on both sides.
        heads: regular expressions of published tensors, one for each part that belongs to a head or
            to training; a network that has nothing of such a part may leave it behind.
        buffers: regular expressions of published tensors that the computation derives by itself
            (position ids, rotary frequencies); never loaded, never written.
        derived: of such tensors with numbers that matter, pattern -> what they must hold, from
            their shape.
        untransposed: regular expression of module paths whose published `weight` is already
            `[in, out]` (GPT-2's Conv1D).
        tied: published name -> published name it repeats when the config ties them.
        zeros: regular expressions of published tensors that are zeros where a checkpoint lacks
            them.
        ignored_fields: fields of config.json that this family knows and does not need.
        parts: field of config.json -> family of the config that stands in it.
    """

    model_type: str
    config: type
    networks: Mapping[str, Callable]
    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    heads: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    derived: Mapping[str, Callable[..., np.ndarray]] = dataclasses.field(default_factory=dict)
    untransposed: str = r"(?!)"
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    ignored_fields: frozenset[str] = frozenset()
    parts: Mapping[str, "Family"] = dataclasses.field(default_factory=dict)

    def parse_config(
        self,
        fields: Mapping[str, Any],
        *,
        accept: tuple[str, ...] = (),
        say: Callable[[str], None] | None = None,
    ) -> Any:
        """config.json as this family's dataclass.

        Every field is used, known to be harmless, not read by transformers either, or refused; and
        every value that is used is of its field's type and within its bounds.

        Args:
            fields: the content of config.json.
            accept: names of further fields to ignore.
            say: told in sentences which fields were passed over, and which were to be accepted and
                are not there.

        Raises:
            ValueError: fields that transformers reads and ftjax does not implement, all of them
                listed, or values that are not implemented.
        """
        passed_over: list[str] = []
        config = self._parse(fields, accept, passed_over)
        if say is not None and fields.get("auto_map"):
            say(
                "config.json names code of its own (auto_map), which is never run: it is read as "
                f"transformers' {self.model_type}."
            )
        there = set(_names_in(fields))
        if say is not None and (absent := [name for name in accept if name not in there]):
            named = ", ".join(f"{name}{_nearest(name, there)}" for name in absent)
            say(f"config.json has no field to be accepted of the name {named}.")
        if say is not None and passed_over:
            more = len(passed_over) - MOST_NAMED
            names = ", ".join(passed_over[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
            say(
                f"config.json: passed over what transformers does not read for {self.model_type} "
                f"either: {names}."
            )
        return config

    def _parse(self, fields: Mapping[str, Any], accept: tuple[str, ...], passed_over: list) -> Any:
        given = dict(fields)
        for name in ROPE_FIELDS & given.keys():
            given[name] = _known_to_rope(name, given[name], accept, passed_over)
        values = getattr(self.config, "from_fields", dict)(dict(given))
        for name, part in self.parts.items():
            inner = as_object(name, values.get(name))
            values[name] = part._parse(inner, accept, passed_over)
        known = {field.name for field in dataclasses.fields(self.config)}
        ignored = HARMLESS_FIELDS | self.ignored_fields | set(accept)
        refused = []
        for name in [name for name in values if name not in known | ignored]:
            if name in NEUTRAL_VALUES:
                if values[name] not in NEUTRAL_VALUES[name]:
                    only = NEUTRAL_VALUES[name][0]
                    refused.append(f"  {name} = {repr(values[name])} (only {only!r} works here)")
            elif not self._is_read(name, values[name]):
                passed_over.append(f"{name}{_nearest(name, known)}")
            elif not is_default(self.model_type, name, given):
                refused.append(f"  {name} = {repr(values[name])}{_nearest(name, known)}")
        if refused:
            raise ValueError(
                f"config.json of this {self.model_type} checkpoint has fields that transformers "
                "reads and ftjax does not implement:\n" + "\n".join(refused) + "\nIf a field does "
                "not change what the network computes, name it in config.model.accept_fields "
                "(--accept_fields of the scripts)."
            )
        values = {name: _hashable(values[name]) for name in known if name in values}
        require_values(self.config, values)
        return self.config(**values)

    def _is_read(self, name: str, value: Any) -> bool:
        """Whether transformers would compute with a field; null says that it is not set."""
        read = fields_read(self.model_type)
        return value is not None and (read is None or name in read)

    def published_name(self, path: str, *, with_prefix: bool) -> str:
        """The checkpoint's tensor name of a parameter path such as `pooler.dense.kernel`.

        Args:
            path: dotted path of the parameter in our module tree.
            with_prefix: whether the checkpoint holds the backbone behind `prefix`.
        """
        inside_backbone = path.startswith("backbone.")
        path = path.removeprefix("backbone.")
        module, _, leaf = path.rpartition(".")
        leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(leaf, leaf)
        name = f"{module}.{leaf}" if module else leaf
        for ours, theirs in self.renames:
            pattern = re.escape(ours).replace(r"\{\}", r"([^.]+)") + r"(|\..*)"
            match = re.fullmatch(pattern, name)
            if match:
                *segments, rest = match.groups()
                name = theirs.format(*segments) + rest
                break
        return self.prefix + name if inside_backbone and with_prefix else name

    def to_ours(self, path: str, tensor: np.ndarray) -> np.ndarray:
        """A published tensor in our layout: kernels are `[*window, in, out]`, torch's reversed."""
        if not self._is_transposed(path):
            return tensor
        return np.transpose(tensor, (*range(2, tensor.ndim), 1, 0))

    def to_published(self, path: str, tensor: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        if not self._is_transposed(path):
            return tensor
        return np.transpose(tensor, (tensor.ndim - 1, tensor.ndim - 2, *range(tensor.ndim - 2)))

    def _is_transposed(self, path: str) -> bool:
        module, _, leaf = path.rpartition(".")
        return leaf == "kernel" and not re.fullmatch(self.untransposed, module)


def with_num_labels(fields: dict) -> dict:
    """Derives `num_labels`, which transformers writes as the length of `id2label` if not 2.

    Raises:
        ValueError: `id2label` is no object.
    """
    labels = as_object("id2label", fields.get("id2label"))
    return {"num_labels": len(labels) or 2} | fields


def _known_to_rope(name: str, parameters: Any, accept: tuple[str, ...], passed_over: list) -> Any:
    """Rope parameters without those that neither transformers nor ftjax reads."""
    if not isinstance(parameters, Mapping):
        return parameters
    known = {field.name for field in dataclasses.fields(Rotary)} | rope_parameters_read()
    kept = {}
    for key, value in parameters.items():
        # What holds parameters itself is a type of layer.
        if key in known or isinstance(value, Mapping):
            kept[key] = _known_to_rope(f"{name}.{key}", value, accept, passed_over)
        elif key not in accept:
            passed_over.append(f"{name}.{key}{_nearest(key, known)}")
    return kept


def _hashable(value: Any) -> Any:
    """Lists and dicts as tuples: configs are static parts of a traced network."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _hashable(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    return value


def _names_in(value: Any) -> Iterator[str]:
    """Names of all fields, those of objects inside included."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from _names_in(inner)


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f" (did you mean {close[0]}?)" if close else ""
