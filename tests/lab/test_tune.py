"""Which trials a study takes."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from rezero.errors import UsageError
from rezero.lab import Settings, Trial, find_task, plan
from rezero.lab.trial import TUNING_SEEDS
from rezero.lab.tune import choose, table

TASK = find_task("fc-digits")
INF = math.inf


def settings(**given: Any) -> Settings:
    return TASK.settings({"arms": ("plain", "rezero"), "seeds": 2, "tune": 3, **given})


def run(asked: Settings, cost: Callable[[Trial], float]) -> dict[Trial, float]:
    """Costs of a study that has run to its end."""
    costs: dict[Trial, float] = {}
    while missing := [trial for trial in plan(asked, costs) if trial not in costs]:
        costs |= {trial: cost(trial) for trial in missing}
    return costs


def valley(**best: float) -> Callable[[Trial], float]:
    """A cost that is lowest at a rate of each arm's own."""
    return lambda trial: abs(math.log(trial.lr / best[trial.arm]))


@pytest.mark.parametrize(
    ("middle", "count", "expected"),
    [
        (0.01, 5, (0.001, 0.003, 0.01, 0.03, 0.1)),
        (0.01, 2, (0.003, 0.01)),
        (0.2, 3, (0.1, 0.3, 1.0)),
        (1e-3, 4, (1e-4, 3e-4, 1e-3, 3e-3)),
        (1.0, 3, (0.3, 1.0, 3.0)),
        (7.0, 1, (10.0,)),
    ],
    ids=str,
)
def test_the_table_has_two_entries_a_decade(middle: float, count: int, expected: tuple[float, ...]) -> None:
    """They are 1 and 3 times powers of ten, exactly the numbers that one would type."""
    assert table(middle, count) == expected


def test_every_arm_gets_the_same_trials_on_seeds_of_their_own() -> None:
    """The best rates lie inside the table: every arm runs it once, then the comparison on other seeds."""
    costs = run(settings(), valley(plain=0.01, rezero=0.01))
    tuning = [trial for trial in costs if trial.tuning]
    assert {(trial.arm, trial.lr) for trial in tuning} == {(a, r) for a in ("plain", "rezero") for r in table(0.01, 3)}
    assert {trial.seed for trial in tuning} == {TUNING_SEEDS}
    finals = [trial for trial in costs if not trial.tuning]
    assert [(trial.arm, trial.seed) for trial in finals] == [("plain", 0), ("rezero", 0), ("plain", 1), ("rezero", 1)]
    assert {trial.lr for trial in finals} == {0.01}


def test_a_best_rate_at_the_edge_widens_the_table_for_every_arm() -> None:
    """One arm's best lies two entries above the table, and the other arm gets these entries as well."""
    costs = run(settings(), valley(plain=0.01, rezero=0.3))
    rates = {arm: sorted({t.lr for t in costs if t.tuning and t.arm == arm}) for arm in ("plain", "rezero")}
    assert rates["plain"] == rates["rezero"] == [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
    assert {trial.arm: trial.lr for trial in costs if not trial.tuning} == {"plain": 0.01, "rezero": 0.3}


def test_a_table_ends_somewhere() -> None:
    """Three entries are added at either end, and then the best is said to lie at the edge."""
    costs = run(settings(), valley(plain=1e-9, rezero=1e9))
    choices = choose(settings(), costs)
    assert len(choices["plain"].costs) == 3 + 2 * 3
    assert (choices["plain"].values, choices["rezero"].values) == ((("lr", 1e-4),), (("lr", 1.0),))
    assert choices["plain"].at_edge
    assert choices["rezero"].at_edge


def test_level_rates_are_no_reason_to_widen() -> None:
    """An arm that learns at no rate takes the middle one; one that diverges everywhere looks below."""
    costs = run(settings(), lambda _: 2.3)
    assert {trial.lr for trial in costs if not trial.tuning} == {0.01}
    assert len({trial.lr for trial in costs}) == 3
    costs = run(settings(), lambda trial: INF if trial.lr > 1e-4 else 1.0)
    assert {trial.lr for trial in costs if not trial.tuning} == {1e-4}


def test_the_mean_over_tuning_seeds_decides() -> None:
    """A rate that is best on one seed and diverges on another is not chosen."""
    asked = settings(tune_seeds=2)

    def cost(trial: Trial) -> float:
        if not trial.tuning or trial.lr != 0.01:
            return 1.0 + abs(math.log(trial.lr / 0.03))
        return -5.0 if trial.seed == TUNING_SEEDS else INF

    costs = run(asked, cost)
    assert {trial.lr for trial in costs if not trial.tuning} == {0.03}
    assert sum(trial.tuning for trial in costs) == 2 * 2 * len({trial.lr for trial in costs if trial.tuning})


def test_a_plan_is_the_same_after_every_interruption() -> None:
    """Whatever part of the trials has ended, the next one is that of the undisturbed study."""
    cost = valley(plain=0.003, rezero=0.03)
    whole = [*run(settings(), cost)]
    known: dict[Trial, float] = {}
    for expected in whole:
        following = next(trial for trial in plan(settings(), known) if trial not in known)
        assert following == expected
        known[following] = cost(following)
    assert all(trial in known for trial in plan(settings(), known))


@pytest.mark.parametrize(
    ("over", "given", "expected"),
    [
        ("alpha-lr", {}, {"alpha_lr": 0.01}),
        ("alpha-lr", {"alpha_lr": 0.3}, {"alpha_lr": 0.3}),
        ("weight-decay", {}, {"weight_decay": 0.01}),
        ("warmup", {"warmup": 30}, {"warmup": 30.0}),
    ],
    ids=["alpha-lr", "around the one given", "weight-decay", "warmup"],
)
def test_other_settings_are_tuned_the_same_way(over: str, given: dict[str, Any], expected: dict[str, float]) -> None:
    """The table is around the setting's own value, and the rate stays what it is."""
    asked = settings(tune_over=over, **given)
    (name, middle), *_ = expected.items()
    costs = run(asked, lambda trial: abs(math.log(dict(trial.tuned)[name] / middle)))
    assert {trial.lr for trial in costs} == {0.01}
    assert {dict(trial.tuned)[name] for trial in costs if trial.tuning} == {*table(middle, 3)}
    assert {trial.tuned for trial in costs if not trial.tuning} == {tuple(expected.items())}


def bowl(trial: Trial) -> float:
    """A cost that is lowest where the rate is .03 and that of alpha .1, and infinite where the rate is high."""
    if trial.lr > 0.2:
        return INF
    return math.log(trial.lr / 0.03) ** 2 + math.log(dict(trial.tuned)["alpha_lr"] / 0.1) ** 2 + 0.0 * trial.seed


def test_several_settings_are_searched_for() -> None:
    """Every arm gets as many trials on seeds of its own, beginning with the same ones, and gets nearer than chance."""
    asked = settings(tune=24, tune_over="lr, alpha-lr", tune_seeds=2)
    costs = run(asked, bowl)
    tuning = [trial for trial in costs if trial.tuning]
    for arm in asked.arms:
        tried = [trial for trial in tuning if trial.arm == arm]
        assert len(tried) == 48
        assert {trial.seed for trial in tried} == {TUNING_SEEDS, TUNING_SEEDS + 1}
        assert (tried[0].lr, tried[0].tuned) == (0.01, (("alpha_lr", 0.01),))
    by_arm = {arm: [(trial.lr, trial.tuned) for trial in tuning if trial.arm == arm] for arm in asked.arms}
    assert by_arm["plain"] == by_arm["rezero"]
    found = {min(tuning, key=costs.__getitem__)}
    assert {(trial.lr, trial.tuned) for trial in costs if not trial.tuning} == {(t.lr, t.tuned) for t in found}
    assert all(costs[trial] < 0.3 for trial in found)  # of 24 at random the best comes to .9 on average
    assert all(not choice.at_edge for choice in choose(asked, costs).values())


def test_a_search_goes_on_as_it_would_have() -> None:
    """However its trials end, one by one or all of a round, the same ones are proposed."""
    asked = settings(tune=10, tune_over="lr,alpha-lr")
    at_once, one_by_one = run(asked, bowl), {}
    while missing := [trial for trial in plan(asked, one_by_one) if trial not in one_by_one]:
        one_by_one[missing[-1]] = bowl(missing[-1])
    assert one_by_one == at_once


def test_warm_up_is_searched_for_in_whole_steps() -> None:
    """So the schedule gets what the study's records say."""
    costs = run(settings(tune=6, tune_over="lr,warmup", warmup=3), lambda trial: dict(trial.tuned)["warmup"])
    assert all(dict(trial.tuned)["warmup"].is_integer() for trial in costs)
    assert min(dict(trial.tuned)["warmup"] for trial in costs) >= 1


def test_an_arm_keeps_its_own_rate_where_rates_are_not_tuned() -> None:
    """The text of an arm says which rate it runs at."""
    asked = settings(tune=0, arms=("plain lr=0.5", "rezero"))
    assert {trial.arm: trial.lr for trial in plan(asked, {})} == {"plain lr=0.5": 0.5, "rezero": 0.01}
    assert choose(asked, {}) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune": 1}, "tune must be off, or the number of trials that every arm gets, 2 or more: got 1"),
        ({"tune": 21}, "tune must be at most 20 values, which span 10 powers of ten: got 21"),
        ({"tune": -2}, "tune must be off, .*: got -2"),
        (
            {"tune_over": "momentum"},
            "tune-over must be out of lr, alpha-lr, weight-decay, warmup, each once: got 'momentum'",
        ),
        ({"tune_over": "lr,lr"}, "tune-over must be out of lr, .*, each once: got 'lr,lr'"),
        ({"tune_over": "alpha-lr,warmup", "arms": ("rezero warmup=3",)}, "warmup is tuned: leave it out of the arm"),
        ({"tune_seeds": 0}, "tune-seeds must be a whole number, 1 or more: got 0"),
        ({"arms": ("plain lr=0.5", "rezero")}, "lr is tuned: leave it out of the arm 'plain lr=0.5'"),
        ({"metric": "bleu"}, "metric must be val_accuracy, train_loss, val_loss: got 'bleu'"),
        ({"tune_over": "weight-decay", "optimizer": "Rprop"}, "optimizer 'Rprop' has no weight decay"),
    ],
    ids=[
        "one",
        "many",
        "negative",
        "unknown",
        "twice",
        "own and searched",
        "no seed",
        "tuned and given",
        "metric",
        "no decay",
    ],
)
def test_what_cannot_be_tuned_is_refused(given: dict[str, Any], message: str) -> None:
    """A wrong setting is one line that says what there is."""
    with pytest.raises(UsageError, match=message):
        settings(**given)
