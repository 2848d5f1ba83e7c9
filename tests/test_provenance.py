"""Where results come from: the commit of the code that made them."""

import subprocess
from pathlib import Path

from rezero.provenance import provenance


def test_only_changes_of_the_code_make_a_commit_dirty(tmp_path: Path) -> None:
    """Results that an earlier run has written beside it do not; a changed script does."""
    script, result = tmp_path / "code/train.py", tmp_path / "results.json"
    script.parent.mkdir()

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for file in (script, result):
        file.write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "a")
    head = git("rev-parse", "--short=12", "HEAD")
    result.write_text("2")
    assert provenance("x", script=script)["commit of the script"] == head
    script.write_text("2")
    assert provenance("x", script=script)["commit of the script"] == f"{head}-dirty"
