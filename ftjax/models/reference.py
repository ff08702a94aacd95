"""Which fields of config.json the installed transformers reads.

Its config classes keep every field as an attribute that a network may ask for, so what counts is
what its sources ask for, of the family and of what all families share. They are read as text, which
needs neither torch nor the seconds of an import.
"""

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHARED = (
    *("configuration_utils", "modeling_utils", "modeling_layers", "modeling_rope_utils"),
    *("masking_utils", "backbone_utils"),
)
ASKED = re.compile(
    r"""config\.(\w+)                                           # config.name, self.config.name
    | (?:get|has)attr\([^()]*?config,\s*["'](\w+)["']
    | kwargs\.(?:pop|get|setdefault)\(\s*["'](\w+)["']
    """,
    re.VERBOSE,
)
# In a config class: a field, an attribute, a key of a table of other names.
DECLARED = re.compile(
    r"""^\ {4}(\w+)\s*: | self\.(\w+) | ["'](\w+)["']""", re.VERBOSE | re.MULTILINE
)


@functools.cache
def fields_read(model_type: str) -> frozenset[str] | None:
    """Names that transformers reads from a config.json of this type, and perhaps some more.

    None where its sources are not where they used to be.
    """
    root = _root()
    name = model_type.replace("-", "_")
    folders = [name, re.sub(r"_(text|vision)(_model)?$", "", name)]
    folder = next((f for f in folders if (root / "models" / f).is_dir()), None)
    if folder is None:
        return None
    files = [root / f"{shared}.py" for shared in SHARED]
    files += sorted((root / "models" / folder).glob("modeling_*.py"))
    declaring = sorted((root / "models" / folder).glob("configuration_*.py"))
    return frozenset().union(
        *(_names(ASKED, file) for file in files),
        *(_names(pattern, file) for file in declaring for pattern in (ASKED, DECLARED)),
        _names(DECLARED, root / "configuration_utils.py"),
    )


@functools.cache
def rope_parameters_read() -> frozenset[str]:
    """Names that transformers reads from `rope_parameters`, and some more."""
    return _names(DECLARED, _root() / "modeling_rope_utils.py")


def is_default(model_type: str, name: str, fields: Mapping[str, Any]) -> bool:
    """Whether a field has the value that transformers computes with where there is no such field.

    Args:
        model_type: of config.json.
        name: the field.
        fields: the content of config.json. If the field is another name of one there, the two must
            agree.
    """
    # An import of seconds, for fields that no table of ours has and transformers reads.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return False
    config = CONFIG_MAPPING[model_type]
    original = config.attribute_map.get(name, name)
    default = getattr(config(), original, None)
    expected = fields.get(original, default) if original != name else default
    return type(fields[name]) is type(expected) and fields[name] == expected


def _root() -> Path:
    spec = importlib.util.find_spec("transformers")
    return Path(str(spec.origin if spec else "")).parent


@functools.cache
def _names(pattern: re.Pattern, file: Path) -> frozenset[str]:
    if not file.is_file():
        return frozenset()
    groups = pattern.findall(file.read_text(encoding="utf-8"))
    return frozenset(name for found in groups for name in found if name)
