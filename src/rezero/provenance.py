"""How results came about: the command, the commit, versions, machine and date."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

__all__ = ["provenance"]


def provenance(command: str = "", *, script: Path | None = None) -> dict[str, str]:
    """Say how results come about: the command, the commit if there is one, versions, machine and date.

    Args:
        command: What makes them; by default what the command line was given.
        script: Somebody's own file that is run, whose commit counts too.

    Returns:
        Title to text, in the order of the report.
    """
    import torch

    command = command or shlex.join(["rezero", *sys.argv[1:]])
    facts = {
        "command": command.encode("utf-8", "backslashreplace").decode(),
        "commit": _commit(Path(__file__)),
        "commit of the script": "" if script is None else _commit(script.absolute()),
        "versions": f"rezero {version('rezero-torch')}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return {name: text for name, text in facts.items() if text}


def _commit(file: Path) -> str:
    """Name the commit of a file, if it is in one: an installed package may lie in somebody else's repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        git("ls-files", "--error-unmatch", file.name)
        changed = "-dirty" if git("diff", "--name-only", "HEAD", "--", ".") else ""  # in its folder: not by results
        return git("describe", "--always", "--abbrev=12") + changed
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
