"""Everything that decides a study's numbers."""

import math
from dataclasses import dataclass

from rezero.data.batches import Data
from rezero.errors import UsageError
from rezero.lab.design import LARGEST, Design, check_count

__all__ = ["Settings", "check_parts", "total_steps"]

PRECISIONS = ("float32", "bf16")
_COUNTS = (
    "depth",
    "width",
    "heads",
    "context",
    "epochs",
    "steps",
    "batch_size",
    "accumulate",
    "measure_every",
    "threads",
    "processes",
)


@dataclass(frozen=True, kw_only=True)
class Settings(Design):
    """Everything that decides a study's numbers; two studies with equal settings are the same study.

    Attributes:
        depth: Number of residual blocks; of layers in the networks that are named by their layers.
        width: Width of the blocks (features, channels of the first stage).
        heads: Attention heads; None for a network without attention.
        context: Length of the text windows (bytes); None for images.
        embedding_std: Standard deviation of a Transformer's embeddings at the start; None for the arm's own.
        alpha: Start of every gate; None for the arm's own, which is zero.
        data: Text file or folder that is trained on; None for the task's own data.
        epochs: Passes over the training set; None if ``steps`` counts.
        steps: Optimizer steps; None if ``epochs`` counts.
        batch_size: Examples a step, over all processes and accumulated parts.
        accumulate: Parts that a batch is computed in, one after another, to save memory.
        alpha_lr: Learning rate of the gates; None for ``lr``, as in the authors' code.
        weight_decay: Weight decay of parameters with two or more axes; None for that of ``optimizer``.
        optimizer: A class of torch.optim with its options, such as ``SGD momentum=0.9``.
        schedule: A class of torch.optim.lr_scheduler with its options, or ``constant``.
        warmup: Steps over which every rate rises linearly from near zero.
        clip: Largest norm of the gradient; None leaves it as it is.
        precision: ``float32``, or ``bf16`` for bfloat16 autocast.
        measure_every: Steps between measurements; None measures after every epoch.
        device: A torch device.
        threads: CPU threads of each process; a matrix product differs in its last bits between thread counts.
        processes: Processes that share each batch.
    """

    depth: int
    width: int
    heads: int | None = None
    context: int | None = None
    embedding_std: float | None = None
    alpha: float | None = None
    data: str | None = None
    epochs: int | None
    steps: int | None
    batch_size: int
    accumulate: int = 1
    alpha_lr: float | None = None
    weight_decay: float | None = None
    optimizer: str
    schedule: str = "constant"
    warmup: int = 0
    clip: float | None = None
    precision: str = "float32"
    measure_every: int | None = None
    device: str = "cpu"
    threads: int
    processes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _COUNTS:
            check_count(name.replace("_", "-"), getattr(self, name))
        if not 0 <= self.warmup <= LARGEST:
            raise UsageError(f"warmup must be a whole number of steps, 0 or more: got {self.warmup}")
        if self.weight_decay is not None and not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"weight-decay must be a finite number, 0 or more: got {self.weight_decay}")
        if (self.epochs is None) == (self.steps is None):
            raise UsageError("give the length of training once, as epochs or as steps")
        for name in ("alpha_lr", "clip", "embedding_std"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name.replace('_', '-')} must be a finite number above 0: got {value}")
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise UsageError(f"alpha must be a finite number: got {self.alpha}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be {' or '.join(PRECISIONS)}: got {self.precision!r}")
        if self.heads is not None and self.width % self.heads:
            raise UsageError(f"width must be a multiple of heads: got {self.width} and {self.heads}")
        if self.batch_size < (parts := self.processes * self.accumulate):
            raise UsageError(
                f"batch-size must be at least processes times accumulate, {parts}, to leave each part an example: "
                f"got {self.batch_size}"
            )

    def middle(self, name: str) -> float:
        """Return the value of a setting around which what is tried out lies."""
        match name:
            case "alpha-lr":
                return self.alpha_lr or self.lr
            case "weight-decay":
                return self.weight_decay or 0.01
            case "warmup":
                return self.warmup or 100
        return self.lr


def total_steps(settings: Settings, data: Data) -> int:
    """Return the number of optimizer steps of a trial on this data set.

    Args:
        settings: Epochs or steps, and the batch size.
        data: The data set.

    Returns:
        The number.
    """
    return settings.steps or (settings.epochs or 0) * data.steps_per_epoch(settings.batch_size)


def check_parts(settings: Settings, data: Data) -> None:
    """Refuse batches that cannot be shared between processes and accumulated parts.

    Args:
        settings: Batch size, processes and accumulated parts.
        data: The data set.

    Raises:
        UsageError: If the run comes to a batch of fewer examples than parts; the last one of an epoch may be small.
    """
    parts = settings.processes * settings.accumulate
    reached = min(total_steps(settings, data), data.steps_per_epoch(settings.batch_size))
    smallest = data.batch_len(reached - 1, settings.batch_size)
    if smallest < parts:
        raise UsageError(
            f"the last batch of an epoch has {smallest} examples for {parts} parts (processes times accumulate): "
            "choose another batch-size"
        )
