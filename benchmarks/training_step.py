"""What does an arm cost in training? A whole step of the paper's networks, arm beside arm, and their bare products.

    python benchmarks/training_step.py [--device cuda] [--rounds 20]

A step is forward, backward and the optimizer, at the tasks' own sizes, on random data. The floor is the convolutions
and matrix products of the first arm alone: forward, both gradients, nothing between them. Ratios are to the first arm.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import interleave, ratios, read_arguments, write_result
from torch import Tensor, nn

from rezero.lab import build_optimizer, find_task
from rezero.layers import MLP, LanguageModel, ResNet

Build = Callable[[str], nn.Module]
NETWORKS: dict[str, tuple[str, Build, tuple[str, ...]]] = {
    "ResNet-20, batch 128": (
        "resnet-cifar10",
        lambda arm: ResNet(20, residual=arm),
        ("residual", "rezero", "pre-norm", "plain"),
    ),
    "fully connected 64 x 256, batch 100": (
        "fc-cifar10",
        lambda arm: MLP(3072, 256, 64, 10, residual=arm),
        ("residual", "rezero", "pre-norm", "plain"),
    ),
    "Transformer 12 x 128, 16 x 128 bytes": (
        "lm-enwik8",
        lambda arm: LanguageModel(128, 12, 4, residual=arm, share="layer" if arm == "rezero" else "sublayer"),
        ("pre-norm", "rezero", "post-norm", "residual"),
    ),
}
INPUTS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "resnet-cifar10": lambda: (torch.randn(128, 3, 32, 32), torch.randint(10, (128,))),
    "fc-cifar10": lambda: (torch.randn(100, 3072), torch.randint(10, (100,))),
    "lm-enwik8": lambda: (torch.randint(256, (16, 128)), torch.randint(256, (16, 128))),
}


def build_step(model: nn.Module, optimizer: str, inputs: Tensor, targets: Tensor) -> Callable[[], object]:
    """Return a training step."""
    update = build_optimizer(optimizer, model, lr=1e-3)

    def step() -> None:
        loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        update.zero_grad()
        loss.backward()
        update.step()

    return step


def build_floor(model: nn.Module, inputs: Tensor) -> Callable[[], object]:
    """Return the products of a model's layers with weights, each on an input of its own."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        calls.append((layer, torch.randn_like(args[0]).requires_grad_(), torch.randn_like(output)))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()

    def products() -> None:
        for layer, x, gradient in calls:
            torch.autograd.grad(layer(x), (x, *layer.parameters()), gradient)

    return products


if __name__ == "__main__":
    arguments = read_arguments(__doc__, rounds=20)
    tables = {}
    for title, (task, build, arms) in NETWORKS.items():
        torch.manual_seed(0)
        inputs, targets = (part.to(arguments.device) for part in INPUTS[task]())
        models = {arm: build(arm).to(arguments.device) for arm in arms}
        optimizer = find_task(task).defaults.optimizer
        calls = {"floor": build_floor(build(arms[0]).to(arguments.device), inputs)}
        calls |= {arm: build_step(model, optimizer, inputs, targets) for arm, model in models.items()}
        tables[title] = ratios(interleave(calls, rounds=arguments.rounds, device=arguments.device), to=arms[0])
        print(title)
        for name, row in tables[title].items():
            spread = f"{row['ratio']:.3f} ({row['q1']:.3f} to {row['q3']:.3f})"
            print(f"  {name:12} {row['ms']:8.2f} ms   {spread} of {arms[0]}")
    print("written:", write_result(f"training-step-{arguments.device}", tables, arguments.output))
