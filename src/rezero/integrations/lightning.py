"""Alphas during a training by Lightning, and such a training as a trial of the lab."""

from pathlib import Path
from typing import Any

from rezero.diagnose import AlphaRecorder
from rezero.integrations.extras import needs
from rezero.integrations.logged import alpha_scalars, check_max_gates
from rezero.lab import script

with needs("Lightning", extra="lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

__all__ = ["AlphaCallback", "LabCallback"]


class AlphaCallback(Callback):
    """Records alphas during ``trainer.fit`` and logs them to the trainer's loggers.

    The loggers get ``rezero/min_abs_alpha``, ``rezero/mean_abs_alpha`` and ``rezero/max_abs_alpha`` of all gates, and
    ``rezero_alpha/<gate>``, at the steps that are recorded, whatever ``log_every_n_steps`` says.

    Steps are optimizer steps (``trainer.global_step``), whatever the accumulation of gradients. Of several processes
    the first records.

    Args:
        path: File that keeps the records, and goes on where a training is resumed; None keeps them in memory.
        every: Record every so many optimizer steps.
        max_gates: How many gates are logged one by one: of a deeper model, so many at even distances over the depth.

    Attributes:
        recorder: The `rezero.diagnose.AlphaRecorder` of the training, with its ``history``; None before it began, and
            in all processes but the first.

    Raises:
        ValueError: If ``max_gates`` is negative, or ``every`` is below 1; the latter when the training begins.
        UsageError: If the module has no gates; when the training begins.

    Example:
        >>> trainer = Trainer(callbacks=[AlphaCallback("alphas.jsonl")])  # doctest: +SKIP
    """

    def __init__(self, path: str | Path | None = None, *, every: int = 10, max_gates: int = 32) -> None:
        check_max_gates(max_gates)
        self.path = path
        self.every = every
        self.max_gates = max_gates
        self.recorder: AlphaRecorder | None = None
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the gates, in every process, and record how they start."""
        self._seen = trainer.global_step
        first = trainer.is_global_zero
        recorder = AlphaRecorder(pl_module, self.path if first else None, every=self.every)
        self.recorder = recorder if first else None
        recorder.step(self._seen)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record and log, if this batch completed an optimizer step."""
        step = trainer.global_step
        if self.recorder is None or step == self._seen:
            return
        self._seen = step
        self.recorder.step(step)
        if step % self.every == 0:
            scalars = alpha_scalars(self.recorder.latest, max_gates=self.max_gates)
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the file."""
        if self.recorder is not None:
            self.recorder.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the file."""
        self.on_train_end(trainer, pl_module)


class LabCallback(Callback):
    """Tells the lab what the module logs, after every validation and every epoch.

    The training starts with the seed of this run. In a script that no lab has started it does nothing. The module's own
    weights are drawn before: seed them with ``seed_everything(lab.seed(0))``, and the rate is ``lab.lr(1e-3)``.

    Example:
        >>> trainer = Trainer(callbacks=[LabCallback()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._told: tuple[int, set[str]] = (-1, set())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed the order of the data and dropout."""
        if script.compared():
            seed_everything(script.seed(), verbose=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass metrics on, unless this only tries out whether validation works."""
        if trainer.training and not trainer.sanity_checking:
            self._tell(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on what the epoch came to."""
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        step, told = trainer.global_step, self._told[1] if self._told[0] == trainer.global_step else set()
        fresh = {name: value for name, value in trainer.callback_metrics.items() if name not in told}
        self._told = step, told | fresh.keys()
        if fresh:
            script.log(step, **fresh)
