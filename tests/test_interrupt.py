"""Ctrl-C that nothing hears of: real processes, real signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rezero.interrupt import STOPPED

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]

# The command line, whose data are loaded by something that swallows exceptions, or that waits for others in C++.
DEAF = """
import sys, time, weakref
from dataclasses import replace
from torch.distributed import TCPStore
from rezero.__main__ import main
from rezero.lab import TASKS

class Lock: pass

def callback(_):
    print("ready", flush=True)
    time.sleep(60)

def swallow(_):
    lock = Lock()
    reference = weakref.ref(lock, callback)  # the import system has such a one for each module
    del lock
    time.sleep(60)

def wait(_):
    print("ready", flush=True)
    TCPStore("127.0.0.1", 0, world_size=2, is_master=True)

TASKS["fc-digits"] = replace(TASKS["fc-digits"], load={"swallows": swallow, "waits": wait}[sys.argv.pop(1)])
main()
"""


@pytest.mark.parametrize(
    ("how", "rank", "size"),
    [("swallows", 0, 2), ("waits", 1, 2), ("swallows", 0, 1)],
    ids=["swallows", "waits", "swallows-alone"],
)
def test_ctrl_c_ends_a_process_that_does_not_hear_it(how: str, rank: int, size: int) -> None:
    """A process that loses the exception ends some seconds after Ctrl-C; the first of several says its line."""
    group = {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", DEAF, how, "compare", "fc-digits"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **group, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.5)  # until it waits
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130
    assert ("KeyboardInterrupt" in errors) == (how == "swallows")
    assert [line for line in errors.splitlines() if line.startswith("rezero:")] == [f"rezero: {STOPPED}"] * (rank == 0)
