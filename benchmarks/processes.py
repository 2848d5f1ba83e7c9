"""What does adding gradients up in one fixed order cost? A training step of several processes, beside that of DDP.

    torchrun --standalone --nproc-per-node 2 benchmarks/processes.py [--rounds 40]

The networks of the tasks at their own sizes, a part of each batch a process, one thread each, gloo.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timing import interleave, make_parser, ratios, write_result
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training_step import INPUTS, NETWORKS

from rezero.lab import build_optimizer, find_task
from rezero.lab.processes import add_gradients_


def build_step(
    model: nn.Module, finish: Callable[[], object], optimizer: str, inputs: Tensor, targets: Tensor
) -> Callable[[], object]:
    """Return a training step that calls `finish` between the backward pass and the optimizer."""
    update = build_optimizer(optimizer, model, lr=1e-3)

    def step() -> None:
        loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        update.zero_grad()
        loss.backward()
        finish()
        update.step()

    return step


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=40)
    arguments = parser.parse_args()
    accelerator = Accelerator(cpu=True)
    torch.set_num_threads(1)
    tables = {}
    for title, (task, build, _) in NETWORKS.items():
        torch.manual_seed(0)
        optimizer, batch = find_task(task).defaults.optimizer, INPUTS[task]()
        part = [whole.chunk(accelerator.num_processes)[accelerator.process_index] for whole in batch]
        ours, theirs = build("rezero"), DistributedDataParallel(build("rezero"))
        calls = {
            "DDP": build_step(theirs, lambda: None, optimizer, *part),
            "ours": build_step(ours, partial(add_gradients_, ours, accelerator), optimizer, *part),
        }
        tables[title] = ratios(interleave(calls, rounds=arguments.rounds, device="cpu"), to="DDP")
        row = tables[title]["ours"]
        accelerator.print(f"{title}\n  ours {row['ratio']:.3f} ({row['q1']:.3f} to {row['q3']:.3f}) of DDP")
    if accelerator.is_main_process:
        print("written:", write_result(f"processes-{accelerator.num_processes}-cpu", tables, arguments.output))
    accelerator.end_training()
