"""Fields that several objectives read."""

from collections.abc import Mapping, Sequence

from ftjax.fields import Field, Fields


def metric_field(metrics: Mapping[str, str], default: str) -> Fields:
    """The field that says which metric chooses the checkpoint."""
    lower = ", ".join(name for name, better in metrics.items() if better == "lower")
    which = f"{lower}: lower is better" if lower else "higher is better"
    meaning = f"Validation metric that chooses the checkpoint ({which})."
    return {"evaluation.metric": Field(default, meaning, choices=tuple(metrics))}


LOGITS_AT_ONCE: Fields = {
    "model.logits_at_once": Field(
        2**25, "Most logits held at once; more are computed in chunks.", minimum=1
    )
}
"""For networks that give the logits of a vocabulary at each position."""


def buckets_field(lengths: tuple[int, ...], meaning: str, name: str = "buckets") -> Fields:
    """The field that says to which lengths in tokens rows are padded."""
    return {f"data.{name}": Field(lengths, meaning, minimum=3, items=int)}


def buckets_problem(buckets: Sequence[int], name: str = "buckets") -> str | None:
    """What is wrong with lengths to pad to, as a sentence, or None."""
    if not buckets or list(buckets) != sorted(set(buckets)):
        return f"config.data.{name} = {buckets} must be rising lengths, such as (32, 64, 128)."
    return None
