"""The command ``rezero``."""

import io
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from rezero.interrupt import end_after_ctrl_c

LAB_EXTRA = ("accelerate", "altair", "cyclopts", "jinja2", "psutil", "rich", "sklearn", "vl_convert")


def main() -> None:
    """Run the command line; its exit code is 2 for a request that cannot be carried out, 130 after Ctrl-C."""
    try:
        code = _run()
    except KeyboardInterrupt:  # before anything was begun
        code = 130
    sys.exit(code)


def _run() -> int:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: the next file to be opened, a study's say, would take its place
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for good
    end_after_ctrl_c(10.0 if os.environ.get("WORLD_SIZE", "1") == "1" else 5.0)
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = os.devnull  # Altair asks for a home when it is imported, and needs none
    if missing := [name for name in LAB_EXTRA if find_spec(name) is None]:
        print(f"rezero: the command line needs {', '.join(missing)}: pip install 'rezero-torch[lab]'", file=sys.stderr)
        return 2
    from rezero.cli import run

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a folder's name may not be text in this locale

    return run(sys.argv[1:])


if __name__ == "__main__":
    main()
