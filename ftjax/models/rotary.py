"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864) and its scalings.

Reference implementation: transformers' `modeling_rope_utils`. Float32 is rounded where it rounds,
since an error of the frequencies is multiplied by the position.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.models.schema import Bounds, Count, OneOf, Positive, as_object, require_values

REQUIRED_PARAMETERS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
}


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The fields of config.json's `rope_parameters`, and the length that some scalings refer to.

    `rope_type` is "default", "linear" (positions divided by `factor`), "dynamic" (the base grows
    with the longest row of a batch, once that exceeds `max_position_embeddings`), "yarn" (Peng et
    al. 2023, https://arxiv.org/abs/2309.00071), "llama3" (Llama 3.1) or "longrope" (Ding et al.
    2024, https://arxiv.org/abs/2402.13753: `short_factor` divides the frequencies, or `long_factor`
    once the longest row of a batch exceeds `original_max_position_embeddings`).
    """

    rope_type: Annotated[str, OneOf(REQUIRED_PARAMETERS)] = "default"
    rope_theta: Annotated[float, Bounds(above=1, most=1e15)] = 10000.0
    partial_rotary_factor: Annotated[float, Bounds(above=0, most=1)] = 1.0
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    short_factor: tuple[Positive, ...] | None = None
    long_factor: tuple[Positive, ...] | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: Annotated[float, Bounds(0, 100)] | None = None
    mscale_all_dim: Annotated[float, Bounds(0, 100)] | None = None
    truncate: bool = True
    max_position_embeddings: Count = 2048
    original_max_position_embeddings: Count | None = None

    def __post_init__(self):
        missing = [n for n in REQUIRED_PARAMETERS[self.rope_type] if getattr(self, n) is None]
        if missing:
            raise ValueError(
                f"config.json: rope_type {self.rope_type!r} needs {', '.join(missing)} beside it."
            )
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"config.json: low_freq_factor = {low} must be below high_freq_factor = {high}."
            )
        if self.rope_type == "longrope" and self.original_length < 2:
            raise ValueError("config.json: longrope needs original_max_position_embeddings of 2.")

    @property
    def original_length(self) -> int:
        """The length of the pretraining before the context was extended."""
        return self.original_max_position_embeddings or self.max_position_embeddings

    @property
    def longest_row(self) -> int | None:
        """Most tokens of a row: what config.json says, or what the scaling stretches that to.

        Files raise `max_position_embeddings` with the factor or leave it as it was. None where the
        embedding follows the length.
        """
        if self.rope_type == "dynamic":
            return None
        stretched = 1.0
        if self.rope_type in ("linear", "yarn"):
            stretched = self.original_length * (self.factor or 1.0)
        return max(self.max_position_embeddings, int(stretched))

    def check(self, head_dim: int) -> None:
        """Refuses what does not fit heads of this size.

        Raises:
            ValueError: more features would be rotated than a head has, or a list of factors has not
                one per frequency.
        """
        count = len(self._exponents(head_dim))
        if 2 * count > head_dim:
            raise ValueError(
                f"config.json: heads of {head_dim} features cannot be rotated in pairs; head_dim "
                "must be even, or partial_rotary_factor below 1."
            )
        if count < 1 or (self.rope_type == "dynamic" and count < 2):
            raise ValueError(
                f"config.json: heads of {head_dim} features have too few to rotate by rope_type "
                f"{self.rope_type!r} and partial_rotary_factor = {self.partial_rotary_factor}."
            )
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if factors is not None and len(factors) != count:
                raise ValueError(
                    f"config.json: {name} has {len(factors)} entries, one for each of {count} "
                    "frequencies is needed."
                )

    def tables(self, head_dim: int, position_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines for `rotate`.

        Args:
            head_dim: features of a head.
            position_ids: int [batch or 1, length].

        Returns:
            Two float32 [batch or 1, length, rotated features / 2].
        """
        frequencies, magnitude = self._frequencies(head_dim, jnp.max(position_ids) + 1)
        angles = position_ids[..., None].astype(jnp.float32) * frequencies
        return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude

    def _given(self, name: str) -> float:
        """A parameter that the rope type requires."""
        return getattr(self, name)

    def _exponents(self, head_dim: int) -> np.ndarray:
        dim = int(head_dim * self.partial_rotary_factor)
        return np.arange(0, dim, 2).astype(np.float32) / np.float32(dim)

    def _frequencies(self, head_dim: int, longest: jax.Array) -> tuple[Any, float]:
        """One float32 frequency per pair of features, and what cosines and sines are scaled by."""
        exponents = self._exponents(head_dim)
        frequencies = np.float32(1) / np.float32(self.rope_theta) ** exponents
        if self.rope_type == "linear":
            return frequencies / np.float32(self._given("factor")), 1.0
        if self.rope_type == "dynamic":
            dim = int(head_dim * self.partial_rotary_factor)
            length = jnp.maximum(longest, self.max_position_embeddings).astype(jnp.float32)
            factor = self._given("factor")
            stretch = factor * length / self.max_position_embeddings - (factor - 1)
            return 1.0 / (self.rope_theta * stretch ** (dim / (dim - 2))) ** exponents, 1.0
        if self.rope_type == "llama3":
            return self._llama3(frequencies), 1.0
        if self.rope_type == "yarn":
            return self._yarn(exponents, int(head_dim * self.partial_rotary_factor))
        if self.rope_type == "longrope":
            return self._longrope(exponents, longest)
        return frequencies, 1.0

    def _llama3(self, frequencies: np.ndarray) -> np.ndarray:
        """Long waves divided by the factor, short ones kept, a ramp between them."""
        waves_in_context = self.original_length / (2 * math.pi / frequencies)
        factor, low, high = map(self._given, REQUIRED_PARAMETERS["llama3"])
        ramp = np.clip((waves_in_context - low) / (high - low), 0, 1)
        return ((1 - ramp) * frequencies / factor + ramp * frequencies).astype(np.float32)

    def _yarn(self, exponents: np.ndarray, dim: int) -> tuple[np.ndarray, float]:
        factor = self.factor or self.max_position_embeddings / self.original_length
        magnitude = self.attention_factor
        if magnitude is None and self.mscale and self.mscale_all_dim:
            magnitude = _yarn_magnitude(factor, self.mscale)
            magnitude /= _yarn_magnitude(factor, self.mscale_all_dim)
        elif magnitude is None:
            magnitude = _yarn_magnitude(factor)

        def pair_that_turns(times: float) -> float:
            """The pair of features that turns so often over the original length."""
            turns = math.log(self.original_length / (times * 2 * math.pi))
            return dim * turns / (2 * math.log(self.rope_theta))

        first = pair_that_turns(self.beta_fast or 32)
        last = pair_that_turns(self.beta_slow or 1)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dim - 1)
        width = last - first if last != first else 0.001
        ramp = np.clip((np.arange(len(exponents), dtype=np.float32) - first) / width, 0, 1)
        waves = np.float32(self.rope_theta) ** exponents
        return ((1 - ramp) / waves + ramp / (factor * waves)).astype(np.float32), magnitude

    def _longrope(self, exponents: np.ndarray, longest: jax.Array) -> tuple[jax.Array, float]:
        factor = self.factor or self.max_position_embeddings / self.original_length
        magnitude = self.attention_factor
        if magnitude is None:
            extension = math.log(max(factor, 1.0)) / math.log(self.original_length)
            magnitude = math.sqrt(1 + extension)
        divisors = jnp.where(
            longest > self.original_length,
            jnp.asarray(self.long_factor, jnp.float32),
            jnp.asarray(self.short_factor, jnp.float32),
        )
        return 1.0 / (divisors * np.float32(self.rope_theta) ** exponents), magnitude


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each head's pairs of features (i, i + half) by the angles of its position.

    Args:
        x: [batch, length, heads, head_dim]; features beyond the rotated ones pass unchanged.
        tables: from `Rotary.tables`.

    Returns:
        As `x`.
    """
    cos, sin = (table[:, :, None, :] for table in tables)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def pop_rotary(fields: dict[str, Any], *, max_position_embeddings: int) -> Rotary:
    """Takes what config.json says about rotary embeddings, in any of its spellings.

    Transformers 5 writes `rope_parameters`, older versions `rope_theta` and `rope_scaling` (with
    `type` for `rope_type`) and sometimes `partial_rotary_factor` and
    `original_max_position_embeddings` beside them.

    Args:
        fields: of config.json; the fields above are removed from it.
        max_position_embeddings: the family's default for that field.

    Raises:
        ValueError: an unknown parameter, or a rope type that is not implemented.
    """
    new, old = (
        as_object(name, fields.pop(name, None)) for name in ("rope_parameters", "rope_scaling")
    )
    given = {
        name: fields.pop(name)
        for name in (
            "rope_theta",
            "partial_rotary_factor",
            "original_max_position_embeddings",
        )
        if name in fields
    }
    length = fields.get("max_position_embeddings", max_position_embeddings)
    parameters = given | (old or new)
    # Beside the parameters it is the family's own field, and decides.
    if given.get("original_max_position_embeddings") is not None:
        parameters["original_max_position_embeddings"] = given["original_max_position_embeddings"]
    return make_rotary(parameters, max_position_embeddings=length)


def make_rotary(parameters: Mapping[str, Any], *, max_position_embeddings: int) -> Rotary:
    """One dict of rope parameters as a `Rotary`.

    Args:
        parameters: from config.json; None stands for the default.
        max_position_embeddings: the network's.

    Raises:
        ValueError: an unknown parameter, a rope type that is not implemented, or a value of another
            type or out of bounds.
    """
    values = {name: _frozen(value) for name, value in parameters.items() if value is not None}
    older_name = values.pop("type", "default")
    values.setdefault("rope_type", older_name)
    values["max_position_embeddings"] = max_position_embeddings
    unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(Rotary)})
    if unknown:
        raise ValueError(
            "config.json: rope parameters that ftjax does not implement: "
            + ", ".join(f"{name} = {values[name]!r}" for name in unknown)
        )
    require_values(Rotary, values)
    return Rotary(**values)


def _frozen(value: Any) -> Any:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(value) if is_list else value


def _yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
