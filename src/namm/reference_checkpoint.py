"""Import of checkpoints written by the reference implementation (spec 12), without running what they contain."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from namm.errors import ArtefactError, NotFoundError, nearest, reason
from namm.files import read
from namm.network import NAMM, NAMMConfig
from namm.spectrogram import BINS

_UNREADABLE = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError)
_BUFFERS = "stored_buffers_to_save.token_embedding_0_"


def import_checkpoint(file: str | Path) -> NAMM:
    """The memory in a reference checkpoint: the mean of the search and the normalisation that was used with it.

    The file is read with `weights_only`: tensors and numpy scalars, no code.

    Raises:
        NotFoundError: there is no such file.
        ArtefactError: it is no such checkpoint, or of another configuration than the published one.
    """
    path = Path(file)
    if not path.exists():
        beside = [f.name for f in path.parent.glob("*.pt")] if path.parent.is_dir() else []
        way_out = nearest(path.name, beside) if beside else "Give the ckpt.pt, latest.pt or iter_N.pt of a run."
        raise NotFoundError("a checkpoint file", str(path), way_out)
    state = _evolution_state(_load(path), path)
    mean = _tensor(state, "mean", path).flatten()
    config = NAMMConfig(trained_on=f"imported from {path.name} of the reference implementation")
    if len(mean) != config.size:
        raise ArtefactError(
            f"{config.size} parameters, the published configuration", f"{len(mean)} in {path.name}",
            "Other widths and feature sets cannot be imported.",
        )  # fmt: skip
    count = _tensor(state, f"{_BUFFERS}output_num", path)
    if int(count.max()) == 0:
        raise ArtefactError(
            "normalisation statistics (output_num > 0)", f"none in {path.name}",
            "Take a checkpoint written after the run's first evaluation.",
        )  # fmt: skip
    average, variance = (_tensor(state, f"{_BUFFERS}output_{name}", path).reshape(BINS) for name in ("mean", "var"))
    return NAMM.from_vector(mean, average, variance, config)


def _load(path: Path) -> Any:
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    safe = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]
    written = io.BytesIO(read(path, "Give the ckpt.pt, latest.pt or iter_N.pt of a run."))
    data = io.BytesIO()  # torch compares no checksums and trusts the directory: it is given what was compared
    try:
        with zipfile.ZipFile(written) as records, zipfile.ZipFile(data, "w") as compared:
            for record in records.infolist():
                if record.compress_type != zipfile.ZIP_STORED:
                    raise zipfile.BadZipFile(f"{record.filename} is compressed")
                compared.writestr(record.filename, records.read(record))
        data.seek(0)
        with torch.serialization.safe_globals(safe):
            return torch.load(data, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ArtefactError(
            "a torch checkpoint of tensors", f"{path.name} ({reason(error)})",
            "The file is truncated or altered, or holds code, which is not run.",
        ) from error  # fmt: skip


def _evolution_state(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    state = checkpoint.get("evolution_state") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise ArtefactError(
            "a dictionary with evolution_state", f"{path.name} without it", "Give a NAMM run's checkpoint."
        )
    return {name.removeprefix("_orig_mod."): value for name, value in state.items()}


def _tensor(state: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if not isinstance(state.get(name), Tensor):
        raise ArtefactError(f"the entry {name}", f"{path.name} without it", "Give the checkpoint of a NAMM run.")
    return state[name]
