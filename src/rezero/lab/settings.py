"""Everything that decides a study's numbers."""

import math
from dataclasses import dataclass

from rezero.data.batches import Data
from rezero.errors import UsageError

__all__ = ["Question", "Settings", "check_parts", "total_steps"]

LARGEST = 1_000_000
TUNED = ("lr", "alpha-lr", "weight-decay", "warmup")
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
    "seeds",
    "tune_seeds",
    "threads",
    "processes",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a study's numbers; two studies with equal settings are the same study.

    Attributes:
        arms: Residual formulas that are compared, each with what it has of its own, in the order of the report.
        depth: Number of residual blocks; of layers in the networks that are named by their layers.
        width: Width of the blocks (features, channels of the first stage).
        heads: Attention heads; None for a network without attention.
        context: Length of the text windows (bytes); None for images.
        embedding_std: Standard deviation of a Transformer's embeddings at the start; None for the arm's own.
        data: Text file or folder that is trained on; None for the task's own data.
        epochs: Passes over the training set; None if ``steps`` counts.
        steps: Optimizer steps; None if ``epochs`` counts.
        batch_size: Examples a step, over all processes and accumulated parts.
        accumulate: Parts that a batch is computed in, one after another, to save memory.
        lr: Learning rate of every parameter; the middle of the table of rates where they are tuned.
        alpha_lr: Learning rate of the gates; None for ``lr``, as in the authors' code.
        weight_decay: Weight decay of parameters with two or more axes; None for that of ``optimizer``.
        optimizer: A class of torch.optim with its options, such as ``SGD momentum=0.9``.
        schedule: A class of torch.optim.lr_scheduler with its options, or ``constant``.
        warmup: Steps over which every rate rises linearly from near zero.
        clip: Largest norm of the gradient; None leaves it as it is.
        precision: ``float32``, or ``bf16`` for bfloat16 autocast.
        measure_every: Steps between measurements; None measures after every epoch.
        seeds: Number of paired seeds, from 0.
        tune: Trials that every arm gets to choose its rate; 0 runs all at ``lr``.
        tune_seeds: Seeds that each of these is run on; the comparison uses others.
        tune_over: What is chosen: lr, alpha-lr, weight-decay or warmup.
        metric: The metric that decides; None for the task's own.
        device: A torch device.
        threads: CPU threads of each process; a matrix product differs in its last bits between thread counts.
        processes: Processes that share each batch.
    """

    arms: tuple[str, ...]
    depth: int
    width: int
    heads: int | None = None
    context: int | None = None
    embedding_std: float | None = None
    data: str | None = None
    epochs: int | None
    steps: int | None
    batch_size: int
    accumulate: int = 1
    lr: float
    alpha_lr: float | None = None
    weight_decay: float | None = None
    optimizer: str
    schedule: str = "constant"
    warmup: int = 0
    clip: float | None = None
    precision: str = "float32"
    measure_every: int | None = None
    seeds: int
    tune: int = 0
    tune_seeds: int = 1
    tune_over: str = "lr"
    metric: str | None = None
    device: str = "cpu"
    threads: int
    processes: int = 1

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST:
                bound = "1 or more" if value < 1 else f"at most {LARGEST:,}"
                raise UsageError(f"{name.replace('_', '-')} must be a whole number, {bound}: got {value}")
        if not 0 <= self.warmup <= LARGEST:
            raise UsageError(f"warmup must be a whole number of steps, 0 or more: got {self.warmup}")
        if self.tune_over not in TUNED:
            raise UsageError(f"tune-over must be {', '.join(TUNED)}: got {self.tune_over!r}")
        if self.tune == 1 or not 0 <= self.tune <= LARGEST:
            raise UsageError(
                f"tune must be off, or the number of trials that every arm gets, 2 or more: got {self.tune}"
            )
        if self.weight_decay is not None and not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"weight-decay must be a finite number, 0 or more: got {self.weight_decay}")
        if (self.epochs is None) == (self.steps is None):
            raise UsageError("give the length of training once, as epochs or as steps")
        for name in ("lr", "alpha_lr", "clip", "embedding_std"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name.replace('_', '-')} must be a finite number above 0: got {value}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be {' or '.join(PRECISIONS)}: got {self.precision!r}")
        if self.heads is not None and self.width % self.heads:
            raise UsageError(f"width must be a multiple of heads: got {self.width} and {self.heads}")
        if self.batch_size < (parts := self.processes * self.accumulate):
            raise UsageError(
                f"batch-size must be at least processes times accumulate, {parts}, to leave each part an example: "
                f"got {self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a study's numbers, of which it changes none: the same study can be asked something else.

    Attributes:
        baseline: The arm that the others are held against; None for the task's standard, or the first without it.
        target: Value of the deciding metric that speed is measured by, as it is recorded; None for the worst final
            value of the two arms that are compared, which both reach on every seed.
        resolve: Difference of the final metric, as it is recorded, that the reader wants to be able to see; None for
            none in particular.
    """

    baseline: str | None = None
    target: float | None = None
    resolve: float | None = None

    def __post_init__(self) -> None:
        if self.target is not None and not math.isfinite(self.target):
            raise UsageError(f"target must be a finite number: got {self.target}")
        if self.resolve is not None and not (math.isfinite(self.resolve) and self.resolve > 0):
            raise UsageError(f"resolve must be a finite number above 0: got {self.resolve}")

    def held_against(self, settings: Settings, standard: str = "") -> str:
        """Return the arm that the others are held against.

        Args:
            settings: The study's settings.
            standard: What most people would use.

        Returns:
            The arm.

        Raises:
            UsageError: If the study has no such arm.
        """
        if self.baseline is not None and self.baseline not in settings.arms:
            raise UsageError(f"baseline must be an arm of the study, {', '.join(settings.arms)}: got {self.baseline!r}")
        return self.baseline or (standard if standard in settings.arms else settings.arms[0])


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
