"""Numbers in plain types, for JSON."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["plain"]


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with None for each number that is not finite, which JSON has no word for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
