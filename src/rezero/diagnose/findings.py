"""What a check finds: where, why, and what to do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

from rezero.gate import AnyGate

__all__ = ["Finding", "Owners", "Report", "Severity", "report", "where"]

Severity = Literal["fault", "risk"]
Owners = Mapping[str, AnyGate]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may go wrong.

    Attributes:
        name: What it is called, such as ``"zero twice"``.
        where: Names of the gates or layers; of the model itself the empty one.
        why: What was seen.
        advice: What to do.
        severity: ``"fault"`` if something can't learn or is lost, ``"risk"`` if training may suffer.
    """

    name: str
    where: tuple[str, ...]
    why: str
    advice: str
    severity: Severity

    def __str__(self) -> str:
        shown = ", ".join(name or "the model itself" for name in self.where[:3])
        shown += f" and {len(self.where) - 3} more" * (len(self.where) > 3)
        return f"{self.severity}: {self.name}{' at ' * bool(shown)}{shown}: {self.why}; {self.advice}"


@dataclass(frozen=True)
class Report(Sequence[Finding]):
    """All findings, faults first.

    Attributes:
        findings: The findings.
        gates: Number of gates that were looked at.
        notes: What could not be looked at, and why.
    """

    findings: tuple[Finding, ...]
    gates: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self.findings[index]

    def __str__(self) -> str:
        head = f"{self.gates} gate{'s' * (self.gates != 1)}, "
        head += f"{len(self) or 'no'} finding{'s' * (len(self) != 1)}"
        return "\n".join([head, *map(str, self), *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Return all of it in plain types."""
        return {"gates": self.gates, "findings": [asdict(each) for each in self], "notes": list(self.notes)}


def where(owners: Owners, test: Callable[[AnyGate], bool]) -> tuple[str, ...]:
    """Name the gates that pass a test."""
    return tuple(name for name, owner in owners.items() if test(owner))


def report(name: str, where: Sequence[str], why: str, advice: str, severity: Severity = "fault") -> Iterator[Finding]:
    """Make a finding, if it is found anywhere.

    Args:
        name: As for `Finding`.
        where: Likewise.
        why: Likewise.
        advice: Likewise.
        severity: Likewise.

    Yields:
        The finding.
    """
    if where:
        yield Finding(name, tuple(where), why, advice, severity)
