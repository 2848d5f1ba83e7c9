"""The tables of the sweeps, and what is said of them."""

import json
from pathlib import Path

import pytest

from tests.integration.coverage import FOLDER, LIBRARIES, read, summary, timing

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("library", LIBRARIES)
def test_readme_says_what_the_table_says(library: str) -> None:
    """Shares and times in the README, and beside the table, are those of the table."""
    rows, readme = read(FOLDER / f"{library}.csv"), " ".join(README.split())
    told = json.loads((FOLDER / f"{library}.json").read_text())
    assert (told["models"], told["seconds"]) == (summary(library, rows), timing(rows))
    assert told["models"] in readme
    assert told["seconds"] in readme


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_row_says_what_was_found(library: str) -> None:
    """A row that counts as good has all its additions gated or left out, and no parameter that nothing explains."""
    for row in read(FOLDER / f"{library}.csv"):
        if row["status"] in {"verified", "found"}:
            assert int(row["additions"]) == int(row["gated"]) + int(row["left_out"]), row["name"]
            assert row["unexplained"] == "0" or row["by_hand"], row["name"]
            assert row["expected"] in {"", row["branches"]}, row["name"]
        else:
            assert row["reason"] or row["status"] == "time limit", row["name"]


def test_every_family_of_timm_is_verified_once() -> None:
    """With real numbers, where it has a model with residual additions and below 200 M parameters."""
    rows = [row for row in read(FOLDER / "timm.csv") if row["status"] in {"verified", "found"}]
    families = {row["family"] for row in rows if int(row["parameters"]) < 200_000_000}
    assert families == {row["family"] for row in rows if row["status"] == "verified"}
