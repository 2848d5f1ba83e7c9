"""Alphas during a training by the Trainer of transformers, and such a training as a trial of the lab."""

from pathlib import Path
from typing import Any

from rezero.diagnose import AlphaRecorder
from rezero.integrations.extras import needs
from rezero.integrations.logged import alpha_scalars, check_max_gates
from rezero.lab import script

with needs("the Trainer of transformers", extra="transformers"):
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

__all__ = ["AlphaCallback", "LabCallback"]

_OF_TIME = ("_runtime", "_per_second", "_flos")  # what the Trainer logs beside the metrics


class AlphaCallback(TrainerCallback):
    """Records alphas during ``trainer.train()`` and logs them through the Trainer.

    So they are in ``trainer.state.log_history`` and reach whatever ``report_to`` names: ``rezero/min_abs_alpha``,
    ``rezero/mean_abs_alpha`` and ``rezero/max_abs_alpha`` of all gates, and single gates as ``rezero_alpha/<gate>`` on
    demand. Trackers put ``train/`` in front, as the Trainer does with all names.

    Steps are optimizer steps, whatever the accumulation of gradients. Of several processes the first records.

    Args:
        trainer: The Trainer that trains; the Trainer does not tell its callbacks who it is.
        path: File that keeps the records, and goes on where a training is resumed; None keeps them in memory.
        every: Record every so many optimizer steps.
        max_gates: How many gates are logged one by one: of a deeper model, so many at even distances over the depth.
            By default none is, because the Trainer prints all that it logs; the recorder has them all.

    Attributes:
        recorder: The `rezero.diagnose.AlphaRecorder` of the training, with its ``history``; None before it began, and
            in all processes but the first.

    Raises:
        TypeError: If ``trainer`` is no Trainer.
        ValueError: If ``max_gates`` is negative, or ``every`` is below 1; the latter when the training begins.
        UsageError: If the model has no gates; when the training begins.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data)  # doctest: +SKIP
        >>> trainer.add_callback(AlphaCallback(trainer, "alphas.jsonl"))  # doctest: +SKIP
    """

    def __init__(
        self, trainer: Trainer, path: str | Path | None = None, *, every: int = 10, max_gates: int = 0
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"trainer must be a transformers.Trainer: got {type(trainer).__name__}; make it first, then call "
                "trainer.add_callback(AlphaCallback(trainer))"
            )
        check_max_gates(max_gates)
        self.trainer = trainer
        self.path = path
        self.every = every
        self.max_gates = max_gates
        self.recorder: AlphaRecorder | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look for the gates, in every process, and record how they start."""
        self.on_train_end(args, state, control)  # a training before this one was cut off and has the file
        first = state.is_world_process_zero
        recorder = AlphaRecorder(kwargs["model"], self.path if first else None, every=self.every)
        self.recorder = recorder if first else None
        recorder.step(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record and log after an optimizer step."""
        if self.recorder is None:
            return
        self.recorder.step(state.global_step)
        if state.global_step % self.every == 0:
            should_log = control.should_log  # the Trainer is about to log its loss, and a log clears this
            self.trainer.log(alpha_scalars(self.recorder.latest, max_gates=self.max_gates))
            control.should_log = should_log

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the file."""
        if self.recorder is not None:
            self.recorder.close()


class LabCallback(TrainerCallback):
    """Tells the lab what the Trainer logs: ``train_loss`` every ``logging_steps``, and the metrics of evaluations.

    The training starts with the seed of this run. In a script that no lab has started it does nothing. The model's own
    weights are drawn before: seed them with ``set_seed(lab.seed(42))``, and the rate is ``lab.lr(5e-5)``.

    Example:
        >>> trainer.add_callback(LabCallback())  # doctest: +SKIP
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seed the order of the data and dropout."""
        if script.compared():
            set_seed(script.seed())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass metrics on; what the Trainer logs at the end is an average over all that was trained."""
        renamed = {"train_loss" if name == "loss" else name: value for name, value in (logs or {}).items()}
        if "loss" not in (logs or {}):
            renamed.pop("train_loss", None)
        told = {
            name: value
            for name, value in renamed.items()
            if name == "train_loss" or (name.startswith("eval_") and not name.endswith(_OF_TIME))
        }
        if told:
            script.log(state.global_step, **told)
