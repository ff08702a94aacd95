"""An experiment file, loaded: its config, its variants, its claims."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

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
        """The config of a variant; that of the config's own name is the config itself.

        Raises:
            ValueError: there is no such variant; lists those there are.
        """
        if name not in self.ablations:
            if name == self.config.variant:
                return self.config
            known = sorted({self.config.variant, *self.ablations})
            raise ValueError(
                f"The experiment has no variant {name!r}{nearest(name, known) or '.'} It has: "
                f"{', '.join(known)}."
            )
        return override(self.config, {"variant": name, **self.ablations[name]})


def load_experiment(path: str | Path, argument: str | None = None) -> Experiment:
    """Runs an experiment file's `get_config`, `get_ablations` and `get_claims`.

    Args:
        path: the file.
        argument: passed to `get_config`, for files that take one; where its parameter is annotated
            with a Literal, one of that.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no Python file, no `get_config`, an argument that it does not take, or an
            ablation that sets a field which nobody reads.
    """
    path = Path(path)
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"There is no experiment file {path}{nearest(str(path), beside) or '.'}"
        )
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file (.py), as an experiment file is.")
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
    if argument is not None:
        name = get_config.__code__.co_varnames[0]
        known = get_args(get_type_hints(get_config).get(name))
        if known and argument not in known:
            told = ", ".join(f":{choice}" for choice in known)
            raise ValueError(
                f"{path}:{argument}: {name} is one of {told}{nearest(argument, known) or '.'}"
            )
    config = get_config() if argument is None else get_config(argument)
    if not isinstance(config, Config):
        raise ValueError(f"{path}: get_config() must return what ftjax.config.base_config gave.")
    return config
