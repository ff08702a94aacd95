"""Our own TFDS builders; they write ArrayRecord and need no TensorFlow.

`tfds://name` is the builder class in `ftjax/data/builders/name.py`: a data set is one file here,
and nothing else is edited.
"""

import importlib
import inspect
import pkgutil

import tensorflow_datasets as tfds


def builder_names() -> list[str]:
    """The data sets of this folder, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_builder(name: str) -> type[tfds.core.DatasetBuilder] | None:
    """The builder class of a data set of this folder, None if there is none of that name."""
    if name not in builder_names():
        return None
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, tfds.core.DatasetBuilder) and member.__module__ == module.__name__
    )
    return found
