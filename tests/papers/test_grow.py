"""Depth that grows: equal compute, and what is written of it."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from rezero.papers.grow import GROW, PLAN, Growing, Task, run, train
from rezero.papers.plain_text import load_plain_text
from rezero.papers.reproduction import Work

TINY = replace(PLAN, width=8, deep=4, context=16, batch=2, compute=6, growth=3, warmup=2, every=2, windows=4, tune=2)


def test_all_arms_spend_the_same_compute() -> None:
    """A step of half of the layers costs half; the grown model has the depth of the deep one at the end."""
    text = load_plain_text(TINY.context)
    task = Task(TINY, text)
    deep = task.deep()
    for model, layers, steps in ((deep, 4, 6), (task.shallow(deep), 2, 12), (task.growing(deep), 4, 9)):
        taken = 0

        def count(*_: object) -> None:
            nonlocal taken
            taken += 1

        hook = register_optimizer_step_post_hook(count)
        try:
            points = list(train(model, TINY, text, 0.01, 0))
        finally:
            hook.remove()
        assert [at for at, _ in points] == [2, 4, 6]
        assert (len(model.layers), taken) == (layers, steps)


def test_growth_does_not_change_the_loss() -> None:
    """The model goes on from exactly where it stands."""
    from rezero.papers.plain_text import measure
    from rezero.surgery.grow import grow_

    text = load_plain_text(TINY.context)
    model = Growing(8, 2, 4, residual="pre-norm").eval()
    before = measure(model, text, 4)
    grow_(model, every=1, example=text.val_batch(0, 1)[0])
    assert measure(model, text, 4) == before


@pytest.mark.slow
def test_the_lab_compares_the_arms(tmp_path: Path) -> None:
    """Each at a rate of its own; the picture and the verdict are made of its study, and a second run trains nothing."""
    work = Work(tmp_path / "kept", tmp_path / "out", 2)
    summary = run(work, TINY)
    assert list(summary["arms"]) == ["4 layers", "grown", "2 layers"]
    assert [each["arm"] for each in summary["found"]] == ["grown", "2 layers"]
    assert run(work, TINY)["arms"] == summary["arms"]
    GROW.write(summary, tmp_path)
    assert (tmp_path / "loss.svg").stat().st_size > 1000
    assert [line.partition(":")[0] for line in GROW.lines(summary)] == list(summary["arms"])
    goes_on, saves, pays = (claim.find(summary) for claim in GROW.claims)
    assert goes_on is not None
    assert goes_on.ours.startswith("its loss falls by ")
    assert saves is not None
    assert saves.ours.endswith("at equal compute")
    assert pays is not None
    assert pays.ours.endswith("than 2 layers to the end")


def test_growth_is_held_against_its_own_beginning() -> None:
    """The loss at the measurement when it grew, and at the end; what was gained before does not count."""
    points = {
        "grown": [(1, 9.0), (3, 4.0), (6, 3.0)],
        "2 layers": [(3, 4.0), (6, 2.0)],
        "4 layers": [(3, 5.0), (6, 4.0)],
    }
    arms = {
        arm: {"points": {str(seed): [{"step": at, "val_loss": loss} for at, loss in each] for seed in range(2)}}
        for arm, each in points.items()
    }
    gain = {"mean": 1.0, "low": 0.9, "high": 1.1, "n": 2}
    found = [{"arm": "grown", "baseline": "4 layers", "gain": gain, "quality": "more"}]
    summary = {"plan": {"growth": 3, "compute": 6}, "arms": arms, "found": found}
    goes_on, saves, pays = (claim.find(summary) for claim in GROW.claims)
    assert goes_on is not None
    assert goes_on.ours.startswith("its loss falls by 1.00 (1.00 to 1.00)")
    assert [each.verdict for each in (goes_on, saves, pays) if each is not None] == ["holds", "holds", "does not hold"]
    assert pays is not None
    assert pays.ours == "1.00 (1.00 to 1.00) nats a byte worse than 2 layers to the end"
