"""The paper's sizes need a GPU; that they can be built and trained is known without one."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rezero.data.batches import Data, TensorData
from rezero.data.windows import TextData
from rezero.lab.arms import parse_arms, read_arm
from rezero.lab.settings import Settings
from rezero.lab.tasks import find_task
from rezero.papers import REPRODUCTIONS
from rezero.papers.studies import Recipe

pytestmark = pytest.mark.slow

SHAPES = {"fc-table": (30,), "fc-cifar10": (3072,), "resnet-cifar10": (3, 32, 32)}


def declared() -> list[tuple[str, Recipe]]:
    """Return every study of a reproduction at the paper's scale."""
    runs = {name: each.scales["paper"].run for name, each in REPRODUCTIONS.items() if "paper" in each.scales}
    found = []
    for name, run in runs.items():
        assert isinstance(run, partial)
        if name not in (
            "memory",
            "deep",
            "ablation",
            "superconvergence",
        ):  # which have no studies, and tests of their own
            found += [(name, recipe) for recipe in run.args[0]]
    return found


def example(recipe: Recipe, settings: Settings) -> tuple[Data, torch.Tensor, torch.Tensor]:
    """Return data of the task's shapes, and a batch of two."""
    if recipe.task in SHAPES:
        shape = SHAPES[recipe.task]
        images = torch.randn(2, *shape)
        return (
            TensorData("none", images, torch.arange(2), images, torch.arange(2), classes=10),
            images,
            torch.tensor([1, 2]),
        )
    data = TextData(
        "none", torch.randint(256, (2000,)).byte(), torch.randint(256, (1000,)).byte(), settings.context or 1
    )
    inputs, targets = data.batch(0, 0, 2)
    return data, inputs[:, :8], targets[:, :8].long()


@pytest.mark.parametrize(
    ("name", "recipe"), [pytest.param(*each, id=f"{each[0]}-{each[1].name}") for each in declared()]
)
def test_it_is_built_and_takes_a_step(name: str, recipe: Recipe) -> None:
    """Every arm has the parameters that its depth and width say, and each of them is reached by the gradient."""
    assert recipe.settings["device"] == "cuda", name
    task = find_task(recipe.task)
    arms = parse_arms(recipe.settings["arms"], task.arms)
    settings = task.settings({**recipe.settings, "arms": arms, "device": "cpu"})
    data, inputs, targets = example(recipe, settings)
    for arm in arms:
        torch.manual_seed(0)
        model = task.build(data, read_arm(arm).formula, settings)
        assert isinstance(model, nn.Module)
        if recipe.task == "fc-cifar10":
            width = settings.width
            branches = settings.depth * (width + 1) * width
            own = {"rezero": settings.depth, "residual": 0, "plain": 0, "plain-norm": 2 * width}
            own |= {"pre-norm": 2 * width * (settings.depth + 1), "post-norm": 2 * width * settings.depth}
            expected = 3073 * width + branches + (width + 1) * 10 + own[arm]
            assert sum(each.numel() for each in model.parameters()) == expected
        F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten()).backward()
        assert all(each.grad is not None for each in model.parameters())
        torch.optim.SGD(model.parameters(), lr=1e-6).step()
