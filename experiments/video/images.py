"""Fashion-MNIST from its own files: 70,000 real photographs of clothes, 28 x 28, with labels (MIT licence).

Debian and Ubuntu carry them as the package `dataset-fashion-mnist`.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from namm.errors import ArtefactError, ConfigurationError, NotFoundError

SYSTEM = Path("/usr/share/datasets/fashion-mnist")
SIZE = 28
CLASSES = ("top", "trouser", "sandal", "sneaker", "bag", "boot")
# t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, boot. The four tops, which people confuse too,
# are one class; dresses, which are confused with them, are left out.
_OF_LABEL = np.array([0, 1, 0, -1, 0, 2, 0, 3, 4, 5])
_FILES = {"train": "train", "validation": "train", "test": "t10k"}
_HELD_OUT = 6000  # of the 60,000 training images, for validation


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, none of them in two splits.

    Attributes:
        pixels: 0 is black.
        labels: index into `CLASSES`.
    """

    pixels: UInt8[np.ndarray, "image 28 28"]
    labels: Int[np.ndarray, " image"]

    def of_class(self, label: int) -> Int[np.ndarray, " image"]:
        """Indices of the images of one class."""
        return np.flatnonzero(self.labels == label)


def load_images(split: str = "test", folder: str | Path = SYSTEM) -> Images:
    """The images of "train", "validation" or "test".

    Raises:
        NotFoundError: the files are not in `folder`.
        ArtefactError: a file is damaged.
        ConfigurationError: there is no such split.
    """
    if split not in _FILES:
        raise ConfigurationError(f"a split, one of {', '.join(_FILES)}", repr(split), "Try test.")
    pixels = _read(Path(folder) / f"{_FILES[split]}-images-idx3-ubyte.gz", 3)
    labels = _read(Path(folder) / f"{_FILES[split]}-labels-idx1-ubyte.gz", 1)
    if pixels.shape != (len(labels), SIZE, SIZE) or (len(labels) and labels.max() >= len(_OF_LABEL)):
        raise ArtefactError(
            f"as many labels below {len(_OF_LABEL)} as images of {SIZE} x {SIZE}",
            f"{len(labels)} labels and images of shape {list(pixels.shape)} in {folder}",
            "Fetch the files again.",
        )
    held = len(labels) - min(_HELD_OUT, len(labels) // 2)
    part = {"train": slice(0, held), "validation": slice(held, None), "test": slice(None)}[split]
    classes = _OF_LABEL[labels[part]]
    return Images(pixels[part][classes >= 0], classes[classes >= 0])


def _read(file: Path, axes: int) -> np.ndarray:
    """One file in the idx format: two zeros, the kind of number (8: bytes), the number of axes, their lengths."""
    if not file.is_file():
        raise NotFoundError(
            "the files of Fashion-MNIST",
            f"no {file}",
            "Debian: apt install dataset-fashion-mnist. Elsewhere give the folder that holds them (--images).",
        )
    try:
        data = gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise ArtefactError("a whole gzip file", f"{file}: {error}", "Fetch it again.") from error
    shape = tuple(np.frombuffer(data[4 : 4 + 4 * axes], ">u4").astype(int))
    if data[:4] != bytes([0, 0, 8, axes]) or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise ArtefactError(f"bytes in {axes} axes in the idx format", f"another content in {file}", "Fetch it again.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
