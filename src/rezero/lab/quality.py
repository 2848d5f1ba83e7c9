"""How well a model does: which metric, in which unit, and which way is up."""

import math
from dataclasses import dataclass

__all__ = ["ACCURACY", "BITS", "Quality", "loss_unit", "show_value"]


@dataclass(frozen=True)
class Quality:
    """How well a model does on the validation part.

    Attributes:
        name: As reports show it.
        unit: Unit in brackets, or nothing.
        metric: The recorded metric that it is computed from.
        factor: What that metric is multiplied by.
        lower_is_better: Whether small values are good.
        percent: Whether values are fractions that are shown in percent.
        significant: Whether four significant digits are shown, as of a metric of which nothing is known, in the place
            of three behind the point.
    """

    name: str
    unit: str
    metric: str
    factor: float
    lower_is_better: bool
    percent: bool
    significant: bool = False

    def show(self, value: float) -> str:
        """Write a value with its digits."""
        if not math.isfinite(value):
            return "none"
        if self.significant:
            return f"{value:#.4g}".removesuffix(".")
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3f}"

    def recorded(self, shown: float) -> float:
        """Return the recorded value of one that is given as it is shown, in percent or in the unit."""
        return shown / 100 if self.percent else shown / self.factor


def show_value(value: float) -> str:
    """Write a loss with three digits, zeros at the end among them.

    Args:
        value: The loss; one that is not finite has diverged.

    Returns:
        The text.
    """
    return f"{value:#.3g}".removesuffix(".") if math.isfinite(value) else "diverged"


def loss_unit(quality: Quality) -> tuple[float, str]:
    """Choose the unit of training losses: that of the validation loss where one is shown, otherwise nats.

    Args:
        quality: What is measured on the validation part.

    Returns:
        What a loss in nats is multiplied by, and the unit.
    """
    return (quality.factor, quality.unit) if quality.metric == "val_loss" else (1.0, "nats")


ACCURACY = Quality("validation accuracy", "", "val_accuracy", 1.0, lower_is_better=False, percent=True)
BITS = Quality("validation loss", "bits a byte", "val_loss", 1 / math.log(2), lower_is_better=True, percent=False)
