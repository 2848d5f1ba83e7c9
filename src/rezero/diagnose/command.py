"""What ``rezero diagnose`` does."""

from pathlib import Path

import torch

from rezero.diagnose.diagnosis import diagnose
from rezero.errors import TooManyError, UsageError
from rezero.integrations.models import build_model
from rezero.provenance import provenance
from rezero.waiting import busy

__all__ = ["diagnose_named"]


def diagnose_named(spec: str, folder: Path, *, singular_values: str, seed: int, strict: bool) -> int:
    """Check the gates of a model, write what was found into a folder, and print it.

    Args:
        spec: What `rezero.integrations.models.build_model` takes.
        folder: Where files go.
        singular_values: How many of the largest are computed, or all.
        seed: Of the initial weights.
        strict: Whether a fault makes the exit code 1.

    Returns:
        Exit code.

    Raises:
        UsageError: If the folder is a file, or there are not so many singular values.
    """
    if next(each for each in (folder, *folder.parents) if each.exists()).is_file():
        raise UsageError(f"cannot write into {folder}: it is a file, or lies in one")
    torch.manual_seed(seed)
    with busy(f"building {spec}"):
        model, args, kwargs = build_model(spec, "cpu")
    count = None if singular_values == "all" else int(singular_values)
    try:
        found = diagnose(model, args, kwargs, singular_values=count, busy=busy)
    except TooManyError as error:
        m, n = error.shape
        raise UsageError(
            f"expected --singular-values up to {error.most:,}, or all of up to 2,048: the Jacobian from the first "
            f"block to the last is {m:,} x {n:,}, got {singular_values}"
        ) from error
    files = found.write(folder, {"model": spec, **provenance()})
    if found.converted and found.alphas is not None:
        print(f"{spec} has no gates of its own: {len(found.alphas.names)} were put in")
    if found.restarted:
        print(f"{found.restarted} parameters ended a branch with zeros, as a gate does now, and start as usual instead")
    print(found.report)
    for name, signals in found.signals.items():
        print(f"\n{name}: {signals}")
    for name, spectrum in found.spectra.items():
        print(f"\n{name}: {spectrum}")
    print(f"\n{len(files)} files in {folder}")
    return int(strict and any(each.severity == "fault" for each in found.report))
