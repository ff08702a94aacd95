"""The model families that ftjax knows, by the `model_type` of their config.json."""

from ftjax.models import (
    albert,
    bart,
    bert,
    clip,
    deberta_v2,
    dinov2,
    distilbert,
    electra,
    gemma,
    gpt2,
    llama,
    modernbert,
    mpnet,
    phi3,
    qwen,
    roberta,
    siglip,
    t5,
    vit,
)
from ftjax.models.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        albert.FAMILY,
        bart.FAMILY,
        bart.MARIAN_FAMILY,
        bart.MBART_FAMILY,
        bert.FAMILY,
        clip.FAMILY,
        clip.TEXT_FAMILY,
        clip.VISION_FAMILY,
        deberta_v2.FAMILY,
        dinov2.FAMILY,
        distilbert.FAMILY,
        electra.FAMILY,
        gemma.FAMILY,
        gemma.GEMMA2_FAMILY,
        gemma.GEMMA3_TEXT_FAMILY,
        gpt2.FAMILY,
        llama.FAMILY,
        llama.MISTRAL_FAMILY,
        modernbert.FAMILY,
        mpnet.FAMILY,
        phi3.FAMILY,
        qwen.FAMILY,
        qwen.QWEN3_FAMILY,
        roberta.FAMILY,
        roberta.CAMEMBERT_FAMILY,
        roberta.XLM_ROBERTA_FAMILY,
        siglip.FAMILY,
        siglip.TEXT_FAMILY,
        siglip.VISION_FAMILY,
        t5.FAMILY,
        t5.MT5_FAMILY,
        vit.FAMILY,
        vit.DEIT_FAMILY,
    )
}


def family_of(model_type: str) -> Family:
    """The family of a `model_type`.

    Raises:
        ValueError: lists the known families and says how one is added.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not among the families ftjax has: "
            f"{', '.join(sorted(FAMILIES))}. To add one, write ftjax/models/<family>.py with a "
            "FAMILY and list it in ftjax/models/__init__.py (docs/extend.md)."
        )
    return FAMILIES[model_type]
