"""Images that look like their class: as bright as it is high, in the files that Fashion-MNIST comes in."""

import gzip
from pathlib import Path

import numpy as np

from experiments.video.images import CLASSES, Images


def images(count: int = 120, seed: int = 0) -> Images:
    labels = np.arange(count) % len(CLASSES)
    noise = np.random.default_rng(seed).integers(0, 20, (count, 28, 28))
    return Images((noise + 35 * labels[:, None, None]).astype(np.uint8), labels)


def write_idx(folder: Path, count: int = 40) -> None:
    """Files of `count` images in each split, label after label."""
    for split in ("train", "t10k"):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in ((f"{split}-images-idx3", pixels), (f"{split}-labels-idx1", labels)):
            shape = np.array(array.shape, ">u4").tobytes()
            data = bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()
            (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(data))
