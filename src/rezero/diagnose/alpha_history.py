"""What an `AlphaRecorder` has seen: the gates of a model over its training."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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

    def to_json(self) -> str:
        """Return everything as one object of JSON, with null for nan."""
        tables = {name: getattr(self, name) for name in ("alphas", "lows", "highs", "gradients", "ratios")}
        facts = {"names": self.names, "steps": self.steps.tolist()} | {
            name: [[value if math.isfinite(value) else None for value in row] for row in table.tolist()]
            for name, table in tables.items()
            if table is not None
        }
        return json.dumps(facts, ensure_ascii=False, allow_nan=False)
