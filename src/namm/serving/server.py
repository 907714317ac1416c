"""The web server of `namm serve`, which does not end without a word."""

from __future__ import annotations

import faulthandler
import logging
import signal
import socket
from types import FrameType

import uvicorn

log = logging.getLogger("namm.serving")


class Server(uvicorn.Server):
    """uvicorn, with the signals that end it in the log.

    A hangup ends it as SIGTERM does, unless it is ignored, as under `nohup`. What ends a process at once, such as a
    segmentation fault, leaves the stacks of all threads on standard error; only SIGKILL leaves nothing.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.signals: list[str] = []

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """
        Raises:
            KeyboardInterrupt: it was ended by SIGINT.
            SystemExit: the application did not start.
        """
        faulthandler.enable()
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self.handle_exit)
        try:
            super().run(sockets)
        except SystemExit:  # also what Ray makes of SIGTERM when uvicorn, which has stopped, passes it on
            if not self.signals:
                raise

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.signals.append(signal.Signals(sig).name)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.warning("stopping", extra={"signals": list(self.signals)})
        await super().shutdown(sockets)
        log.warning("stopped")
