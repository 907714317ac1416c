"""What no request can be blamed for and no later one can survive, and the end of the process that it calls for."""

from __future__ import annotations

import logging
import os
import time

import torch

GRACE = 2.0  # seconds in which clients are told that their answers failed
STATUS = os.EX_SOFTWARE  # exit status, by which a supervisor knows that it has to start the process again
_DEVICE_ERROR: type[Exception] | tuple[()] = getattr(torch, "AcceleratorError", ())  # torch 2.6 has none


def is_fatal(error: Exception, device: torch.device) -> bool:
    """Whether the device is lost: after an assertion or an illegal access in a kernel, every call to it fails until
    the process ends. One that is out of memory goes on as soon as something is freed.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, _DEVICE_ERROR):
        return "out of memory" not in str(error)
    if device.type == "cpu":
        return False
    try:
        torch.accelerator.synchronize(device)
    except RuntimeError:
        return True
    return False


def end_process() -> None:
    """Without a word to anything that might hang, such as the driver of a lost device."""
    time.sleep(GRACE)
    logging.shutdown()
    os._exit(STATUS)
