"""Records of TFDS datasets: our own builders, and TFDS's that need no TensorFlow."""

import contextlib
import difflib
import functools
import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from filelock import FileLock
from tensorflow_datasets.core.download import downloader

from ftjax.data import builders
from ftjax.locate import cache_folder
from ftjax.progress import track

# Where TFDS keeps its older datasets, which are only known once these are imported.
MODULES = (
    *("audio", "graphs", "image", "image_classification", "nearest_neighbors", "object_detection"),
    *("question_answering", "ranking", "recommendation", "rl_unplugged", "rlds.datasets"),
    *("robotics", "structured", "summarization", "text", "text_simplification", "time_series"),
    *("translate", "video", "vision_language"),
)
RETRIES = 2
SECONDS_TO_CONNECT, SECONDS_BETWEEN_BYTES = 10, 60


class TfdsDataset:
    """A prepared data set.

    Attributes:
        name: such as tfds://glue/sst2.
        splits: their names.
    """

    def __init__(self, name: str, builder: tfds.core.DatasetBuilder):
        self.name, self._builder = f"tfds://{name}", builder
        self.splits = tuple(builder.info.splits)

    def has(self, split: str) -> bool:
        """Whether it is a split, or made of splits, such as "train[:10%]+test"."""
        names = [re.match(r"\w*", part.strip()) for part in split.split("+")]
        return all(name and name[0] in (*self.splits, "all") for name in names)

    def rows(self, split: str) -> Iterator[dict]:
        """The records of a split, read one by one.

        Raises:
            ValueError: no such split.
        """
        try:
            source = self._builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
        except Exception as error:
            known = ", ".join(self.splits)
            raise ValueError(
                f"{self.name} has no split {split!r}; it has: {known} ({error})."
            ) from error
        for index in track(range(len(source)), f"reading {self.name} {split}"):
            yield {key: _plain(value) for key, value in source[index].items()}


def open_dataset(name: str) -> TfdsDataset:
    """The data set `name` or `name/config`; it is prepared on first use, in the cache.

    Raises:
        ValueError: no such dataset or config, or TFDS cannot prepare it.
        ConnectionError: it is not in the cache and could not be fetched.
        ImportError: preparing it needs a package that is not there.
    """
    if ":" in name:
        raise ValueError(
            f"tfds://{name}: datasets with a namespace run code from the network. Prepare it apart "
            "from ftjax and save its splits as .parquet or .jsonl."
        )
    folder = cache_folder() / "tfds"
    folder.mkdir(parents=True, exist_ok=True)
    # Of several runs that start together, one prepares and the others wait.
    with FileLock(folder / f"{name.replace('/', '_')}.lock"):
        return TfdsDataset(name, _prepare(name, folder))


def _prepare(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    settings = {"data_dir": folder, "file_format": "array_record"}
    dataset, _, config = name.partition("/")
    if ours := builders.find_builder(dataset):
        if config and config not in ours.builder_configs:
            known = ", ".join(ours.builder_configs) or "none"
            raise ValueError(f"tfds://{dataset} has no config {config!r}; it has: {known}.")
        builder = ours(config=config or None, **settings)
        builder.download_and_prepare()
        return builder
    try:
        builder = _known_to_tfds(name)(**settings)
        with _brief_downloads():
            builder.download_and_prepare()
    except (requests.RequestException, tfds.download.DownloadError) as error:
        # Not str(error), which may hold a proxy's password.
        raise ConnectionError(
            f"tfds://{name} is not in the cache ({folder}) and could not be fetched "
            f"({type(error).__name__}). Check the network, or copy the cache from a machine that "
            "has it."
        ) from error
    except ImportError as error:
        raise ImportError(
            f"tfds://{name} is prepared with the package {error.name}, which is not installed. "
            "Prepare it apart from ftjax and save its splits as .parquet or .jsonl."
        ) from error
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(_no_such_dataset(name)) from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"tfds://{name}: TFDS cannot prepare it ({reason}).") from error
    return builder


def _known_to_tfds(name: str) -> Callable[..., tfds.core.DatasetBuilder]:
    if name.partition("/")[0] not in tfds.list_builders(with_community_datasets=False):
        for module in MODULES:
            # Some need packages of their own, which the others do not.
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{module}")
    return functools.partial(tfds.builder, name)


def _no_such_dataset(name: str) -> str:
    own = builders.builder_names()
    known = [*own, *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name.partition("/")[0], known, n=3)
    meant = f" Nearest: {', '.join(near)}." if near else ""
    return (
        f"There is no dataset tfds://{name}.{meant} There are {', '.join(own)}, and those of "
        "https://www.tensorflow.org/datasets/catalog; for your own file, give its path."
    )


@contextlib.contextmanager
def _brief_downloads() -> Iterator[None]:
    """Without a network TFDS tries for three minutes, with a warning for each time."""
    if not sys.stderr.isatty():
        # Bars that cannot be drawn over become a line each time they move.
        tfds.disable_progress_bar()
    before = downloader.MAX_RETRIES, downloader._open_url
    log = logging.getLogger("urllib3.connectionpool")
    level = log.level
    wait = (SECONDS_TO_CONNECT, SECONDS_BETWEEN_BYTES)
    downloader.MAX_RETRIES = RETRIES
    downloader._open_url = functools.partial(downloader._open_url, timeout=wait)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES, downloader._open_url = before
        log.setLevel(level)


def _plain(value: Any) -> Any:
    """TFDS gives bytes and numpy values; records hold text, numbers, lists and mappings."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            # An image, perhaps, beside the text that is wanted.
            return value
    if isinstance(value, dict):
        value = {key: _plain(item) for key, item in value.items()}
        if value.keys() == {"role", "content"} and isinstance(value["role"], list):
            # A sequence of messages, which TFDS gives column by column.
            pairs = zip(value["role"], value["content"], strict=True)
            return [{"role": role, "content": content} for role, content in pairs]
        return value
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic | np.ndarray) else value
