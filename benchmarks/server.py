"""A `namm serve` of our own as another process: started, watched, and stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType

import httpx

_NAMM = Path(sys.executable).with_name("namm")
_REPLICA = re.compile(r'replica="\d+",?')
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


class Server:
    """`with Server([...options of namm serve...]) as server:`; it is there when the block begins.

    Args:
        log: file for what the server says; nothing is kept without one.
        keys: API keys it knows.
        patience: seconds it may take to start.

    Attributes:
        exit: its exit status after it was stopped: the negative number of a signal, if that ended it.
    """

    def __init__(
        self, options: list[str], log: Path | None = None, keys: list[str] | None = None, patience: float = 180
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [str(_NAMM), "serve", *options, "--port", str(self.port)]
        self._log, self._keys, self._patience = log, keys or [], patience
        self._process: subprocess.Popen[bytes] | None = None
        self.exit: int | None = None

    def __enter__(self) -> Server:
        out = self._log.open("wb") if self._log else subprocess.DEVNULL
        environment = os.environ | {"NAMM_API_KEYS": ",".join(self._keys), "PYTHONFAULTHANDLER": "1"}
        self._process = subprocess.Popen(self._command, stdout=out, stderr=out, env=environment)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ask it to end, and see to it."""
        assert self._process is not None
        self._process.terminate()
        try:
            self.exit = self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.exit = self._process.wait()

    def how_it_is(self) -> str:
        """Whether it runs, or how it ended."""
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return f"process {self.pid} runs"
        cause = f"by {signal.Signals(-status).name}" if status < 0 else "by itself"
        return f"process {self.pid} ended {cause}, with exit status {status}"

    def metrics(self) -> dict[str, float]:
        """`/metrics` by name, with the labels as Prometheus writes them: `namm_bytes_held{where="resting"}`; else 0."""
        return parse(httpx.get(f"{self.url}/metrics", timeout=60).text)

    def status(self, name: str) -> int:
        """A number of `/proc/PID/status`, in bytes if it has a unit: VmRSS, VmHWM, Threads."""
        found = re.search(rf"^{name}:\s+(\d+)( kB)?", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) * (1024 if found[2] else 1)

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def _wait(self) -> None:
        end = time.monotonic() + self._patience
        while time.monotonic() < end and self.runs:
            try:
                if httpx.get(f"{self.url}/health", timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        said = self._log.read_text(errors="replace")[-2000:] if self._log else "no log was kept"
        raise RuntimeError(f"the server did not start: {said}")


def parse(text: str) -> dict[str, float]:
    """Samples of Prometheus' text format, those of several replicas together."""
    samples: dict[str, float] = defaultdict(float)
    for name, labels, value in _SAMPLE.findall(text):
        kept = _REPLICA.sub("", labels)
        samples[f"{name}{{{kept}}}" if kept else name] += float(value)
    return samples


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
