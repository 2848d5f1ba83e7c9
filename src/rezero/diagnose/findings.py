"""What a check finds: where, why, and what to do."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

__all__ = ["Finding", "Report", "Severity"]

Severity = Literal["fault", "risk"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may go wrong.

    Attributes:
        name: What it is called, such as ``"zero twice"``.
        where: Names of the gates or layers.
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
        shown = ", ".join(self.where[:3]) + (f" and {len(self.where) - 3} more" if len(self.where) > 3 else "")
        return f"{self.severity}: {self.name} at {shown or 'the model'}: {self.why}; {self.advice}"


@dataclass(frozen=True)
class Report(Sequence[Finding]):
    """All findings, faults first.

    Attributes:
        findings: The findings.
        gates: Number of gates that were looked at.
    """

    findings: tuple[Finding, ...]
    gates: int

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
        if not self.findings:
            return head + "no findings"
        return "\n".join([f"{head}{len(self)} finding{'s' * (len(self) != 1)}", *map(str, self)])

    def to_json(self) -> dict[str, Any]:
        """Return all of it in plain types."""
        return {"gates": self.gates, "findings": [asdict(each) for each in self]}
