"""Does the loader keep the training waiting? The time of a batch against the time of the training step that takes it.

    python benchmarks/loader.py [--device cuda] [--rounds 40] [--threads 2]

Three trainings of the paper's kinds. The first batch of an epoch draws its order and costs more: what it costs more is
spread over the epoch's batches. The share is a batch's time in percent of the step's; it should stay below 5.
Data that are not here are replaced by random bytes of the same shapes, and the table says so.
"""

import itertools
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timing import interleave, make_parser, write_result
from torch import Tensor, nn

from rezero.data.batches import Data, TensorData
from rezero.data.cifar10 import IMAGENET_MEAN, IMAGENET_STD, crop_and_flip, load_cifar10, standardise
from rezero.data.text import load_enwik8
from rezero.data.windows import TextData
from rezero.errors import UsageError
from rezero.layers import MLP
from rezero.layers.language_model import LanguageModel
from rezero.layers.resnet import ResNet

CONTEXT = 128


def random_images(*shape: int) -> TensorData:
    """Return 50,000 training images of random bytes in CIFAR-10's two layouts."""
    pixels, labels = torch.randint(256, (50_000, *shape), dtype=torch.uint8), torch.randint(10, (50_000,))
    data = partial(TensorData, "random bytes", pixels, labels, pixels[:10_000], labels[:10_000], 10)
    if len(shape) == 1:
        return data(prepare=partial(standardise, mean=(0.5,), std=(0.5,)))
    return data(prepare=partial(standardise, mean=IMAGENET_MEAN, std=IMAGENET_STD), augment=crop_and_flip)


def random_text() -> TextData:
    """Return 90 MB of random bytes for training."""
    text = torch.randint(256, (95_000_000,), dtype=torch.uint8)
    return TextData("random bytes", text[:90_000_000], text[90_000_000:], CONTEXT)


def load(real: Callable[[], Data], substitute: Callable[[], Data]) -> Data:
    """Return the real data if they are here."""
    try:
        return real()
    except UsageError as error:
        print(f"random bytes instead: {error}")
        return substitute()


def build_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]
) -> Callable[[], object]:
    """Return one training step on a batch that is there already."""
    inputs, targets = batch

    def step() -> None:
        loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(data: Data, model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> dict[str, object]:
    """Time the batches of one epoch, the first batches of epochs and the training step, in turns."""
    per_epoch = data.steps_per_epoch(batch_size)
    steps, epochs = itertools.count(1), itertools.count()
    seconds = interleave(
        {
            # A seed of its own keeps the draws of its epoch, as in training.
            "batch": lambda: data.batch(0, next(steps) % per_epoch, batch_size),
            "first": lambda: data.batch(1, per_epoch * next(epochs), batch_size),
            "step": build_step(model, optimizer, data.batch(0, 0, batch_size)),
        },
        rounds=arguments.rounds,
        device=arguments.device,
    )
    batch, first, step = (1000 * statistics.median(seconds[name]) for name in ("batch", "first", "step"))
    mean = batch + max(0.0, first - batch) / per_epoch
    return {"data": data.name, "batch ms": mean, "first of an epoch ms": first, "step ms": step, "share": mean / step}


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    trainings: dict[str, tuple[Callable[[], Data], Callable[[], nn.Module], Callable[..., torch.optim.Optimizer], int]]
    trainings = {
        "fully connected 64 x 256, batch 100": (
            lambda: load(partial(load_cifar10, layout="flat"), lambda: random_images(3072)),
            lambda: MLP(3072, 256, 64, 10),
            partial(torch.optim.Adagrad, lr=0.01, foreach=True),
            100,
        ),
        "ResNet-20, batch 128": (
            lambda: load(partial(load_cifar10, layout="image"), lambda: random_images(3, 32, 32)),
            lambda: ResNet(20),
            partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
            128,
        ),
        f"Transformer 12 x 128, context {CONTEXT}, batch 16": (
            lambda: load(lambda: load_enwik8(CONTEXT), random_text),
            lambda: LanguageModel(128, 12, 4),
            partial(torch.optim.AdamW, lr=1e-3),
            16,
        ),
    }
    table = {}
    for title, (load_data, build, make_optimizer, size) in trainings.items():
        model = build().to(arguments.device)
        row = measure(load_data().to(arguments.device), model, make_optimizer(model.parameters()), size)
        table[title] = row
        print(
            f"{title} ({row['data']}): batch {row['batch ms']:.3f} ms, step {row['step ms']:.1f} ms, "
            f"{row['share']:.2%}; first batch of an epoch {row['first of an epoch ms']:.2f} ms"
        )
    print("written:", write_result(f"loader-{arguments.device}", table, arguments.output))
