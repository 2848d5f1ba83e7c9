"""What an `AlphaRecorder` has seen: the gates of a model over its training."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rezero.diagnose.alpha_charts import draw_lines, draw_map, draw_profile
from rezero.diagnose.alpha_file import Record, read_records

__all__ = ["AlphaHistory"]

# S records, L gates


@dataclass(frozen=True, eq=False)
class AlphaHistory:
    """The gates of a model over its training; the model is not needed.

    Attributes:
        names: Names of the gates, ``L``, in the order of `rezero.gates`, which is that of depth in most models.
        steps: Numbers of the recorded steps, ``(S,)``, rising.
        alphas: What each branch was multiplied by, ``(S, L)`` in float64 (dimensionless); of a gate with one number a
            channel, their mean. A number that was not finite is nan.
        lows: The smallest number of each gate, ``(S, L)``; None if all gates have a single one.
        highs: The largest, likewise.
        gradients: Gradient of each gate's parameter, ``(S, L)``, the mean over its channels; nan where there was none,
            None if it was not recorded.
        ratios: ``||alpha * f(x)|| / ||x||`` at each gate (dimensionless), ``(S, L)``; nan where the addition was not
            seen, None if it was not recorded.

    Example:
        >>> import rezero
        >>> from rezero.diagnose import AlphaRecorder
        >>> model = torch.nn.Sequential(rezero.ReZero(torch.nn.Linear(4, 4)))
        >>> with AlphaRecorder(model, every=1) as recorder:
        ...     recorder.step()
        >>> recorder.history.alphas
        tensor([[0.]], dtype=torch.float64)
    """

    names: tuple[str, ...]
    steps: Tensor
    alphas: Tensor
    lows: Tensor | None = None
    highs: Tensor | None = None
    gradients: Tensor | None = None
    ratios: Tensor | None = None

    @classmethod
    def of(cls, names: Sequence[str], records: Sequence[Record]) -> "AlphaHistory":
        """Put records together.

        Args:
            names: Names of the gates.
            records: In the order of their steps.

        Returns:
            The history; what a record lacks is nan.
        """
        lacking = torch.full((len(names),), math.nan, dtype=torch.float64)

        def table(field: str) -> Tensor | None:
            if not any(field in record.values for record in records):
                return None
            return torch.stack([record.values.get(field, lacking) for record in records])

        alphas = table("alpha")
        return cls(
            names=tuple(names),
            steps=torch.tensor([record.step for record in records], dtype=torch.int64),
            alphas=torch.empty(0, len(names), dtype=torch.float64) if alphas is None else alphas,
            lows=table("low"),
            highs=table("high"),
            gradients=table("gradient"),
            ratios=table("ratio"),
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "AlphaHistory":
        """Read the file of an `AlphaRecorder`, also while it is being written.

        Args:
            path: The file.

        Returns:
            What it holds, without a last line that was cut off.

        Raises:
            UsageError: If it can't be read, or is no such file.
        """
        return cls.of(*read_records(Path(path)))

    def to_json(self) -> dict[str, Any]:
        """Return all of it in plain types, None for nan."""
        tables = {name: getattr(self, name) for name in ("alphas", "lows", "highs", "gradients", "ratios")}
        return {"names": list(self.names), "steps": self.steps.tolist()} | {
            name: [[value if math.isfinite(value) else None for value in row] for row in table.tolist()]
            for name, table in tables.items()
            if table is not None
        }

    def heat_map(self, *, signed: bool | None = None) -> Any:
        """Draw the gates over depth and time, with the first gate at the bottom.

        Of more than 200 gates or records neighbours share a cell, which shows the one of largest size.

        Args:
            signed: Whether to show signs, in colours that part at zero, or ``|alpha|``; None shows signs where a gate
                was negative.

        Returns:
            An Altair chart, which notebooks show and `rezero.charts.save` writes.

        Raises:
            ImportError: If Altair, of the extra ``lab``, is not installed.
            UsageError: If there is no record.

        References:
            Bachlechner et al. (2020), arXiv:2003.04887, sec. 5 (the map of a Transformer).
        """
        return draw_map(self, signed=signed)

    def lines(self) -> Any:
        """Draw each gate as a line over the steps, coloured by its depth.

        Of more than 200 gates or records as many are drawn, evenly spaced, with the first and the last.

        Returns:
            An Altair chart.

        Raises:
            ImportError: If Altair, of the extra ``lab``, is not installed.
            UsageError: If there is no record.
        """
        return draw_lines(self)

    def profile(self, *others: "AlphaHistory", signed: bool = True) -> Any:
        """Draw the last record over depth; of several runs the median, shaded from the lowest to the highest.

        Of one run the shade goes over the channels of each gate. Of more than 200 gates as many are drawn, evenly
        spaced, with the first and the last.

        Args:
            *others: Further runs of the same model, from other seeds.
            signed: Whether to show ``alpha`` or ``|alpha|``: the sign that a gate takes is often that of chance.

        Returns:
            An Altair chart.

        Raises:
            ImportError: If Altair, of the extra ``lab``, is not installed.
            UsageError: If there is no record, or the runs are of different models.
        """
        return draw_profile((self, *others), signed=signed)
