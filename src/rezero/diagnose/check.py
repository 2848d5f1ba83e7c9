"""Is every gate alive? What a model, its optimizer and one batch tell before the training and during it."""

from typing import Any

from torch import nn

from rezero.diagnose.alive import in_a_pass
from rezero.diagnose.findings import Report, where
from rezero.diagnose.liveness import is_loss, objective_of
from rezero.diagnose.stepping import Stepping, in_the_scaler
from rezero.diagnose.stored import has_left_its_start, in_store
from rezero.diagnose.untouched import check_model
from rezero.errors import UsageError
from rezero.gate import gates

__all__ = ["check"]


def check(model: nn.Module, batch_or_loss_fn: Any, optimizer: Any = None, *, scaler: Any = None) -> Report:
    r"""Look for gates that can't learn, and for what makes others learn badly.

    The model runs forward and backward in training mode: as it is, and with closed gates a little open, which shows
    what lies behind them. One more pass, on shapes only, looks for activations after the additions. Model, optimizer,
    gradients and random generators are left as they were.

    Args:
        model: A model with gates: of this library's blocks, or converted.
        batch_or_loss_fn: The model's input (several as a tuple, by name as a dictionary), or a function of the model
            that returns its loss.
        optimizer: The torch optimizer that is to train it, or does; several as a list, as where one has the gates and
            another the matrices.
        scaler: The `torch.amp.GradScaler` of a training in float16.

    Returns:
        The findings; none for a healthy model.

    Raises:
        TypeError: If ``model`` is no module, ``optimizer`` no optimizer or ``scaler`` no gradient scaler.
        UsageError: If the model has no gates, can't be run, or the loss can't be differentiated.

    Example:
        >>> import torch, rezero
        >>> model = nn.Sequential(rezero.ReZero(nn.Linear(4, 4)), rezero.ReZero(nn.Linear(4, 4)))
        >>> report = check(model, torch.randn(2, 4), torch.optim.Adam(p for p in model.parameters() if p.ndim > 1))
        >>> for finding in report:
        ...     print(finding.name, finding.where)
        not in the optimizer ('0.gate', '1.gate')
    """
    check_model(model)
    model = getattr(model, "_orig_mod", model)  # of a compiled one, whose wrapper torch warns of
    owners = gates(model)
    if not owners:
        raise UsageError(
            "the model has no gates: put some in with rezero.convert_(model, example), rezero.ReZero, or "
            "rezero.Gate in blocks of your own: x + gate(f(x))"
        )
    found = [*in_store(model, owners), *in_the_scaler(scaler)]
    stepping = None if optimizer is None else Stepping(optimizer, owners)
    notes: list[str] = []
    if stepping is not None:
        found += stepping.findings()
        notes += stepping.notes()
    elif left := where(owners, has_left_its_start):
        notes.append(
            f"{len(left)} gates, {left[0]!r} first, are not at their start: whether steps moved them or another "
            "initialisation, only the optimizer tells"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        notes.append("no parameter of the model requires gradients, so that none could be followed")
    elif not any(parameter.is_meta for parameter in model.parameters()):
        objective, of_loss = objective_of(batch_or_loss_fn), is_loss(batch_or_loss_fn)
        found += in_a_pass(model, owners, objective, stepping, notes, of_loss=of_loss)
    order = sorted(found, key=lambda finding: finding.severity != "fault")
    return Report(tuple(order), len(owners), tuple(notes))
