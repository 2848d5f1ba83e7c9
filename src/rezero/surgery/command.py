"""What ``rezero inspect`` does."""

from json import dumps

from rezero.integrations.models import build_model
from rezero.surgery.find import find_residuals
from rezero.surgery.sites import counted
from rezero.waiting import busy

__all__ = ["inspect_named"]


def inspect_named(spec: str, *, json: bool) -> None:
    """Print the residual additions of a model, and what converting it would gain and lose.

    Args:
        spec: What `rezero.integrations.models.build_model` takes.
        json: Print JSON.
    """
    with busy(f"building {spec}"):
        model, args, kwargs = build_model(spec)
    with busy(f"following a forward pass of {spec}"):
        found = find_residuals(model, args, kwargs)
    total = sum(parameter.numel() for parameter in model.parameters())
    norms = [parameter for name in found.removable for parameter in model.get_submodule(name).parameters()]
    gained, lost = len(found.branches), sum(parameter.numel() for parameter in norms)
    if json:
        counts = {"parameters": total, "gained": gained, "lost_without_norms": lost}
        print(dumps({"model": spec, "counts": counts, **found.to_json()}, indent=1))
        return
    print(found.table(brief=True))
    print()
    additions, branches = counted(len(found), "residual addition"), counted(len(found.branches), "branch")
    print(f"{spec}: {additions} with {branches}, {counted(total, 'parameter')}")
    removed = f"{lost:,} lost with {counted(len(found.removable), 'norm')}" if found.removable else "no norm to remove"
    print(f"{counted(gained, 'parameter')} gained by gates; {removed}")
