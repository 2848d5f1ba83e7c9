"""What is shown while something takes its time."""

import pytest

from rezero import waiting


def test_what_is_no_terminal_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None before ten seconds are over, then what is done and what comes next, whatever is in it."""
    clock = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    with waiting.share_bar("measured") as tell:
        for second, doing in enumerate(("[a]", "b", "c")):
            clock[0] = 6.0 * second
            tell(second / 4, doing)
        tell(1.0, "d")
    assert capsys.readouterr().err == "measured: 50% done, c\n"
