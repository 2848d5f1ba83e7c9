"""What a reproduction is: one command, its parts kept on the way, its results in one folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rezero.errors import UsageError
from rezero.provenance import provenance
from rezero.surgery.beside import replacing

__all__ = ["Reproduction", "Work"]


@dataclass(frozen=True)
class Work:
    """Where a reproduction runs: what was asked for, and what is done already.

    Attributes:
        folder: Where parts are kept, so that an interrupted run goes on.
        output: Where the results go.
        seeds: Paired seeds of the comparison.
    """

    folder: Path
    output: Path
    seeds: int

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a part of the work, done now or before.

        Args:
            name: Of the part.
            make: Does it; returns what JSON can hold.

        Returns:
            What it returned.

        Raises:
            UsageError: If what is kept of it is damaged.
        """
        file = self.folder / f"{name}.json"
        if file.exists():
            try:
                return json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UsageError(f"{file} is damaged: {error}; remove it, and it is made again") from error
        made = make()
        with replacing(self.folder, (file.name,), what=f"the part {name!r}") as beside:
            (beside / file.name).write_text(json.dumps(made), encoding="utf-8")
        return made

    def weights(self, name: str, module: nn.Module, train: Callable[[], object]) -> None:
        """Train a module, now or before.

        Args:
            name: Of the part.
            module: Gets the weights.
            train: Trains it.

        Raises:
            UsageError: If what is kept of it is damaged.
        """
        file = self.folder / f"{name}.safetensors"
        if file.exists():
            try:
                module.load_state_dict(load_file(file))
            except (SafetensorError, RuntimeError) as error:
                raise UsageError(f"{file} is damaged: {error}; remove it, and it is made again") from error
            return
        train()
        with replacing(self.folder, (file.name,), what="what was trained") as beside:
            save_file(module.state_dict(), beside / file.name)


@dataclass(frozen=True)
class Reproduction:
    """Something that a paper says, and the command that tries it.

    Attributes:
        name: As on the command line.
        shows: What, in a line.
        source: The paper.
        minutes: What it takes on two cores.
        seeds: Paired seeds, unless told.
        version: Changes with what is done, so that parts of another version are not taken over.
        run: Does it; returns the numbers.
        write: Makes pictures of the numbers, in a folder.
        lines: Says in lines what came out.
    """

    name: str
    shows: str
    source: str
    minutes: int
    seeds: int
    version: int
    run: Callable[[Work], dict[str, Any]]
    write: Callable[[Mapping[str, Any], Path], None]
    lines: Callable[[Mapping[str, Any]], list[str]]

    def reproduce(self, work: Work) -> list[str]:
        """Do it, and write ``summary.json`` and the pictures.

        Args:
            work: Where.

        Returns:
            What came out, in lines.

        Raises:
            UsageError: If data are missing, or a folder can't be used.
        """
        for folder in (work.folder, work.output):
            if next(each for each in (folder, *folder.absolute().parents) if each.exists()).is_file():
                raise UsageError(f"cannot write into {folder}: it is a file, or lies in one")
        found = {**provenance(), "reproduces": self.source, "seeds": work.seeds, **self.run(work)}
        work.output.mkdir(parents=True, exist_ok=True)
        (work.output / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        self.write(found, work.output)
        return self.lines(found)
