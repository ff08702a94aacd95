"""What a model family is: its config, its networks, and how its names stand to the published ones.

Modules carry the names of the published checkpoint wherever those make sense, so most families
need no table at all: `encoder.layer.0.attention.self.query.kernel` here is
`encoder.layer.0.attention.self.query.weight` there. What differs is listed in `Family.renames`,
and read in both directions, so that export is the inverse of loading.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Fields of config.json that say nothing about what the network computes.
HARMLESS_FIELDS = frozenset(
    [
        "_attn_implementation",
        "_commit_hash",
        "_name_or_path",
        "_num_labels",
        "architectures",
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
        untransposed: regular expression of module paths whose published `weight` is already
            `[in, out]` (GPT-2's Conv1D).
        tied: published name -> published name it repeats when the config ties them.
        zeros: regular expressions of published tensors that are zeros where a checkpoint lacks
            them.
        ignored_fields: fields of config.json that this family knows and does not need.
    """

    model_type: str
    config: type
    networks: Mapping[str, Callable]
    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    heads: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    untransposed: str = r"(?!)"
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    ignored_fields: frozenset[str] = frozenset()

    def parse_config(self, fields: Mapping[str, Any], *, accept: tuple[str, ...] = ()) -> Any:
        """config.json as this family's dataclass.

        Every field that changes the computation is either used or refused.

        Args:
            fields: the content of config.json.
            accept: further field names to ignore, for a checkpoint with notes of its own.

        Raises:
            ValueError: unknown fields, all of them listed, or values that are not implemented.
        """
        rewrite = getattr(self.config, "from_fields", dict)
        fields = rewrite(dict(fields))
        known = {field.name for field in dataclasses.fields(self.config)}
        ignored = HARMLESS_FIELDS | self.ignored_fields | set(accept)
        unknown = []
        for name, value in fields.items():
            if name in known or name in ignored:
                continue
            if name not in NEUTRAL_VALUES:
                unknown.append(f"  {name} = {value!r}{_nearest(name, known)}")
            elif value not in NEUTRAL_VALUES[name]:
                unknown.append(
                    f"  {name} = {value!r} (only {NEUTRAL_VALUES[name][0]!r} works here)"
                )
        if unknown:
            raise ValueError(
                f"config.json of this {self.model_type} checkpoint has fields that ftjax does not "
                "implement:\n" + "\n".join(unknown) + "\nIf a field does not change what the "
                "network computes, name it in config.model.accept_fields."
            )
        values = {name: _hashable(fields[name]) for name in known if name in fields}
        return self.config(**values)

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
    """Derives `num_labels`, which transformers writes as the length of `id2label` if not 2."""
    return {"num_labels": len(fields.get("id2label") or (0, 1))} | fields


def _hashable(value: Any) -> Any:
    """Lists and dicts as tuples: configs are static parts of a traced network."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _hashable(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    return value


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f" (did you mean {close[0]}?)" if close else ""
