"""Ctrl-C, which has to end the command line also where nothing hears of it."""

import os
import signal
import socket
import sys
import time
from threading import Thread

__all__ = ["STOPPED", "end_after_ctrl_c"]

STOPPED = "stopped; what is done is kept, and the same command goes on from there"


def end_after_ctrl_c(patience: float) -> None:
    """See to it that this process ends after Ctrl-C, whatever becomes of the ``KeyboardInterrupt``.

    An import, a destructor or a library in C can swallow that exception, and the main thread hears nothing of it while
    it waits in C++ for a process that has ended. torchrun passes Ctrl-C on once, and kills after half a minute; at
    a terminal a study would seem not to have been stopped.

    Args:
        patience: Time (seconds) that the exception has to end the process.
    """
    ours, handlers = socket.socketpair()
    handlers.setblocking(False)
    signal.set_wakeup_fd(handlers.detach())  # the handler in C writes to it at once, whatever Python does
    Thread(target=_end, args=(ours, patience), daemon=True).start()


def _end(signals: socket.socket, patience: float) -> None:
    while signals.recv(1) != bytes([signal.SIGINT]):
        pass
    time.sleep(patience)
    try:
        if os.environ.get("RANK", "0") == "0":
            print(f"rezero: {STOPPED}", file=sys.stderr, flush=True)
    finally:
        os._exit(130)
