"""Images of records: read, made as the checkpoint's processor makes them, and kept as bytes."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ftjax.data.examples import Batch
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadDataError, bad_record, of_each
from ftjax.progress import track

FILE = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class Processor:
    """What a checkpoint wants of an image; its own processor, of transformers.

    Attributes:
        processor: resizes and crops.
        scale: what bytes are multiplied by.
        mean: of each channel, taken away behind that.
        deviation: of each channel, divided by at last.
    """

    processor: Any
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Bytes as the network's size wants them, uint8 [height, width, 3]."""
        found = self.processor(
            image.convert("RGB"),
            do_rescale=False,
            do_normalize=False,
            return_tensors="np",
        )
        return np.moveaxis(np.asarray(found["pixel_values"][0]), 0, -1).astype(np.uint8)


def load_processor(folder: Path, file: str | None, side: int | None) -> Processor:
    """The processor of a checkpoint.

    Args:
        folder: the checkpoint's.
        file: a preprocessor_config.json in the place of the checkpoint's, or None.
        side: pixels of a side, in the place of its own; what is cut off keeps its share.

    Raises:
        FileNotFoundError: there is none.
        ValueError: transformers cannot read it.
    """
    # Not above: it takes a second that those who see no images need not wait for.
    from transformers import AutoImageProcessor

    path = folder / FILE if file is None else Path(file)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}, so that nothing says how the network wants images. Name such a "
            "file of a network that was trained alike (config.data.image_processor)."
        )
    try:
        processor: Any = AutoImageProcessor.from_pretrained(str(path), backend="pil")
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: transformers reads no image processor here ({reason})."
        ) from error
    if side is not None:
        _resize_to(processor, side)
    mean = tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0)
    deviation = tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0)
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    return Processor(processor, scale, mean, deviation)


def _resize_to(processor: Any, side: int) -> None:
    size = dict(processor.size or {})
    crop = dict(getattr(processor, "crop_size", None) or {})
    square = {"height": side, "width": side}
    if "shortest_edge" in size and crop and getattr(processor, "do_center_crop", False):
        processor.size = {"shortest_edge": round(side * size["shortest_edge"] / crop["height"])}
        processor.crop_size = square
    else:
        processor.size = square
        if crop:
            processor.crop_size = square


def decoded(value: Any, folder: Path) -> Image.Image:
    """An image as records hold it.

    Args:
        value: a path, the bytes of a file, both as the datasets library has them (`bytes` and
            `path`), or numbers from 0 to 255, [height, width] or [height, width, 3].
        folder: that relative paths begin at.

    Raises:
        ValueError: it is none, or pixels of it can be seen through.
    """
    if isinstance(value, BadDataError):
        raise value
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        path = folder / value
        if not path.is_file():
            raise ValueError(f"there is no file {path}.")
        value = path.read_bytes()
    if isinstance(value, bytes):
        return _opaque(_opened(value))
    try:
        array: Any = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if not is_image or array.size == 0 or array.min() < 0 or array.max() > 255:
        raise ValueError(
            "the image is no path, no bytes of a file and no numbers from 0 to 255, [height, "
            "width] or [height, width, 3]."
        )
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(array.astype(np.uint8))


def _opened(content: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:
        # Pillow's readers raise whatever they stumble on.
        raise ValueError(f"the image cannot be read ({error}).") from error
    return image


def _opaque(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        lowest: Any = whole.getchannel("A").getextrema()[0]
        if lowest < 255:
            raise ValueError(
                "the image has pixels that can be seen through, and nothing says what lies behind "
                "them. Lay it on a background, or leave the record out."
            )
        return whole
    return image


def pixels_of(records: Records, processor: Processor, folder: Path) -> np.ndarray:
    """The images of records, uint8 [records, height, width, 3].

    Args:
        records: each with `image`.
        processor: of the checkpoint.
        folder: that relative paths begin at.

    Raises:
        BadRecordError: what is no image, or of another size than the others.
    """
    steps = iter(track(range(len(records)), "reading images"))

    def read(index: int) -> np.ndarray:
        next(steps)
        try:
            return processor(decoded(records[index]["image"], folder))
        except ValueError as error:
            raise bad_record(records, index, str(error)) from error

    found = of_each(records, read)
    shape = found[0].shape
    differing = [index for index, image in enumerate(found) if image.shape != shape]
    if differing:
        height, width = found[differing[0]].shape[:2]
        raise bad_record(
            records,
            differing[0],
            f"the image has {height} x {width} pixels where the first one has {shape[0]} x "
            f"{shape[1]}, and the checkpoint's processor makes them no square. Set "
            "config.data.image_size.",
        )
    return np.stack(found)


@dataclasses.dataclass(frozen=True)
class ImageExamples:
    """Images, one a row; see `Examples`.

    Attributes:
        pixels: uint8 [examples, height, width, 3].
        fingerprint: SHA-256 of the records.
        columns: what else a batch holds of each example, [examples], such as `labels`.
    """

    pixels: np.ndarray
    fingerprint: str
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def buckets(self) -> Sequence[int]:
        """All images are of one size."""
        return (1,)

    @property
    def lengths(self) -> np.ndarray:
        """1 of each."""
        return np.ones(len(self.pixels), np.int64)

    def token_ids(self) -> np.ndarray:
        """None."""
        return np.zeros(0, np.int32)

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """`pixel_values` uint8 [rows, height, width, 3], `weights` float32 [rows]; columns."""
        batch: Batch = {
            "weights": np.zeros(rows, np.float32),
            "example_ids": np.full(rows, -1, np.int32),
        }
        batch["weights"][: len(indices)] = 1.0
        batch["example_ids"][: len(indices)] = indices
        for name, values in {"pixel_values": self.pixels, **self.columns}.items():
            batch[name] = np.zeros((rows, *values.shape[1:]), values.dtype)
            batch[name][: len(indices)] = values[indices]
        return batch
