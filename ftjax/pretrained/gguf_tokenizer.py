"""The tokenizer inside a GGUF file, rebuilt as Hugging Face's tokenizers have it.

Reference: llama.cpp's llama-vocab.cpp, and the tokenizer.json files of the models named below.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from ftjax.pretrained.gguf_file import GGUFFile, Metadata

# How a text is cut before byte-pair merging, by GGUF's `tokenizer.ggml.pre`.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+X|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*X"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT_4O = _CASED.replace("X", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + r"|\p{N}{1,3}" + _REST
SPLITS = {
    "dbrx": _LLAMA3,
    "deepseek-r1-qwen": _QWEN2,
    "falcon3": _LLAMA3,
    "gpt-4o": _GPT_4O,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "llama4": _GPT_4O,
    "pixtral": _LLAMA3,
    "qwen2": _QWEN2,
    "smaug-bpe": _LLAMA3,
    "tekken": _CASED.replace("X", "") + r"|\p{N}" + _REST,
}
# A word that is a token is not merged from its parts; a text begins with BOS.
WHOLE_WORDS = ("falcon3", "llama-bpe", "llama-v3", "llama3", "pixtral", "tekken")
PLAIN = ("default", "gpt-2")

UNKNOWN, CONTROL, USER_DEFINED, LAST_TYPE = 2, 3, 4, 6
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# Without ids, SentencePiece's tokens have these names.
SENTENCEPIECE_NAMES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
# Ends of a turn or text that llama.cpp knows by name where no key says so.
ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"),
    *("<|end_of_text|>", "<|eot|>", "<EOT>"),
)
SPACE = "\u2581"
LONGEST_TOKEN = 1000


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """A tokenizer and what stands beside it.

    Attributes:
        tokenizer: the content of tokenizer.json.
        settings: of tokenizer_config.json.
        ids: of generation_config.json; `eos_token_id` is a list where several tokens end a text.
    """

    tokenizer: tokenizers.Tokenizer
    settings: dict[str, Any]
    ids: dict[str, Any]


def make_tokenizer(source: GGUFFile, rows: int) -> Rebuilt:
    """The tokenizer of a GGUF file.

    Args:
        source: the opened file.
        rows: of the table of embeddings.

    Raises:
        ValueError: an unknown kind of tokenizer; keys that are missing, do not fit each other, or
            make no tokenizer.
    """
    metadata = source.metadata
    kind = metadata.text("tokenizer.ggml.model")
    builders: dict[str, Callable] = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if kind not in builders:
        raise ValueError(
            f"{source.path}: tokenizer.ggml.model = {kind!r} is not known; known: "
            f"{', '.join(builders)}."
        )
    tokens = _tokens(source, rows)
    if kind == "llama":
        # Runs of spaces stand as they are in a text; SentencePiece has another sign for them.
        tokens = [token.replace(" ", SPACE) if token.isspace() else token for token in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ids = _special_ids(source, kind, vocabulary)
    types = _types(source, len(tokens), ids)
    try:
        tokenizer = builders[kind](source, vocabulary, ids)
        for group, special in (((CONTROL, UNKNOWN), True), ((USER_DEFINED,), False)):
            added = [token for token, t in zip(tokens, types, strict=True) if t in group]
            tokenizer.add_tokens([AddedToken(t, normalized=False, special=special) for t in added])
        _add_ends(source, kind, tokenizer, ids, tokens)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{source.path}: its vocabulary and merges make no tokenizer ({error})."
        ) from error
    ends = [ids.get("eos"), ids.get("eot"), ids.get("eom")]
    ends += [vocabulary[t] for t in ENDS if t in vocabulary and types[vocabulary[t]] != 1]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return Rebuilt(tokenizer, _settings(metadata, tokens, ids), _as_fields(ids, ends))


def _tokens(source: GGUFFile, rows: int) -> list[str]:
    tokens = source.metadata.texts("tokenizer.ggml.tokens")
    if not 0 < len(tokens) <= rows:
        raise ValueError(
            f"{source.path}: tokenizer.ggml.tokens has {len(tokens)} tokens, and token_embd.weight "
            f"has {rows} rows."
        )
    if len(set(tokens)) < len(tokens):
        (twice, _), *_ = collections.Counter(tokens).most_common(1)
        raise ValueError(f"{source.path}: tokenizer.ggml.tokens has {twice!r} twice.")
    longest = max(tokens, key=len)
    if len(longest) > LONGEST_TOKEN:
        raise ValueError(
            f"{source.path}: a token of {len(longest):,} characters ({longest[:20]!r} ...)."
        )
    return tokens


def _types(source: GGUFFile, count: int, ids: dict[str, int]) -> list[int]:
    """Each token's type; without a word of the file, what has a role is a control token."""
    types = source.metadata.wholes("tokenizer.ggml.token_type", None)
    if types is None:
        return [CONTROL if index in ids.values() else 1 for index in range(count)]
    if len(types) != count or not all(1 <= kind <= LAST_TYPE for kind in types):
        raise ValueError(
            f"{source.path}: tokenizer.ggml.token_type has {len(types)} entries for {count} "
            f"tokens, or one that is not from 1 to {LAST_TYPE}."
        )
    return types


def _special_ids(source: GGUFFile, kind: str, vocabulary: dict[str, int]) -> dict[str, int]:
    """Role -> token id, of the roles that the file gives."""
    ids = {}
    for role, theirs in (ROLES | {"eot": "eot", "eom": "eom"}).items():
        default = vocabulary.get(SENTENCEPIECE_NAMES.get(role, "")) if kind == "llama" else None
        key = f"tokenizer.ggml.{theirs}_token_id"
        ids[role] = source.metadata.whole(key, default, low=0, high=len(vocabulary) - 1)
    return {role: index for role, index in ids.items() if index is not None}


def _add_ends(source, kind: str, tokenizer, ids: dict[str, int], tokens: list[str]) -> None:
    """Puts the tokens around every text that the file asks for."""
    metadata = source.metadata
    first = kind == "llama" or metadata.text("tokenizer.ggml.pre", "default") in WHOLE_WORDS
    wanted = {
        "bos": metadata.flag("tokenizer.ggml.add_bos_token", first),
        "eos": metadata.flag("tokenizer.ggml.add_eos_token", False),
    }
    for role, is_wanted in wanted.items():
        if is_wanted and role not in ids:
            raise ValueError(
                f"{source.path}: every text has the {role} token at one end, and there is no "
                f"tokenizer.ggml.{role}_token_id that says which it is."
            )
    if any(wanted.values()):
        bos = [tokens[ids["bos"]]] if wanted["bos"] else []
        eos = [tokens[ids["eos"]]] if wanted["eos"] else []
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*bos, "$A", *eos],
            pair=[*bos, "$A", *eos, *bos, "$B", *eos],
            special_tokens=[(tokens[ids[role]], ids[role]) for role in wanted if wanted[role]],
        )


def _settings(metadata: Metadata, tokens: list[str], ids: dict[str, int]) -> dict[str, Any]:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.text("tokenizer.chat_template", None),
    }
    settings |= {f"{role}_token": tokens[ids[role]] for role in ROLES if role in ids}
    return {name: value for name, value in settings.items() if value is not None}


def _as_fields(ids: dict[str, int], ends: list[int]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        f"{role}_token_id": ids[role] for role in ("bos", "pad") if role in ids
    }
    if ends:
        fields["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return fields


def _byte_level_bpe(source: GGUFFile, vocabulary: dict[str, int], ids: dict[str, int]):
    """GPT-2's kind: bytes as letters, merges in order."""
    merges = [tuple(m.split(" ", 1)) for m in source.metadata.texts("tokenizer.ggml.merges")]
    if not all(len(merge) == 2 for merge in merges):
        raise ValueError(f"{source.path}: a merge in tokenizer.ggml.merges is no pair of tokens.")
    cut = source.metadata.text("tokenizer.ggml.pre", "default")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, ignore_merges=cut in WHOLE_WORDS)
    )
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut in SPLITS:
        split = pre_tokenizers.Split(tokenizers.Regex(SPLITS[cut]), "isolated")
        raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, raw])
    elif cut == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])
    elif cut in PLAIN:
        tokenizer.pre_tokenizer = plain
    else:
        known = ", ".join([*PLAIN, "smollm", *SPLITS])
        raise ValueError(
            f"{source.path}: tokenizer.ggml.pre = {cut!r} is not known; known: {known}."
        )
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(source: GGUFFile, vocabulary: dict[str, int], ids: dict[str, int]):
    """SentencePiece's kind: merges by score, unknown characters as bytes."""
    scores = source.metadata.numbers("tokenizer.ggml.scores", None)
    # SentencePiece numbers its pieces in the order of their scores; Gemma's scores say nothing.
    if scores is None or source.metadata.text("general.architecture").startswith("gemma"):
        scores = [-float(index) for index in range(len(vocabulary))]
    if len(scores) != len(vocabulary):
        raise ValueError(
            f"{source.path}: tokenizer.ggml.scores has {len(scores)} entries for "
            f"{len(vocabulary)} tokens."
        )
    found = []
    for token, index in vocabulary.items():
        pieces = [
            (vocabulary[token[:cut]], vocabulary[token[cut:]], token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
        found += [(-scores[index], index, *piece) for piece in sorted(pieces)]
    merges = [(left, right) for *_, left, right in sorted(found, key=lambda item: item[:2])]
    unknown = next((token for token, index in vocabulary.items() if index == ids.get("unk")), None)
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    )
    prefixed = source.metadata.flag("tokenizer.ggml.add_space_prefix", True)
    prefix = [normalizers.Prepend(SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer
