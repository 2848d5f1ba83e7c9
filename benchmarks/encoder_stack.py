"""What does a rezero.DeepStack of Transformer layers cost beside an nn.Sequential of the same layers?

    python benchmarks/encoder_stack.py [--rounds 40] [--width 64] [--depth 20] [--compiled 1000]

Forward and backward, then whole training steps with AdamW (fused for a stack, which has few parameters; foreach for the
sequence). In seconds of processor time on one thread, which other programs on the machine hardly change. Then the bytes
that are kept for the backward pass over depth, and what torch.compile takes for 1/10 of the layers and for all of them,
in seconds of processor time, the C++ compiler's included.
"""

import resource
import statistics
import time
from collections.abc import Callable

import torch
from timing import bytes_kept, interleave, ratios, read_arguments, write_result
from torch import Tensor, nn

import rezero
from rezero.layers import TransformerEncoderLayer

BATCHES = ((1, 16), (4, 16), (8, 32))  # sequences and their length
Table = dict[str, dict[str, float]]


def build_layer(width: int) -> TransformerEncoderLayer:
    """Return a layer of four heads without dropout, its gates open."""
    return TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, init_value=0.1)


def build_models(width: int, depth: int) -> dict[str, nn.Module]:
    """Return the peers, with equal values."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(build_layer(width) for _ in range(depth)))
    return {
        "layers": layers,
        "DeepStack": rezero.DeepStack.from_modules(layers),
        "DeepStack, sqrt": rezero.DeepStack.from_modules(layers, checkpoint="sqrt"),
    }


def build_run(model: nn.Module, x: Tensor, *, trains: bool) -> Callable[[], object]:
    """Return forward and backward, or a whole training step."""
    few = isinstance(model, rezero.DeepStack)
    groups = rezero.param_groups(model, lr=1e-4, weight_decay=0.1)
    update = torch.optim.AdamW(groups, fused=few or None, foreach=None if few else True)

    def run() -> None:
        update.zero_grad()
        model(x).square().mean().backward()
        if trains:
            update.step()

    return run


def compare(width: int, depth: int, batch: tuple[int, int], *, trains: bool, rounds: int) -> Table:
    """Time the peers round by round."""
    x = torch.randn(*batch, width)
    runs = {name: build_run(model, x, trains=trains) for name, model in build_models(width, depth).items()}
    seconds = interleave(runs, rounds=rounds, device="cpu", clock=time.process_time)
    table = ratios(seconds, to="layers")
    for name, values in seconds.items():
        table[name]["us a layer"] = 1e6 * statistics.median(values) / depth
    return table


def measure_memory(width: int) -> Table:
    """Count what is kept for the backward pass, in inputs."""
    x = torch.randn(4, 16, width)
    return {
        f"{depth} layers": {name: bytes_kept(model, x) / x.nbytes for name, model in build_models(width, depth).items()}
        for depth in (16, 64, 256)
    }


def time_compilation(depth: int) -> dict[str, float]:
    """Return the processor time of the first forward and backward pass, with nothing compiled before."""
    stack, x = rezero.DeepStack(build_layer(8), depth), torch.randn(2, 4, 8)

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    torch._dynamo.reset()
    start = spent()
    torch.compile(stack, fullgraph=True)(x).sum().backward()
    return {"s": spent() - start}


def main() -> None:
    """Run everything."""
    arguments = read_arguments(
        __doc__ or "",
        rounds=40,
        width=(64, "of the layers"),
        depth=(20, "layers of the stack"),
        compiled=(1000, "layers of the deeper of two stacks that torch.compile is timed with"),
    )
    torch.set_num_threads(1)
    tables: dict[str, Table] = {}
    for batch in BATCHES:
        for what, trains in (("forward and backward", False), ("training step", True)):
            title = f"{what}, {batch[0]} x {batch[1]} tokens"
            tables[title] = compare(arguments.width, arguments.depth, batch, trains=trains, rounds=arguments.rounds)
            print(title)
            for name, row in tables[title].items():
                spread = f"({row['q1']:.2f} to {row['q3']:.2f})"
                print(f"  {name:16} {row['us a layer']:8.0f} us {row['ratio']:.2f} {spread}", flush=True)
    tables["inputs kept"] = measure_memory(arguments.width)
    print(tables["inputs kept"])
    time_compilation(2)  # loads torch's compiler
    tables["torch.compile"] = {}
    torch._inductor.config.compile_threads = 1  # so that the C++ compiler is a child, whose time is counted
    for depth in (arguments.compiled // 10, arguments.compiled):
        with torch._inductor.utils.fresh_cache():
            tables["torch.compile"][f"{depth} layers"] = time_compilation(depth)
    print(tables["torch.compile"])
    print("written:", write_result("encoder-stack-cpu", tables, arguments.output))


if __name__ == "__main__":
    main()
