"""All of one model at once: its check and its pictures, as files."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rezero.diagnose.alpha_history import AlphaHistory
from rezero.diagnose.alphas import AlphaRecorder
from rezero.diagnose.blocks import block_names
from rezero.diagnose.check import check
from rezero.diagnose.example import batch_size
from rezero.diagnose.findings import Report
from rezero.diagnose.jacobian import Spectrum, jacobian_spectrum
from rezero.diagnose.propagation import Propagation, propagation
from rezero.errors import UsageError
from rezero.gate import gates
from rezero.surgery.convert import convert_
from rezero.surgery.find import find_residuals

__all__ = ["Diagnosis", "diagnose"]

GATED, ORIGINAL = "with gates", "as it was"


@dataclass(frozen=True)
class Diagnosis:
    """What was found of a model.

    Attributes:
        report: What `check` says of it with its gates.
        converted: Whether the gates were put in for this.
        restarted: How many parameters that ended a branch with zeros were set to their usual start by that.
        alphas: Its gates, one record; None without any.
        signals: `propagation` with gates, and without them if they were put in for this.
        spectra: `jacobian_spectrum` of the same, from the first block's input to the last one's output.
    """

    report: Report
    converted: bool
    restarted: int
    alphas: AlphaHistory | None
    signals: Mapping[str, Propagation]
    spectra: Mapping[str, Spectrum] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all of it in plain types."""
        return {
            "converted": self.converted,
            "restarted": self.restarted,
            "check": self.report.to_json(),
            "alphas": None if self.alphas is None else self.alphas.to_json(),
            "propagation": {name: each.to_json() for name, each in self.signals.items()},
            "jacobian": {name: each.to_json() for name, each in self.spectra.items()},
        }

    def write(self, folder: Path, facts: Mapping[str, str]) -> list[Path]:
        """Write ``check.txt``, ``diagnosis.json`` and the charts, each as SVG, PNG and a page that needs no network.

        Args:
            folder: Where to; it is made if it is not there.
            facts: How it came about, title to text.

        Returns:
            The files.
        """
        from rezero.charts import histogram, save
        from rezero.charts.depth import propagation_chart

        charts: dict[str, Any] = {"propagation": propagation_chart(self.signals)}
        if self.alphas is not None and bool(self.alphas.alphas.any()):
            charts["alphas"] = self.alphas.profile()
        if self.spectra:
            sets = {name: {"": each.singular_values.flatten().tolist()} for name, each in self.spectra.items()}
            single = any(each.singular_values.shape[1] < each.count for each in self.spectra.values())
            charts["singular_values"] = histogram(
                sets, single=single, description="Singular values from the first block to the last."
            )
        folder.mkdir(parents=True, exist_ok=True)
        files = {"check.txt": f"{self.report}\n", "diagnosis.json": json.dumps({**facts, **self.to_json()}, indent=1)}
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        drawn = [save(chart, folder / name, ("svg", "png", "html")) for name, chart in charts.items()]
        return [*(folder / name for name in files), *(file for each in drawn for file in each)]


def diagnose(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    singular_values: int | None = 0,
    busy: Callable[[str], AbstractContextManager[None]],
) -> Diagnosis:
    """Look into a model; one without gates is converted, if it has residual additions.

    Args:
        model: The model.
        args: Example arguments. A single example is joined by itself with its last axis reversed.
        kwargs: Example keyword arguments.
        singular_values: How many of the largest are computed; None for all, 0 for none.
        busy: Is told what is being done.

    Returns:
        What was found.

    Raises:
        UsageError: If the model has no numbers, can't be converted or run.
    """
    if any(each.is_meta for each in (*model.parameters(), *model.buffers())):
        raise UsageError("the model is on the meta device and has no numbers: build it on a device that has")
    if not args and not kwargs:
        raise UsageError("no example was given: let the function return the model and its example arguments")
    args, kwargs = _paired(args, dict(kwargs))
    example: Any = {**kwargs} if kwargs and not args else args
    if args and kwargs:
        raise UsageError("expected the example as arguments in order or by name, got some of both")
    signals: dict[str, Propagation] = {}
    spectra: dict[str, Spectrum] = {}

    def look(name: str) -> None:
        with busy("following signals through the blocks"):
            signals[name] = propagation(model, example)
        if singular_values != 0:
            blocks = block_names(model)
            with busy("computing singular values"):
                first = tree_map_only(Tensor, lambda tensor: tensor[:1] if tensor.ndim else tensor, example)
                ends = (blocks[0], blocks[-1])
                spectra[name] = jacobian_spectrum(model, first, between=ends, k=singular_values, which="largest")

    converted, restarted = not gates(model), 0
    if converted:
        look(ORIGINAL)
        with busy("converting"):
            found = find_residuals(model, args, kwargs)
            if not found and not any(each.refused for each in found.left_out):
                notes = ("the model has no residual additions to gate", *[str(found)] * bool(found.left_out))
                return Diagnosis(Report((), 0, notes), False, 0, None, signals, spectra)
            restarted = len(convert_(model, args, kwargs).reset)
    look(GATED)
    with busy("checking the gates"):
        report = check(model, example)
    with AlphaRecorder(model) as recorder:
        recorder.step(0)
    return Diagnosis(report, converted, restarted, recorder.history, signals, spectra)


def _paired(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make two examples of one, for a cosine needs two."""
    if batch_size((args, kwargs)) != 1:
        return args, kwargs
    made: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(Tensor, _joined, (args, kwargs))
    return made


def _joined(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor.flip(-1)]) if tensor.ndim and len(tensor) == 1 else tensor
