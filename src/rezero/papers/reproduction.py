"""What a reproduction is: one command, its parts kept on the way, its results in one folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rezero.errors import UsageError
from rezero.papers.claims import Claim
from rezero.provenance import provenance
from rezero.surgery.beside import replacing

__all__ = ["Reproduction", "Scale", "ScaleName", "Work"]

ScaleName = Literal["laptop", "paper"]
"""Two cores within the hour or so, or the paper's own size on a GPU."""


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
class Scale:
    """How large a reproduction is.

    Attributes:
        minutes: What it takes: on two cores, or on one H200.
        seeds: Paired seeds, unless told.
        run: Does it; returns the numbers.
        whole: Whether this is the paper's own size.
    """

    minutes: int
    seeds: int
    run: Callable[[Work], dict[str, Any]]
    whole: bool = False


@dataclass(frozen=True)
class Reproduction:
    """Something that a paper says, and the command that tries it.

    Attributes:
        name: As on the command line.
        shows: What, in a line.
        source: The paper.
        version: Changes with what is done, so that parts of another version are not taken over.
        scales: Its sizes, by name.
        write: Makes pictures of the numbers, in a folder; returns their names, without endings, and what they show.
        lines: Says in lines what came out.
        claims: What the paper says of it.
    """

    name: str
    shows: str
    source: str
    version: int
    scales: Mapping[ScaleName, Scale]
    write: Callable[[Mapping[str, Any], Path], Mapping[str, str]]
    lines: Callable[[Mapping[str, Any]], list[str]]
    claims: tuple[Claim, ...]

    def at(self, scale: ScaleName) -> Scale:
        """Return one of its sizes.

        Args:
            scale: Which.

        Returns:
            The size.

        Raises:
            UsageError: If it has none of that name, or the machine cannot carry it.
        """
        if scale not in self.scales:
            raise UsageError(f"{self.name} has no scale {scale!r}, only {' and '.join(self.scales)}")
        if scale == "paper" and not torch.cuda.is_available():
            raise UsageError("--scale paper needs a CUDA device, torch finds none; --scale laptop takes two cores")
        return self.scales[scale]

    def kept(self, scale: ScaleName, studies: Path) -> Path:
        """Return the folder that its parts are kept in.

        Args:
            scale: Its size.
            studies: The folder of all.

        Returns:
            The folder.
        """
        return studies / f"{self.name}{'' if scale == 'laptop' else f'-{scale}'}-{self.version}"

    def results(self, scale: ScaleName, results: Path) -> Path:
        """Return the folder that its results go to.

        Args:
            scale: Its size.
            results: The folder of all.

        Returns:
            The folder.
        """
        return results / (self.name if scale == "laptop" else f"{self.name}-{scale}")

    def state(self, scale: ScaleName, studies: Path, results: Path) -> str:
        """Tell how far it has come.

        Args:
            scale: Its size.
            studies: Where parts of all are kept.
            results: Where results of all are.

        Returns:
            ``done`` and the day, ``begun`` or ``-``.
        """
        file = self.results(scale, results) / "summary.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["version"] == self.version:
                return f"done {found['date'][:10]}"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return "begun" if self.kept(scale, studies).is_dir() else "-"

    def reproduce(self, scale: ScaleName, work: Work) -> list[str]:
        """Do it, and write ``summary.json`` and the pictures.

        Args:
            scale: Its size.
            work: Where.

        Returns:
            What came out, in lines.

        Raises:
            UsageError: If data are missing, or a folder can't be used.
        """
        size = self.at(scale)
        for folder in (work.folder, work.output):
            if next(each for each in (folder, *folder.absolute().parents) if each.exists()).is_file():
                raise UsageError(f"cannot write into {folder}: it is a file, or lies in one")
        about = {"reproduces": self.source, "scale": scale, "version": self.version, "seeds": work.seeds}
        found = {**provenance(), **about, **size.run(work)}
        work.output.mkdir(parents=True, exist_ok=True)
        found["pictures"] = dict(self.write(found, work.output))
        (work.output / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return self.lines(found)
