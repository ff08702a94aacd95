"""What a field of peft's adapter_config.json may hold, and which layers its names mean.

Every field is known by the kind of adapter that it belongs to: used, harmless, or refused with what
it would have to be. Reference: peft's config dataclasses and `peft.tuners.tuners_utils`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

# What is wrong with a value, as the end of a sentence; None if nothing is.
Check = Callable[[Any], str | None]
# Far above any scale that was ever used, far below what overflows in float32.
LARGEST = 1e9


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field.

    Attributes:
        default: peft's, where a file does not have the field.
        check: what is wrong with a value; without one, the field changes nothing here.
    """

    default: Any = None
    check: Check = lambda value: None


HARMLESS = Setting()


def flag(value: Any) -> str | None:
    """True or False; null counts as False."""
    return None if value is None or isinstance(value, bool) else "must be true or false"


def whole(value: Any) -> str | None:
    """A whole number of at least 1."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return None if fits else "must be a whole number of at least 1"


def above_zero(value: Any) -> str | None:
    """A number above 0 that a network can be multiplied by."""
    fits = _is_finite(value) and 0 < value <= LARGEST
    return None if fits else f"must be a number above 0 and at most {LARGEST:.0e}"


def rate(value: Any) -> str | None:
    """A share from 0 to below 1."""
    return None if _is_finite(value) and 0 <= value < 1 else "must be a number from 0 to below 1"


def names(value: Any) -> str | None:
    """A regular expression, a list of names, or null."""
    if isinstance(value, str):
        return _problem_of_expression(value)
    if value is None or _all_of(value, str):
        return None
    return "must be a text or a list of texts"


def expressions(value: Any) -> str | None:
    """A regular expression, a list of them, or null."""
    listed = value if isinstance(value, list) else []
    return names(value) or next(filter(None, map(_problem_of_expression, listed)), None)


def layer_numbers(value: Any) -> str | None:
    """A number of a layer, a list of them, or null."""
    if value is None or _all_of([value], int) or _all_of(value, int):
        return None
    return "must be a whole number or a list of whole numbers"


def token_rows(value: Any) -> str | None:
    """Rows of the table of tokens, of several tables by their names, or null."""
    lists = list(value.values()) if isinstance(value, dict) else [value]
    fits = all(
        one and _all_of(one, int) and len(set(one)) == len(one) and min(one) >= 0 for one in lists
    )
    if value is None or (lists and fits):
        return None
    return "must be a list of different tokens, or one for each table by its name"


def by_expression(check: Check) -> Check:
    """A table from regular expressions to values, or null."""

    def problem(table: Any) -> str | None:
        if table is None:
            return None
        if not isinstance(table, dict):
            return "must be a table from names of layers to numbers"
        problems = [check(value) for value in table.values()]
        problems += [_problem_of_expression(expression) for expression in table]
        return next((problem for problem in problems if problem), None)

    return problem


def only(*values: Any, because: str = "is not implemented") -> Check:
    """One of few values."""

    def problem(value: Any) -> str | None:
        # In Python, 0 is in (False,) and 1 in (True,).
        fits = any(type(value) is type(one) and value == one for one in values)
        return None if fits else because

    return problem


# An empty table is none of these: peft takes it for a variant with its defaults.
NOT_IMPLEMENTED = Setting(None, only(None, False, []))

# Of all kinds of adapters: what they belong to and who wrote them.
COMMON: Mapping[str, Setting] = dict.fromkeys(
    [
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type"),
        *("peft_version", "revision", "runtime_config", "task_type"),
    ],
    HARMLESS,
)
# Of those that adapt layers.
TARGETED: Mapping[str, Setting] = {
    **COMMON,
    "target_modules": Setting(None, names),
    "exclude_modules": Setting(None, names),
    "layers_to_transform": Setting(None, layer_numbers),
    "layers_pattern": Setting(None, expressions),
    "modules_to_save": Setting(
        None, lambda v: "must be a list of names" if isinstance(v, str) else expressions(v)
    ),
    # peft sets it right by the kind of layer.
    "fan_in_fan_out": Setting(False, flag),
}


def read_settings(
    fields: Mapping[str, Any], known: Mapping[str, Setting], where: str
) -> tuple[dict[str, Any], list[str]]:
    """The fields of adapter_config.json, all of them checked.

    Args:
        fields: what the file holds.
        known: the kind of adapter's.
        where: the file, for errors.

    Returns:
        (name -> value, with peft's defaults for what is missing; names that no kind knows and that
        hold nothing).

    Raises:
        ValueError: a value that cannot be, or that is not implemented; a field that is not known
            and holds something.
    """
    empty = []
    for name, value in fields.items():
        if name in known:
            if problem := known[name].check(value):
                raise ValueError(f"{where}: {name} = {_shown(value)} {problem}.")
        elif value is None or value is False or value in ("", [], {}):
            empty.append(name)
        else:
            raise ValueError(
                f"{where}: {name} = {_shown(value)} is not known, and may change what the adapter "
                "computes. If it does not, take it out of the file."
            )
    return {name: fields.get(name, one.default) for name, one in known.items()}, empty


def is_target(name: str, settings: Mapping[str, Any], is_table: bool = False) -> bool:
    """Whether peft adapts a layer.

    Args:
        name: of the module in transformers' network.
        settings: of the adapter.
        is_table: whether the layer is an embedding table, which "all-linear" leaves out.
    """
    excluded, targets = settings["exclude_modules"], settings["target_modules"]
    if excluded and _is_named(name, excluded):
        return False
    # What is saved whole is not adapted as well.
    if any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in settings["modules_to_save"] or ()):
        return False
    if targets is None:
        return False
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return not is_table
    return _is_named(name, targets) and (name in targets or _is_in_layers(name, settings))


def of_expression(table: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """As peft looks up rank_pattern and alpha_pattern: the first that fits, else the default.

    An expression is for the whole name, or for its last parts; a `^` in it is the beginning of the
    whole name.
    """
    for expression, value in (table or {}).items():
        if re.match(rf"(.*\.)?({expression})$", name):
            return value
    return default


def _is_named(name: str, wanted: str | list[str]) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return name in wanted or any(name.endswith(f".{end}") for end in wanted)


def _is_in_layers(name: str, settings: Mapping[str, Any]) -> bool:
    layers, patterns = settings["layers_to_transform"], settings["layers_pattern"]
    if isinstance(settings["target_modules"], str) or layers is None or layers == []:
        return True
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
    else:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        matches = (re.match(rf"(?:^|.*?\.){p}\.(?P<index>\d+)\.", name) for p in patterns)
        match = next((match for match in matches if match), None)
    chosen = [layers] if isinstance(layers, int) else layers
    return match is not None and int(match["index"]) in chosen


def _is_finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _all_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, kind) and not isinstance(value, bool) for value in values
    )


def _problem_of_expression(text: str) -> str | None:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        return f"has a regular expression that is none ({error})"
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
