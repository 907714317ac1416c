"""What the options of `namm serve` mean: keys, addresses and numbers of bytes."""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_address
from pathlib import Path

from namm.errors import ConfigurationError

KEYS = "NAMM_API_KEYS"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def read_keys(given: list[str] | None, file: Path | None) -> tuple[str, ...]:
    """Keys of the command line, of a file (one a line) and of the environment; none if none was given.

    Raises:
        ConfigurationError: an empty one, or a file or variable without any: the server would be open to everyone.
    """
    keys = [key.strip() for key in given or ()]
    if file is not None:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError("a file with a key a line", f"{file}: {error}", "See --api-key-file.") from error
        keys += _some([line.strip() for line in lines if line.strip()], str(file))
    if (said := os.environ.get(KEYS)) is not None:
        keys += _some([key.strip() for key in said.split(",") if key.strip()], KEYS)
    if "" in keys:
        raise ConfigurationError("a key", "an empty --api-key", "Give one, or leave the option out.")
    return tuple(keys)


def _some(keys: list[str], where: str) -> list[str]:
    if not keys:
        raise ConfigurationError(f"keys in {where}", "none", "Put some there, or leave it out.")
    return keys


def listening(host: str, port: int) -> socket.socket:
    """A socket with this address, before anything is loaded.

    Raises:
        ConfigurationError: there is no such address, or somebody listens there.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise ConfigurationError("a free address to listen at", f"{host}:{port}: {error}", "Try --port.") from error
    return found


def reached_by(address: socket.socket, host: str, keys: tuple[str, ...], anyone: bool) -> tuple[str, ...]:
    """Names of the server besides those of the loopback: what was asked for, and the address that it became.

    Raises:
        ConfigurationError: others can reach it, and no key keeps them out.
    """
    here = address.getsockname()[0]
    if not (keys or anyone or ip_address(here).is_loopback):
        raise ConfigurationError(
            f"keys for a server that others can reach, at {host}", "none",
            "Give --api-key-file, or --allow-anyone if that is meant.",
        )  # fmt: skip
    return host, here


def read_bytes(said: str, option: str) -> int:
    """`2GiB` -> 2147483648; without a unit, bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", said, re.IGNORECASE)
    if not found or found[2].upper() not in _UNITS:
        raise ConfigurationError(f"a number of bytes for {option}", repr(said), "Try 2GiB, 500MB or 1000000.")
    return int(float(found[1]) * _UNITS[found[2].upper()])
