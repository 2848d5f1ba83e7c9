"""Alphas in Weights & Biases."""

from torch import nn

from rezero.diagnose import AlphaRecorder
from rezero.integrations.extras import needs
from rezero.integrations.logged import HEAT_MAP, HISTOGRAM, alpha_scalars, alphas_of, finite_alphas, heat_map_png

with needs("Weights & Biases", extra="wandb"):
    import wandb
    from PIL import Image

__all__ = ["log_alphas"]


def log_alphas(
    run: wandb.Run, source: AlphaRecorder | nn.Module, step: int, *, max_gates: int = 32, heat_map: bool = False
) -> None:
    """Log alphas to a run of Weights & Biases, online or offline.

    Scalars in two sections: ``rezero`` holds the smallest, mean and largest ``|alpha|`` of all gates, ``rezero_alpha``
    the gates one by one. The histogram ``rezero/alpha`` shows how all gates are spread.

    Args:
        run: What ``wandb.init`` returned.
        source: A recorder, whose last record is logged, so call this where it has just made one; or the model, whose
            gates are read now.
        step: The optimizer step. Weights & Biases wants steps that never decrease: pass the same ones to ``run.log``
            for the loss.
        max_gates: How many gates are logged one by one: of a deeper model, so many at even distances over the depth.
        heat_map: Whether to add the image ``rezero/alpha_over_depth`` of all records of a recorder. It takes about a
            second, so ask for it at the end of an epoch or of the training.

    Raises:
        UsageError: If the model has no gates or the recorder no record, or a heat map of a model is asked for.
    """
    alphas = alphas_of(source)
    logged: dict[str, object] = {**alpha_scalars(alphas, max_gates=max_gates)}
    if finite := finite_alphas(alphas):
        logged[HISTOGRAM] = wandb.Histogram(finite)
    if heat_map:
        logged[HEAT_MAP] = wandb.Image(Image.open(heat_map_png(source)))
    run.log(logged, step=step)
