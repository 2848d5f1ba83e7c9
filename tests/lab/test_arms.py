"""Reading a list of arms."""

import pytest

from rezero.errors import UsageError, near
from rezero.lab import parse_arms

KNOWN = ["plain", "residual", "pre-norm", "rezero"]


@pytest.mark.parametrize(
    ("text", "arms"),
    [
        ("rezero", ("rezero",)),
        ("rezero,plain", ("rezero", "plain")),
        ("plain,rezero", ("plain", "rezero")),
        (" pre-norm , rezero,", ("pre-norm", "rezero")),
    ],
    ids=["one", "two", "order", "blanks"],
)
def test_arms_come_in_the_order_given(text: str, arms: tuple[str, ...]) -> None:
    """A list is read in its order; blanks around names and empty entries do not count."""
    assert parse_arms(text, KNOWN) == arms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^expected at least one arm, got ''; choose from plain, residual, pre-norm, rezero$"),
        (" ", r"^expected at least one arm, got ' '; choose from plain"),
        (",,", r"^expected at least one arm, got ',,'; choose from plain"),
        (
            "rezro",
            r"^no arm of this task is called 'rezro' \(did you mean 'rezero'\?\); choose from plain, residual, pre",
        ),
        ("plain,xyz", r"^no arm of this task is called 'xyz'; choose from plain, residual, pre-norm, rezero$"),
        ("ReZero", r"^no arm of this task is called 'ReZero' \(did you mean 'rezero'\?\)"),
        ("plain rezero", r"^no arm of this task is called 'plain rezero'"),
        ("plain,rezero,plain", r"^expected each arm once, got 'plain' 2 times$"),
        ("plain lr=0.1,plain lr=0.10", r"^expected each arm once, got 'plain lr=0.1' 2 times$"),
    ],
    ids=["empty", "blank", "commas", "typo", "unknown", "case", "no-comma", "twice", "same"],
)
def test_wrong_list_is_one_line(text: str, message: str) -> None:
    """A wrong list is a UsageError of one line that says what came and what there is."""
    with pytest.raises(UsageError, match=message) as caught:
        parse_arms(text, KNOWN)
    assert "\n" not in str(caught.value)


def test_near_names_the_likeliest_or_nothing() -> None:
    """near() remarks on one close name and is silent when none is close."""
    assert near("residul", KNOWN) == " (did you mean 'residual'?)"
    assert not near("xyz", KNOWN)
