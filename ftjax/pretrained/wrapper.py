"""The language model inside a checkpoint that also sees images: its config and its tensors.

Read as text alone, these compute what their language model does (transformers'
`LlavaForConditionalGeneration` and its like hand the embeddings of the text to it unchanged).
"""

from collections.abc import Mapping
from typing import Any

from ftjax.models.schema import as_object

# model_type of config.json -> that of its text_config where it says none.
WRAPPERS = {
    "gemma3": "gemma3_text",
    "internvl": "qwen2",
    "llava": "llama",
    "llava_next": "llama",
    "llava_next_video": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "video_llava": "llama",
    "vipllava": "llama",
}
# What concerns the language model and may stand beside its config.
SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")


def language_model_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's config.json, of that of a checkpoint whose model_type is in `WRAPPERS`.

    Raises:
        ValueError: `text_config` is no object.
    """
    inner = as_object("text_config", fields.get("text_config"))
    inner.setdefault("model_type", WRAPPERS[fields["model_type"]])
    inner = {name: fields[name] for name in SHARED if name in fields} | inner
    # Where either says that the head is tied to the table, it is.
    if fields.get("tie_word_embeddings") is True:
        inner["tie_word_embeddings"] = True
    return inner


def language_model_name(name: str) -> str | None:
    """A tensor's name in a checkpoint of the language model alone; None if it is of another part.

    Older files have `language_model.model.layers...`, newer ones `model.language_model.layers...`.
    """
    if name.startswith("lm_head."):
        return name
    for prefix in ("model.language_model.", "language_model."):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return rest if rest.startswith(("model.", "lm_head.")) else f"model.{rest}"
    return None
