"""Alphas in TensorBoard."""

from torch import nn

from rezero.diagnose import AlphaRecorder
from rezero.integrations.extras import needs
from rezero.integrations.logged import HEAT_MAP, HISTOGRAM, alpha_scalars, alphas_of, finite_alphas, heat_map_png

with needs("TensorBoard", extra="tensorboard"):
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["log_alphas"]


def log_alphas(
    writer: SummaryWriter, source: AlphaRecorder | nn.Module, step: int, *, max_gates: int = 32, heat_map: bool = False
) -> None:
    """Write alphas for TensorBoard.

    Scalars in two sections: ``rezero`` holds the smallest, mean and largest ``|alpha|`` of all gates, ``rezero_alpha``
    the gates one by one. The histogram ``rezero/alpha`` shows how all gates are spread.

    Args:
        writer: Where to.
        source: A recorder, whose last record is logged, so call this where it has just made one; or the model, whose
            gates are read now.
        step: The optimizer step that the charts show it at.
        max_gates: How many gates are logged one by one: of a deeper model, so many at even distances over the depth.
        heat_map: Whether to add the image ``rezero/alpha_over_depth`` of all records of a recorder. It takes about a
            second, so ask for it at the end of an epoch or of the training.

    Raises:
        UsageError: If the model has no gates or the recorder no record, or a heat map of a model is asked for.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> import rezero
        >>> recorder = AlphaRecorder(nn.Sequential(rezero.ReZero(nn.Linear(4, 4))), every=1)
        >>> recorder.step()
        >>> with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        ...     log_alphas(writer, recorder, step=1)
    """
    alphas = alphas_of(source)
    for name, value in alpha_scalars(alphas, max_gates=max_gates).items():
        writer.add_scalar(name, value, step)
    if finite := finite_alphas(alphas):
        writer.add_histogram(HISTOGRAM, np.array(finite), step)
    if heat_map:
        picture = Image.open(heat_map_png(source)).convert("RGB")
        writer.add_image(HEAT_MAP, np.asarray(picture), step, dataformats="HWC")
