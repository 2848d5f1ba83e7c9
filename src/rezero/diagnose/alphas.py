"""Record the gates of a model while it trains."""

import math
import operator
import os
from bisect import bisect_left
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from rezero.diagnose.alpha_file import LAST_STEP, AlphaFile, Record
from rezero.diagnose.alpha_history import AlphaHistory
from rezero.diagnose.ratios import Ratios, Seen, ratios_of
from rezero.errors import UsageError
from rezero.gate import gates

__all__ = ["AlphaRecorder"]

# L gates


class AlphaRecorder:
    r"""Records every gate of a model while it trains, in memory and, if asked, in a file that survives a kill.

    Call ``step()`` once after each step of the optimizer. The model is left as it is; all that a record costs is
    reading its gates, with one synchronisation of the device: below 0.5 % of a step, also with 64 small layers and
    ``every=1``. Steps between records cost nothing. Watching ``ratios`` makes a recorded step longer, by 3 to 5 % for a
    Transformer of 12 layers and by 40 % for a network of 64 small ones: ``every=10`` and ``every=100`` keep that below
    0.5 % on average.

    The file holds a line of JSON about the gates and then one a record, each handed to the operating system at once, so
    that a killed process loses at most the last ``every`` steps. A recorder of the same gates goes on with a file that
    is there. If training goes on from an earlier checkpoint, give the steps their numbers: ``step(s)`` first drops the
    records of step ``s`` and later ones.

    Gates that the model gets or loses later are not noticed: make a new recorder then. Where several processes train
    together, record in one of them. A compiled model runs uncompiled in the steps whose
    ratios are recorded.

    Args:
        model: The model, of this library's blocks or converted. For ``ratios`` give what is called in training:
            ``torch.compile(model)`` and not the model in it.
        path: The file; None keeps the records in memory only.
        every: Record the steps whose number this divides.
        gradients: Whether to record each gate's gradient, the mean over its channels. ``step()`` must then come before
            ``zero_grad()``. A gradient scaler's factor is in it unless ``unscale_`` was called.
        ratios: Whether to record ``||alpha * f(x)|| / ||x||`` at each gate: of branch and skip as they are added in the
            forward passes with gradients of the recorded step. Over several passes or uses of a gate squares are summed
            before they are divided. A ratio is nan where no plain sum follows the gate (``torch.addcmul`` is none),
            inside ``model.compile()``, and at steps whose number does not follow from those of the two before.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``every`` is not a whole number from 1.
        ImportError: If there is a path and filelock, of the extra ``lab``, is not installed.
        UsageError: If the model has no gates or no numbers; if another recorder has the file, it is the record of
            another model or something else, or it can't be written.

    Example:
        >>> import rezero
        >>> model = nn.Sequential(*(rezero.ReZero(nn.Linear(8, 8)) for _ in range(3)))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> with AlphaRecorder(model, every=2) as recorder:
        ...     for _ in range(4):
        ...         loss = (model(torch.ones(2, 8)) - 2).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...         recorder.step()
        >>> recorder.history.steps
        tensor([2, 4])
        >>> list(recorder.latest)
        ['0.gate', '1.gate', '2.gate']
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | os.PathLike[str] | None = None,
        *,
        every: SupportsIndex = 10,
        gradients: bool = False,
        ratios: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module: got {type(model).__name__}")
        if isinstance(every, bool) or not hasattr(every, "__index__") or operator.index(every) < 1:
            raise ValueError(f"every must be a whole number of steps, 1 or more: got {every!r}")
        every = operator.index(every)
        found = {name.replace("_orig_mod.", ""): gate for name, gate in gates(_unwrapped(model)).items()}
        if not found:
            raise UsageError("the model has no gates: put some in with rezero.convert_ or rezero.ReZero")
        if meta := [name for name, gate in found.items() if gate.gate_parameter.is_meta]:
            raise UsageError(
                f"the gate {meta[0]!r} has no numbers, it is on the meta device: call model.to_empty(device=...) before"
            )
        self._names = tuple(found)
        self._gates = tuple(found.values())
        sizes = [gate.gate_parameter.numel() for gate in self._gates]
        self._count = sum(sizes)
        self._lengths = torch.tensor(sizes) if max(sizes) > 1 else None
        self._every, self._gradients = every, gradients
        self._records: list[Record] = []
        self._file: AlphaFile | None = None
        if path is not None:
            self._file = AlphaFile(Path(path), dict(zip(self._names, sizes, strict=True)), every)
            self._records = self._file.records
        self._now = self._records[-1].step if self._records else 0
        self._closed = False
        self._ratios = Ratios(model, self._gates) if ratios else None
        if self._ratios is not None:
            self._ratios.begin()  # whatever number the first step will have

    def step(self, step: SupportsIndex | None = None) -> None:
        """Record the gates, if this step is one to be recorded; call it after each step of the optimizer.

        Args:
            step: Number of the step; by default one more than at the last call, or than the last record in the file.
                Records that are not before it are dropped; if that is the whole of an earlier run, its file is kept
                beside, with a number behind its name. Step 0 is the start, if you call it before the first one.

        Raises:
            TypeError: If the number is not whole.
            ValueError: If it is negative, or too large for 64 bits.
            UsageError: If the recorder is closed, or a gate has got another shape; if the file can't be written, and
                what it holds is kept, or was changed or deleted meanwhile.
        """
        if self._closed:
            raise UsageError("the recorder is closed: make a new one, which goes on with the same file")
        now = self._now + 1 if step is None else operator.index(step)
        if now < 0:
            raise ValueError(f"step must be 0 or more: got {now}")
        if now > LAST_STEP:
            raise ValueError(f"step must fit into 64 bits: got {now}")
        stride = max(1, now - self._now)
        self._now = now
        self._drop_from(now)
        seen = self._ratios.end() if self._ratios is not None and self._ratios.watching else []
        if now % self._every == 0:
            self._add(Record(now, self._measure(seen)))
        if self._ratios is not None and (now + stride) % self._every == 0:
            self._ratios.begin()

    @property
    def latest(self) -> dict[str, float]:
        """The last record: name of each gate to its scale; empty if there is none."""
        return dict(zip(self._names, self._records[-1].values["alpha"].tolist(), strict=True)) if self._records else {}

    @property
    def history(self) -> AlphaHistory:
        """All records, with those that the file held before."""
        return AlphaHistory.of(self._names, self._records)

    def close(self) -> None:
        """Let go of the model and the file. What was recorded can still be read."""
        self._closed = True
        if self._ratios is not None:
            self._ratios.end()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> object:
        if self._file is not None or self._ratios is not None:
            raise TypeError(
                "a recorder with a file or ratios holds on to the file and the model, and can't be copied or pickled: "
                "copy its history, and leave the recorder out"
            )
        return self.__dict__

    def _drop_from(self, step: int) -> None:
        if not self._records or self._records[-1].step < step:
            return
        count = bisect_left(self._records, step, key=lambda record: record.step)
        if self._file is not None:
            self._file.keep(count)
        else:
            del self._records[count:]

    def _add(self, record: Record) -> None:
        if self._file is not None:
            self._file.append(record)
        else:
            self._records.append(record)

    @torch.no_grad()
    def _measure(self, seen: list[Seen]) -> dict[str, Tensor]:
        """Read the gates: everything is put into one tensor, which is fetched once."""
        scales = _flat([gate.gate_scale for gate in self._gates])
        if len(scales) != self._count:
            raise UsageError(
                f"the gates had {self._count} numbers when the recorder was made, and have {len(scales)} now: make a "
                "new recorder after a change of the model"
            )
        parts = {"alpha": self._reduce(scales, "mean")}
        if self._lengths is not None:
            parts |= {"low": self._reduce(scales, "min"), "high": self._reduce(scales, "max")}
        if self._gradients:
            parameters = [gate.gate_parameter for gate in self._gates]
            gradients = [torch.full_like(each, math.nan) if each.grad is None else each.grad for each in parameters]
            parts["gradient"] = self._reduce(_flat(gradients), "mean")
        norms = [norm.view(1) for each in seen for norm in (each.branch, each.skip)]
        fetched = _flat([*parts.values(), *norms]).cpu().double()
        rows = dict(zip(parts, fetched.split(len(self._gates)), strict=False))
        if self._ratios is not None:
            pairs = fetched[len(parts) * len(self._gates) :].view(-1, 2).tolist()
            ratios = ratios_of([each.gate for each in seen], pairs, len(self._gates))
            rows["ratio"] = torch.tensor(ratios, dtype=torch.float64)
        return rows

    def _reduce(self, flat: Tensor, how: str) -> Tensor:
        """Return one number a gate, ``(L,)``, of the numbers of all gates one after the other."""
        if self._lengths is None:
            return flat
        if self._lengths.device != flat.device:
            self._lengths = self._lengths.to(flat.device)
        return torch.segment_reduce(flat, how, lengths=self._lengths, unsafe=True)


def _flat(tensors: list[Tensor]) -> Tensor:
    """Put tensors one after the other, on the device of the first; gates may lie on several."""
    device = tensors[0].device
    here = [each if each.device == device else each.to(device) for each in tensors]
    return torch.cat([each if each.ndim == 1 else each.reshape(-1) for each in here])


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a compiled or a replicated one, so that its gates have the same names in all of them."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        return _unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model
