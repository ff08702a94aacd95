"""An experiment file, loaded: its config, its variants, its claims."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftjax.config import Config, override
from ftjax.fields import nearest


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment file, loaded.

    Attributes:
        config: validated only by `validate`, after overrides.
        ablations: variant name -> flat overrides.
        claims: what should hold between variants, as the file declares it.
    """

    config: Config
    ablations: dict[str, dict[str, Any]]
    claims: list

    def variant(self, name: str) -> Config:
        """The config of a variant.

        Raises:
            ValueError: there is no such variant; lists those there are.
        """
        if name not in self.ablations:
            known = ", ".join(sorted(self.ablations)) or "none"
            raise ValueError(
                f"The experiment has no variant {name!r}{nearest(name, self.ablations)}"
                f" It has: {known}."
            )
        return override(self.config, {"variant": name, **self.ablations[name]})


def load_experiment(path: str | Path, argument: str | None = None) -> Experiment:
    """Runs an experiment file's `get_config`, `get_ablations` and `get_claims`.

    Args:
        path: the file.
        argument: passed to `get_config`, for files that take one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no `get_config`, or an ablation that sets a field which nobody reads.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no experiment file {path}.")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no get_config(); an experiment file declares one.")
    config = _config(module.get_config, path, argument)
    ablations: Mapping[str, dict] = getattr(module, "get_ablations", dict)()
    for variant, overrides in ablations.items():
        try:
            override(config, overrides)
        except ValueError as error:
            raise ValueError(f"{path}, variant {variant!r}: {error}") from error
    return Experiment(config, dict(ablations), list(getattr(module, "get_claims", list)()))


def _config(get_config, path: Path, argument: str | None) -> Config:
    takes_argument = get_config.__code__.co_argcount > 0
    needs_argument = get_config.__code__.co_argcount > len(get_config.__defaults__ or ())
    if argument is not None and not takes_argument:
        raise ValueError(f"{path} takes no argument; write --config={path} without ':{argument}'.")
    if argument is None and needs_argument:
        name = get_config.__code__.co_varnames[0]
        raise ValueError(f"{path} needs an argument: --config={path}:<{name}>.")
    config = get_config() if argument is None else get_config(argument)
    if not isinstance(config, Config):
        raise ValueError(f"{path}: get_config() must return what ftjax.config.base_config gave.")
    return config
