"""What a reproduction is: one command, its parts kept on the way, its results in one folder."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from rezero.data.sources import find_source, locate
from rezero.errors import MissingDataError, UsageError
from rezero.papers.claims import Claim
from rezero.provenance import provenance
from rezero.surgery.beside import replacing
from rezero.waiting import busy

__all__ = ["MACHINES", "Reproduction", "Scale", "ScaleName", "Work"]

ScaleName = Literal["laptop", "paper"]
"""Two cores within the hour or so, or the paper's own size on a GPU."""
MACHINES: Mapping[ScaleName, str] = {"laptop": "two cores", "paper": "one H200"}
"""What the time of each scale is told for."""
_COMMITS, _NUMBERS = "commits.json", "numbers.json"


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

    def of(self, *decisive: Any) -> "Work":
        """Return the same where nothing is kept of another plan or other data.

        Args:
            *decisive: What the parts depend on; its ``repr`` tells it apart.

        Returns:
            The work, with a folder of its own.
        """
        return replace(self, folder=self.folder / sha256(repr(decisive).encode()).hexdigest()[:8])

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
            return json.loads(_intact(file))
        made = make()
        self._keep(file.name, json.dumps(made, allow_nan=False).encode())
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
        if (kept := self.tensors(name)) is not None:
            module.load_state_dict(kept)
            return
        train()
        self.keep_tensors(name, module.state_dict())

    def tensors(self, name: str) -> dict[str, Tensor] | None:
        """Return tensors that are kept, by their names; None if there are none.

        Args:
            name: Of the part.

        Returns:
            The tensors, on the CPU.

        Raises:
            UsageError: If what is kept of it is damaged.
        """
        file = self.folder / f"{name}.safetensors"
        return load(_intact(file)) if file.exists() else None

    def keep_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors, in the place of those that were kept before.

        Args:
            name: Of the part.
            tensors: By their names.
        """
        self._keep(f"{name}.safetensors", save({key: value.contiguous() for key, value in tensors.items()}))

    @contextmanager
    def noting(self, new: str) -> Iterator[list[str]]:
        """Note which code does the work, as parts that are done may be of other code.

        Args:
            new: The commit that goes on with it; empty if it is of none.

        Yields:
            Every commit that has worked on it, in order.

        Raises:
            UsageError: If what is kept of them is damaged.
        """
        file = self.folder / _COMMITS
        known: list[str] = json.loads(_intact(file)) if file.exists() else []
        if new and new not in known:
            self._keep(file.name, json.dumps(known := [*known, new]).encode())
        try:
            yield known
        finally:
            if [each.name for each in self.folder.iterdir()] == [file.name]:  # nothing was done
                file.unlink()

    def seen(self, numbers: Mapping[str, Any], now: str) -> str | None:
        """Tell when the same numbers were there before, and note them otherwise.

        Args:
            numbers: What the work came to.
            now: The date.

        Returns:
            The date of the run that measured them; None if it is this one.

        Raises:
            UsageError: If what is kept of it is damaged.
        """
        file, digest = self.folder / _NUMBERS, sha256(json.dumps(numbers).encode()).hexdigest()
        if file.exists() and (known := json.loads(_intact(file)))["digest"] == digest:
            return str(known["date"])
        self._keep(file.name, json.dumps({"digest": digest, "date": now}).encode())
        return None

    def _keep(self, name: str, content: bytes) -> None:
        with replacing(self.folder, (name,), what=f"the part {name!r}") as beside:
            (beside / name).write_bytes(content + b"\n" + sha256(content).hexdigest().encode())


def _intact(file: Path) -> bytes:
    """Return what a file holds before the checksum that ends it; it must be what was written."""
    if not file.is_file():
        raise UsageError(f"{file} must be a file, and is none: move it away, and it is made again")
    content, _, told = file.read_bytes().rpartition(b"\n")
    if told.decode("ascii", "replace") != sha256(content).hexdigest():
        raise UsageError(f"{file} is damaged: its checksum is another; remove it, and it is made again")
    return content


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is.

    Attributes:
        minutes: What it takes, on the machine of the scale.
        seeds: Paired seeds, unless told.
        run: Does it; returns the numbers.
        whole: Whether this is the paper's own size.
        about: What is smaller than in the paper, where the commands of the studies don't tell.
    """

    minutes: int
    seeds: int
    run: Callable[[Work], dict[str, Any]]
    whole: bool = False
    about: str = ""


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
        repeats: What is repeated, if not seeds.
        data: Names of the data sets that it cannot do without.
    """

    name: str
    shows: str
    source: str
    version: int
    scales: Mapping[ScaleName, Scale]
    write: Callable[[Mapping[str, Any], Path], Mapping[str, str]]
    lines: Callable[[Mapping[str, Any]], list[str]]
    claims: tuple[Claim, ...]
    repeats: str = "seeds"
    data: tuple[str, ...] = ()

    def check(self, scale: ScaleName, work: Work) -> None:
        """Refuse what cannot be done, before anything is.

        Args:
            scale: Its size.
            work: Where.

        Raises:
            UsageError: If it has none of that name, the machine cannot carry it, or a folder can't be used.
            MissingDataError: If data are missing.
        """
        self.at(scale)
        if scale == "paper" and not torch.cuda.is_available():
            raise UsageError("--scale paper needs a CUDA device, torch finds none; --scale laptop takes two cores")
        for name in self.data:
            try:
                locate(find_source(name))
            except MissingDataError as error:
                raise MissingDataError(f"{self.name} needs {name}: {error}") from error
        if (work.output / "summary.json").is_dir():
            raise UsageError(f"cannot write into {work.output}: its summary.json is a folder")
        with _made_first(work.folder), _made_first(work.output):
            pass

    def at(self, scale: ScaleName) -> Scale:
        """Return one of its sizes.

        Args:
            scale: Which.

        Returns:
            The size.

        Raises:
            UsageError: If it has none of that name.
        """
        if scale not in self.scales:
            raise UsageError(f"{self.name} has no scale {scale!r}, only {' and '.join(self.scales)}")
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
            ``done`` and the day, ``begun``, both where it was begun again since, or ``-``; ``results of`` and the day
            where somebody else did it.
        """
        file, kept = self.results(scale, results) / "summary.json", self.kept(scale, studies)
        parts = [each.stat().st_mtime for each in kept.rglob("*") if each.is_file()]
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["version"] == self.version:
                again = ", begun again" if any(time > file.stat().st_mtime for time in parts) else ""
                return f"{'done' if parts else 'results of'} {found['date'][:10]}{again}"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return "begun" if parts else "-"

    def reproduce(self, scale: ScaleName, work: Work) -> dict[str, Any]:
        """Do it, and write ``summary.json`` and the pictures.

        Args:
            scale: Its size.
            work: Where.

        Returns:
            The numbers, as they are in ``summary.json``.

        Raises:
            UsageError: If data are missing, or a folder can't be used.
        """
        self.check(scale, work)
        with _made_first(work.folder), _made_first(work.output), work.noting(provenance().get("commit", "")) as commits:
            return self._found(scale, work, commits)

    def _found(self, scale: ScaleName, work: Work, commits: list[str]) -> dict[str, Any]:
        about = {"reproduces": self.source, "scale": scale, "version": self.version, "seeds": work.seeds}
        numbers = self.at(scale).run(work)
        found = {**provenance(), **about, "commits": commits, **numbers}
        if (before := work.seen(numbers, found["date"])) is not None:
            found["date"] = before
            print(
                f"{self.name} was done before: these are the numbers of {before}; to do it anew remove {work.folder}",
                file=sys.stderr,
            )
        with busy(f"drawing {self.name}"), TemporaryDirectory() as folder:
            drawn = Path(folder)
            found["pictures"] = dict(self.write(found, drawn))
            (drawn / "summary.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            pictures = sorted(each.name for each in drawn.iterdir() if each.name != "summary.json")
            with replacing(work.output, names := (*pictures, "summary.json"), what="the results") as beside:
                for name in names:
                    copy(drawn / name, beside)
        return found


@contextmanager
def _made_first(folder: Path) -> Iterator[None]:
    """Make a folder before long work, to learn that it can be made; one that stays empty goes again.

    Args:
        folder: The folder.

    Yields:
        Nothing.

    Raises:
        UsageError: If nothing can be written there.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".try-"):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"cannot write into {folder}: it is a file, or lies in one") from error
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # of the first that is not empty
            for each in new:
                each.rmdir()
