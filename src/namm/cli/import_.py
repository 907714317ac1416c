"""`namm import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from namm.cli.shared import console
from namm.errors import ConfigurationError


def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="ckpt.pt, latest.pt or iter_N.pt of the reference implementation.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the memory to.")],
) -> None:
    """Read a checkpoint of the reference implementation and save it as a memory."""
    from namm.reference_checkpoint import import_checkpoint

    if out.exists() and any(out.iterdir()):
        raise ConfigurationError("an empty or new folder for --out", f"{out}, which holds files", "Choose another one.")
    network = import_checkpoint(checkpoint)
    network.save_pretrained(out)
    console.print(f"Saved {network.config.size:,} parameters: {out}", soft_wrap=True)
    console.print("It was evolved with head fill-up: attach it with namm.Threshold(0.0, fill_heads=True).")
