"""Does a rule of initialisation and learning rates hold over depth? A few steps of networks from shallow to deep."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rezero.diagnose.depth_trial import Build, MakeOptimizer, Measurement, Rule, Trial
from rezero.diagnose.depth_verdict import Verdict, judge
from rezero.diagnose.example import read_input
from rezero.diagnose.plain import plain
from rezero.diagnose.whole import whole, whole_numbers
from rezero.errors import UsageError, near
from rezero.surgery.outputs import tensors

if TYPE_CHECKING:
    from altair import TopLevelMixin

__all__ = ["DepthCheck", "depth_check"]

_QUANTITIES = ("loss", "activation", "change", "update", "gate_update", "contrast")

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class DepthCheck:
    """What was measured of every rule, depth, seed and step.

    Attributes:
        rules: Names of the rules.
        depths: Depths, rising.
        steps: Steps of each network; one that is no longer finite has fewer measurements.
        seeds: Seeds.
        measurements: In the order of rules, depths, seeds and steps.
    """

    rules: tuple[str, ...]
    depths: tuple[int, ...]
    steps: int
    seeds: tuple[int, ...]
    measurements: tuple[Measurement, ...]

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict a rule, on the first step, and on what the last one leaves."""
        return tuple(
            judge(
                rule,
                {depth: self.median("change", rule, depth, 1) for depth in self.depths},
                {depth: self.jump(rule, depth) for depth in self.depths},
                {depth: self.median("contrast", rule, depth, self.steps) for depth in self.depths},
            )
            for rule in self.rules
        )

    def values(self, quantity: str, rule: str, depth: int, step: int) -> list[float]:
        """Return a quantity of all seeds; infinite for a network that was no longer finite by then.

        Args:
            quantity: Name of an attribute of `Measurement`.
            rule: Name of the rule.
            depth: The depth.
            step: The step.

        Returns:
            The values, in the order of the seeds, without those that are None.

        Raises:
            UsageError: If there is no such quantity, rule or depth.
        """
        if quantity not in _QUANTITIES:
            raise UsageError(f"expected one of {', '.join(_QUANTITIES)}, got {quantity!r}{near(quantity, _QUANTITIES)}")
        if rule not in self.rules:
            raise UsageError(f"expected one of the rules {', '.join(self.rules)}, got {rule!r}{near(rule, self.rules)}")
        if depth not in self.depths:
            raise UsageError(f"expected one of the depths {', '.join(map(str, self.depths))}, got {depth!r}")
        found = []
        for seed in self.seeds:
            rows = [
                each
                for each in self._index[rule, depth, seed]
                if each.step <= step and (each.step == step or not each.finite)
            ]
            if rows and not rows[-1].finite:
                found.append(math.inf)
            elif rows and getattr(rows[-1], quantity) is not None:
                found.append(float(getattr(rows[-1], quantity)))
        return found

    def median(self, quantity: str, rule: str, depth: int, step: int) -> float | None:
        """Return the median over the seeds.

        Args:
            quantity: Name of an attribute of `Measurement`.
            rule: Name of the rule.
            depth: The depth.
            step: The step.

        Returns:
            The median; None where nothing was measured.
        """
        found = self.values(quantity, rule, depth, step)
        return median(found) if found else None

    def jump(self, rule: str, depth: int) -> float | None:
        """Return the loss after the first step divided by that at the start, medians over the seeds.

        Args:
            rule: Name of the rule.
            depth: The depth.

        Returns:
            The ratio, infinite where one of them is; None for a loss that is not above zero at the start.
        """
        before, after = (self.median("loss", rule, depth, step) for step in (0, 1))
        if before is None or after is None or math.isinf(before) or math.isinf(after):
            return math.inf
        return after / before if before > 0 else None

    def chart(self) -> "TopLevelMixin":
        """Draw the quantities against depth, a colour a rule: medians, and shaded from the lowest to the highest seed.

        Returns:
            An Altair chart; `rezero.charts.save` writes it.
        """
        from rezero.charts.depth import depth_check_chart

        return depth_check_chart(self)

    def to_json(self) -> dict[str, Any]:
        """Return all of it in plain types; what is not finite is None."""
        return {
            "rules": list(self.rules),
            "depths": list(self.depths),
            "steps": self.steps,
            "seeds": list(self.seeds),
            "verdicts": [each.to_json() for each in self.verdicts],
            "measurements": [plain(asdict(each)) for each in self.measurements],
        }

    def __str__(self) -> str:
        return "\n".join(map(str, self.verdicts))

    @cached_property
    def _index(self) -> dict[tuple[str, int, int], list[Measurement]]:
        index: dict[tuple[str, int, int], list[Measurement]] = {}
        for each in self.measurements:
            index.setdefault((each.rule, each.depth, each.seed), []).append(each)
        return index


def depth_check(
    rules: Build | Mapping[str, tuple[Build, MakeOptimizer]],
    x: Any,
    loss_fn: Callable[[Any], Tensor],
    *,
    optimizer: MakeOptimizer | None = None,
    depths: Sequence[int] = (8, 16, 32, 64, 128, 256, 512),
    steps: int = 5,
    seeds: Sequence[int] = (0, 1, 2),
    tell: Tell | None = None,
) -> DepthCheck:
    r"""Train networks of rising depth for a few steps on one batch, and tell which rules hold over depth.

    A rule says how a network starts and which rates its parameters have. One that holds lets the first steps change
    the output by the same amount at every depth, so that what works in a shallow network works in a deep one; one that
    doesn't makes deep networks explode at the first step, or stand still: the change falls with depth, or it is one
    that all examples share, because their outputs no longer depend on them. `Verdict` has the thresholds.

    Each network is built under its seed, and sees the same dropout at every step. It is trained as it is built, and
    forgotten after its steps. The random generators of torch are left as they were.

    Args:
        rules: Function of the depth that returns a model; or several rules, name to that function and to the function
            that makes its optimizer.
        x: The models' input, several as a tuple, or by name as a dictionary.
        loss_fn: Function of a model's output that returns the loss.
        optimizer: Function of a model that returns its torch optimizer, where ``rules`` is one function.
        depths: Rising depths, best in powers of two.
        steps: Number of steps.
        seeds: Of the weights; the verdict is on medians.
        tell: Is told the share that is done, from 0 to 1, and what is done next; by default a bar on the terminal.

    Returns:
        Everything that was measured, and a verdict a rule.

    Raises:
        TypeError: If a rule is no pair of functions, or one returns something else than a model and an optimizer; if a
            number is not whole.
        UsageError: If a model can't be run, or an optimizer's step needs a closure; if depths, steps or seeds are out
            of range; or at the smallest depth, before anything is measured: if the loss is no scalar with a gradient,
            or loss or output are not finite, or the output is zero.

    References:
        Yang et al. (2022), arXiv:2203.03466, app. D.1 (coordinate checks, over width); Bachlechner et al. (2020),
        arXiv:2003.04887 (the first step at ``alpha = 0``).

    Example:
        >>> import rezero
        >>> from rezero.layers import MLP
        >>> _ = torch.manual_seed(0)
        >>> x, targets = torch.randn(32, 8), torch.randint(2, (32,))
        >>> found = depth_check(
        ...     lambda depth: MLP(8, 32, depth, 2),
        ...     x,
        ...     lambda y: torch.nn.functional.cross_entropy(y, targets),
        ...     optimizer=lambda model: torch.optim.Adagrad(rezero.param_groups(model, lr=0.01, weight_decay=0)),
        ...     depths=(32, 64, 128),
        ...     seeds=(0,),
        ... )
        >>> found.verdicts[0].kind
        'steady'
    """
    chosen = _rules(rules, optimizer)
    if not callable(loss_fn):
        raise TypeError(f"expected loss_fn to be a function of a model's output, got {type(loss_fn).__name__}")
    depths, steps, seeds = whole_numbers("depth", depths), whole("steps", steps), whole_numbers("seed", seeds)
    _check_numbers(depths, steps, seeds)
    example = read_input(x)
    devices = sorted({each.device.index for each in tensors(example) if each.is_cuda})
    done, total = 0.0, float(len(chosen) * len(seeds) * (steps + 1) * sum(depths))
    found: list[Measurement] = []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices), _bar(tell) as tells:
        for name, rule in chosen.items():
            _rehearse(Trial(name, rule, depths[0], seeds[0], example, loss_fn))
        for name, rule in chosen.items():
            for depth in depths:
                for seed in seeds:
                    tells(done / total, f"{name}, depth {depth:,}, seed {seed}")
                    for each in Trial(name, rule, depth, seed, example, loss_fn).run(steps):
                        found.append(each)
                        tells((done + depth * (each.step + 1)) / total, f"{name}, depth {depth:,}, seed {seed}")
                    done += depth * (steps + 1)
        tells(1.0, "done")
    return DepthCheck(tuple(chosen), depths, steps, seeds, tuple(found))


def _rehearse(trial: Trial) -> None:
    """Look at the shallowest network, before anything is measured."""
    [row] = trial.run(0)
    if not row.finite:
        raise UsageError(
            f"{trial.name}: loss or output are not finite at the start at depth {trial.depth}: look at the "
            "initialisation and the input, rezero.diagnose.check(model, x) names the layer"
        )
    if row.change is None:
        raise UsageError(
            f"{trial.name}: the output is zero at the start at depth {trial.depth}, so that no change can be measured "
            "in units of it: initialise the last layer as usual"
        )


def _rules(rules: Any, optimizer: MakeOptimizer | None) -> dict[str, Rule]:
    if not isinstance(rules, Mapping):
        if not _builds(rules) or not callable(optimizer):
            raise TypeError(
                "expected a function build(depth) and a function optimizer(model), got "
                f"{type(rules).__name__} and {type(optimizer).__name__}"
                + "; a model has one depth: give the function of the depth that makes it"
                * isinstance(rules, nn.Module)
            )
        return {"model": Rule(rules, optimizer)}
    if optimizer is not None:
        raise TypeError("expected the optimizer of each rule beside its build, in the mapping, got optimizer= too")
    if not rules:
        raise UsageError("expected at least one rule, got an empty mapping")
    for name, pair in rules.items():
        if not isinstance(name, str):
            raise TypeError(f"expected rules by their names, got {name!r} as a name")
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and _builds(pair[0]) and callable(pair[1])):
            raise TypeError(f"expected rule {name!r} to be a pair of functions (build, optimizer), got {pair!r}")
    return {name: Rule(*pair) for name, pair in rules.items()}


def _builds(given: Any) -> bool:
    return callable(given) and not isinstance(given, nn.Module)


def _check_numbers(depths: tuple[int, ...], steps: int, seeds: tuple[int, ...]) -> None:
    rising = all(one < other for one, other in pairwise(depths))
    if not depths or depths[0] < 1 or not rising:
        raise UsageError(f"depths must rise, from 1 or more, as (8, 16, 32): got {depths}")
    if steps < 1:
        raise UsageError(f"steps must be at least 1: got {steps}")
    if not seeds or len({*seeds}) < len(seeds):
        raise UsageError(f"expected at least one seed, each once: got {seeds}")


def _bar(tell: Tell | None) -> AbstractContextManager[Tell]:
    if tell is not None:
        return nullcontext(tell)
    try:
        from rezero.waiting import share_bar
    except ImportError:  # rich comes with the lab extra
        return nullcontext(lambda _share, _doing: None)
    return share_bar("depth check")
