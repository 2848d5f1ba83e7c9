"""Alphas in every tracker of Accelerate."""

from torch import nn

from rezero.diagnose import AlphaRecorder
from rezero.integrations.extras import needs
from rezero.integrations.logged import alpha_scalars, alphas_of

with needs("Accelerate", extra="lab"):
    from accelerate import Accelerator

__all__ = ["log_alphas"]


def log_alphas(accelerator: Accelerator, source: AlphaRecorder | nn.Module, step: int, *, max_gates: int = 32) -> None:
    """Log alphas to the trackers that ``accelerator.init_trackers`` started.

    Two sections of scalars: ``rezero`` holds the smallest, mean and largest ``|alpha|`` of all gates, ``rezero_alpha``
    the gates one by one. Histograms and images are no part of what every tracker of Accelerate takes.

    Args:
        accelerator: The training's. Only its main process logs, so all may call this.
        source: A recorder, whose last record is logged, so call this where it has just made one; or the model,
            prepared, compiled or plain, whose gates are read now.
        step: The optimizer step.
        max_gates: How many gates are logged one by one: of a deeper model, so many at even distances over the depth.

    Raises:
        UsageError: If the model has no gates or the recorder no record.
    """
    if not accelerator.is_main_process:
        return
    if isinstance(source, nn.Module):
        source = accelerator.unwrap_model(source, keep_torch_compile=False)
    accelerator.log(alpha_scalars(alphas_of(source), max_gates=max_gates), step=step)
