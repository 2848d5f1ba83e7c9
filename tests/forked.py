"""Python processes that are forked from one which has imported what they need: a fresh one takes seconds for that.

Where a test is about the start of a process itself, it starts a real one.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Forked", "run_forked"]

ROOT = Path(__file__).parents[1]
SERVER = """
import gc, json, os, runpy, select, signal, socket, sys
import altair, scipy.stats, sklearn.datasets, torch.export, vl_convert
import rezero.cli, rezero.comparing, rezero.lab.one, rezero.lab.script, rezero.surgery.convert

rezero.lab.find_task("fc-digits").settings({})  # which builds an optimizer
gc.freeze()  # or each fork would walk over all of that as it ends
asked = socket.socket(fileno=int(sys.argv[1]))
while True:
    if select.select([asked], [], [], 0.02)[0]:
        order, handles, _, _ = socket.recv_fds(asked, 1 << 20, 3)
        if not order:
            sys.exit()
        child = os.fork()
        if not child:
            break
        for handle in handles:
            os.close(handle)
        asked.send(json.dumps([child, None]).encode())
    try:
        child, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        continue
    if child:
        asked.send(json.dumps([child, status]).encode())

asked.close()
for number, handle in enumerate(handles):
    os.dup2(handle, number)
    os.close(handle)
sys.stdin = os.fdopen(0, closefd=False)
sys.stdout = os.fdopen(1, "w", closefd=False)
sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
order = json.loads(order)
if order["session"]:
    os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)
os.chdir(order["folder"])
os.environ.clear()
os.environ.update(order["environment"])
sys.argv = order["arguments"]
if order["module"]:
    sys.path[0] = os.getcwd()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


class _Server:
    """The process that the others are forked from."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", SERVER, str(theirs.fileno())]
        self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        self.ended: dict[int, int] = {}
        atexit.register(self.close)

    def close(self) -> None:
        self.ours.close()
        self.process.wait()

    def fork(self, order: dict[str, Any], handles: Sequence[int]) -> int:
        socket.send_fds(self.ours, [json.dumps(order).encode()], handles)
        while True:
            child, status = self._hear()
            if status is None:
                return child

    def status(self, child: int, *, wait: bool) -> int | None:
        self.ours.setblocking(wait)
        try:
            while child not in self.ended:
                self._hear()
        except BlockingIOError:
            return None
        finally:
            self.ours.setblocking(True)
        return self.ended[child]

    def _hear(self) -> tuple[int, int | None]:
        child, status = json.loads(self.ours.recv(1 << 10))
        if status is None:
            self.ended.pop(child, None)  # numbers come back
        else:
            self.ended[child] = status
        return child, status


_server = cache(_Server)


class Forked(subprocess.Popen[Any]):
    """``subprocess.Popen`` of ``python -m module`` or ``python script.py``, forked rather than started.

    Variables that Python and torch read as they start have the values that they have for the tests. Ctrl-C is heard
    even where a shell that starts the tests in the background would have it ignored.
    """

    def _execute_child(self, args: Any, *given: Any) -> None:  # the one place where Popen starts a process
        (_, preexec_fn, _, _, cwd, env, _, _, shell, stdin, p2cwrite, c2pread, stdout, errread, stderr, *_) = given
        session = given[-2]
        program, *arguments = args
        assert program == sys.executable
        assert not shell
        assert preexec_fn is None
        module = arguments[0] == "-m"
        arguments = [str(each) for each in arguments[module:]]
        assert not arguments[0].startswith("-")
        order = {
            "arguments": arguments,
            "module": module,
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "session": bool(session),
        }
        handles = [number if each == -1 else each for number, each in enumerate((stdin, stdout, stderr))]
        self.pid = _server().fork(order, handles)
        self._child_created = True
        for used, kept in ((stdin, p2cwrite), (stdout, c2pread), (stderr, errread)):
            if used != -1 and kept != -1:
                os.close(used)
        if (devnull := getattr(self, "_devnull", None)) is not None:
            os.close(devnull)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            status = _server().status(self.pid, wait=False)
            self.returncode = None if status is None else os.waitstatus_to_exitcode(status)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        status = _server().status(self.pid, wait=wait_flags == 0)
        return (0, 0) if status is None else (self.pid, status)


def run_forked(command: Sequence[str], **named: Any) -> "subprocess.CompletedProcess[str]":
    """Run a forked process to its end, keeping what it prints."""
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with Forked(command, stdin=subprocess.DEVNULL, text=True, **pipes, **named) as process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)
