"""Samples from a folder that holds one folder of images per class."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from normscope.errors import FileError, InputError, MissingExtraError
from normscope.experiment.sources import Samples, check_size, samples
from normscope.files import shown

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
LARGEST_SIDE = 64  # images of one size up to this are taken as they are
SIDE = 32  # all others are resized to this square
MAX_PIXELS = 2**26  # of one image file: what lies beyond is refused before it is unpacked


def read_folder(folder: Path) -> Samples:
    """Read (N, C, H, W) uint8 images; each sub-folder is a class, its name the class's name.

    Where all images have one size of at most 64 x 64 they are taken as they are; otherwise each
    is resized to 32 x 32, whatever its shape. One channel if every image is grey, otherwise
    three; transparency is dropped. Hidden files and files that are no images are passed over.

    Raises:
        MissingExtraError: Pillow is not installed.
        FileError: an image that cannot be read.
        InputError: no class folders, or one without images.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as problem:
        raise MissingExtraError(
            "reading images needs Pillow: pip install 'normscope[images]'"
        ) from problem
    classes = _by_class(folder)
    files = [path for paths in classes.values() for path in paths]
    sizes, grey = set(), True
    for path in files:
        with _opened(path) as image:  # its head alone
            sizes.add(image.size)
            grey &= image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    size = next(iter(sizes))
    if len(sizes) > 1 or max(size) > LARGEST_SIDE:
        size = (SIDE, SIDE)
    channels = 1 if grey else 3
    check_size(len(files) * channels * size[0] * size[1], shown(folder))
    x = np.empty((len(files), channels, size[1], size[0]), dtype=np.uint8)
    for i, path in enumerate(files):
        x[i] = _pixels(path, size, channels)
    y = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    names = [shown(path.name) for path in classes]
    return samples(folder.resolve().name, x, y, names, where=shown(folder))


def _by_class(folder: Path) -> dict[Path, list[Path]]:
    """List the image files of each class folder."""

    def visible(place: Path) -> list[Path]:
        return sorted(p for p in place.iterdir() if not p.name.startswith("."))

    try:
        classes = {
            path: [p for p in visible(path) if p.suffix.lower() in SUFFIXES and p.is_file()]
            for path in visible(folder)
            if path.is_dir()
        }
    except OSError as problem:
        raise FileError(f"{shown(folder)} cannot be read: {problem.strerror}") from problem
    if not classes:
        raise InputError(
            f"{shown(folder)} holds no class folders; put the images of each class in a folder "
            "of its own"
        )
    for path, images in classes.items():
        if not images:
            raise InputError(
                f"class folder {shown(path)} holds no images ({', '.join(SUFFIXES)}); "
                "the images of a class lie directly in its folder"
            )
    return classes


def _pixels(path: Path, size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    from PIL import Image

    with _opened(path) as image:
        if image.mode.startswith("I"):  # 16 bits: the upper eight
            upper = np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255)
            image = Image.fromarray(upper.astype(np.uint8))
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        values = np.asarray(image, dtype=np.uint8)
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


@contextmanager
def _opened(path: Path) -> "Iterator[Image]":
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own warning of large images; ours is an error
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"{shown(path)} has {image.width} x {image.height} pixels; at most "
                        f"{MAX_PIXELS:,} pixels are read"
                    )
                yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise FileError(
            f"{shown(path)} is no image that can be read; replace or remove it"
        ) from problem
