"""The command ``rezero``."""

import io
import sys
from importlib.util import find_spec

LAB_EXTRA = ("accelerate", "altair", "cyclopts", "jinja2", "rich", "sklearn", "vl_convert")


def main() -> None:
    """Run the command line; its exit code is 2 for a request that cannot be carried out."""
    if missing := [name for name in LAB_EXTRA if find_spec(name) is None]:
        print(f"rezero: the command line needs {', '.join(missing)}: pip install 'rezero-torch[lab]'", file=sys.stderr)
        sys.exit(2)
    from rezero.cli import run

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a folder's name may not be text in this locale

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
