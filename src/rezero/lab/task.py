"""What a kind of study is: where its data come from, how a model is built from an arm, and its settings unless told."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from rezero.data.batches import Data
from rezero.errors import UsageError
from rezero.gate import gates
from rezero.lab.arms import read_arm
from rezero.lab.memory import check_memory
from rezero.lab.optimize import check_recipe
from rezero.lab.processes import world_size
from rezero.lab.quality import Quality, loss_unit
from rezero.lab.settings import Settings, check_parts, total_steps
from rezero.lab.trial import settings_of
from rezero.lab.tune import plan

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """A kind of study.

    Attributes:
        name: As on the command line.
        summary: What is trained on what, in a line.
        arms: The arms it defines, each with its formula.
        defaults: Settings that are used unless told.
        load: Loads the data that the settings ask for.
        build: Builds the model of an arm from the data's shapes and the settings, drawing from torch's global RNG.
        quality: What is measured on the validation part, beside the training loss.
        standard: The arm that most people would use, which the others are held against unless told.
        recipe: What the settings leave unsaid, title to text; kept with a study and shown in its report.
        takes: Settings that only some tasks have and this one does: ``heads``, ``context``,
            ``embedding_std``, ``data``.
        derive: Defaults that follow from what a user gave, such as a rate that depends on the depth.
        sample: Makes a text that shows what a trained model does; None if there is nothing to show.
    """

    name: str
    summary: str
    arms: Mapping[str, str]
    defaults: Settings
    load: Callable[[Settings], Data]
    build: Callable[[Data, str, Settings], nn.Module]
    quality: Quality
    standard: str
    recipe: Mapping[str, str]
    takes: frozenset[str] = frozenset()
    derive: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {}
    sample: Callable[[nn.Module, Data, int], str] | None = None

    def settings(self, given: Mapping[str, Any]) -> Settings:
        """Join what a user gave to the defaults, for a study that will run on this machine.

        Args:
            given: Name of a setting to its value; ``steps`` takes the place of the default ``epochs``, and the other
                way round.

        Returns:
            Complete settings.

        Raises:
            UsageError: If a value is out of range or has no meaning for this task, this machine has not the device
                or the cores, or torchrun's variables are incomplete.
        """
        for name in ("heads", "context", "embedding_std", "data"):
            if name in given and name not in self.takes:
                raise UsageError(
                    f"{self.name} has no option {(option := name.replace('_', '-'))}: leave --{option} out"
                )
            for arm in given.get("arms", ()):
                if name in read_arm(arm).own and name not in self.takes:
                    raise UsageError(f"{self.name} has no option {name.replace('_', '-')}: leave it out of {arm!r}")
        length = {"epochs": None} if "steps" in given else {"steps": None} if "epochs" in given else {}
        processes = {"processes": world_size()}
        settings = replace(self.defaults, **{**self.derive(given), **length, **processes, **given})
        check_device(settings.device)
        if settings.threads > (cores := os.cpu_count() or 1):
            raise UsageError(f"threads must be at most the number of cores, {cores}: got {settings.threads}")
        self.decisive(settings)
        for name, arm in product(settings.tuned if settings.tune else (), settings.arms):
            if name.replace("-", "_") in read_arm(arm).own:
                raise UsageError(f"{name} is tuned: leave it out of the arm {arm!r}, or give --tune off")
        for each in _each(settings):
            _check_recipe(each)
        return settings

    def decisive(self, settings: Settings) -> Quality:
        """Return what decides a study.

        Args:
            settings: The study's settings; their metric takes the place of the task's own.

        Returns:
            The measure.

        Raises:
            UsageError: If the task has no such metric.
        """
        own = self.quality
        if settings.metric in (None, own.metric):
            return own
        factor, unit = loss_unit(own)
        losses = {"train_loss": "training loss", "val_loss": "validation loss"}
        if settings.metric not in losses:
            raise UsageError(
                f"metric must be {', '.join(dict.fromkeys((own.metric, *losses)))}: got {settings.metric!r}"
            )
        name = losses[settings.metric]
        return Quality(name, unit, settings.metric, factor, lower_is_better=True, percent=False)

    def model(self, data: Data, arm: str, settings: Settings) -> nn.Module:
        """Build the model of an arm, its gates where the settings start them.

        Args:
            data: The task's data.
            arm: The arm, with what it has of its own.
            settings: Those of a trial of it.

        Returns:
            The model, drawn from torch's global RNG.
        """
        model = self.build(data, read_arm(arm).formula, settings)
        if settings.alpha is not None:
            for gate in gates(model).values():
                nn.init.constant_(gate.gate_parameter, settings.alpha)
        return model

    def check(self, data: Data, settings: Settings) -> None:
        """Refuse settings that only the data and building every arm can refuse, before anything is written.

        Args:
            data: The task's data.
            settings: A study's settings.

        Raises:
            UsageError: If an arm cannot be built or held in memory, a batch is too small for its parts, or the schedule
                does not fit the length of the run.
        """
        steps = total_steps(settings, data)
        check_parts(settings, data)
        with torch.random.fork_rng(devices=[]):
            for arm in settings.arms:
                with torch.device("meta"):
                    model = self.model(data, arm, settings)
                if "alpha" in read_arm(arm).own and not gates(model):
                    formula = read_arm(arm).formula
                    raise UsageError(f"{formula} has no gates that could start elsewhere: leave alpha out of {arm!r}")
                check_memory(model, settings)
        for each in _each(settings):
            if steps <= each.warmup == self.defaults.warmup:
                raise UsageError(
                    f"warmup must be shorter than the run of {steps} steps: got {each.warmup}, the default of "
                    f"{self.name}; give --warmup"
                )
            _check_recipe(each, steps=steps, per_epoch=data.steps_per_epoch(each.batch_size))


def _check_recipe(settings: Settings, **length: int) -> None:
    check_recipe(
        settings.optimizer,
        settings.schedule,
        warmup=settings.warmup,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        device=settings.device,
        **length,
    )


def _each(settings: Settings) -> list[Settings]:
    """List the settings that the study's trials run with, as far as they differ in more than the rate."""
    found = [settings_of(settings, trial) for trial in plan(settings, {})]
    return list({(each.warmup, each.weight_decay, each.alpha_lr): each for each in found}.values())


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or does not find.

    Args:
        name: A torch device such as ``cpu`` or ``cuda:0``.

    Raises:
        UsageError: If it is unknown or absent.
    """
    try:
        torch.zeros(1, device=torch.device(name)).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        available = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise UsageError(f"device must be one that torch finds here ({available}): got {name!r}") from error
