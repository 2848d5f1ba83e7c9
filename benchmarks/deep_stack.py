"""What does depth cost? A rezero.DeepStack against the bare products of its layers, and a loop of blocks as usual.

    python benchmarks/deep_stack.py [--device cuda] [--dtype bfloat16] [--rounds 20] [--threads 2] [--paper] [--deepest]

Forward and backward, then whole training steps with Adagrad. The floor is the three products of each layer, on as many
weights and on buffers that are there already; the weights' gradients one by one or in one batched product, whichever is
faster. Naive is x + alpha * relu(W x + b) layer by layer. Then the time a layer over depth, and what torch.compile
takes. --paper instead trains the paper's 10,000 layers of width 150 for a few steps; --deepest 100,000 of width 64.
--dtype bfloat16 instead times forward and backward of models in it, with the float32 stack beside.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from block import Naive
from timing import interleave, make_parser, ratios, write_result
from torch import nn

import rezero
from rezero.layers import MLPBlock

SIZES = {
    "1,000 x 150, batch 100": (1000, 150, 100),
    "32 x 256, batch 128": (32, 256, 128),
    "1,000 x 64, batch 128": (1000, 64, 128),
}
DEPTHS = (100, 1000, 10_000)
Call = Callable[[], object]
Table = dict[str, dict[str, float]]


def build_floor(depth: int, width: int, batch: int, device: str, dtype: torch.dtype, *, batched: bool) -> Call:
    """Return the three products of each layer, on buffers that are there already."""
    weight, out = (torch.randn(depth, width, width, device=device, dtype=dtype) for _ in range(2))
    x, g, h = (torch.randn(depth, batch, width, device=device, dtype=dtype) for _ in range(3))
    forward = list(zip(x, weight.mT, h, strict=True))
    backward = list(zip(g, weight, h, g.mT, x, out, strict=True))[::-1]

    def products() -> None:
        for inputs, transposed, product in forward:
            torch.mm(inputs, transposed, out=product)
        for gradient, matrix, product, transposed, inputs, weight_gradient in backward:
            torch.mm(gradient, matrix, out=product)
            if not batched:
                torch.mm(transposed, inputs, out=weight_gradient)
        if batched:
            torch.bmm(g.mT, x, out=out)

    return torch.no_grad()(products)


def build_run(model: nn.Module, width: int, batch: int, *, trains: bool) -> Call:
    """Return forward and backward, or a whole training step."""
    first = next(model.parameters())
    x = torch.randn(batch, width, device=first.device, dtype=first.dtype)
    # Fused over three parameters; over thousands it has more calls than passes, so that one pass a list is faster.
    stacked = isinstance(model, rezero.DeepStack)
    groups = rezero.param_groups(model, lr=1e-3, weight_decay=0.0) if stacked else model.parameters()
    fused = stacked and x.device.type == "cpu"  # torch's Adagrad has no fused pass for CUDA
    update = torch.optim.Adagrad(groups, lr=1e-3, fused=fused or None, foreach=None if fused else True)

    def run() -> None:
        update.zero_grad()
        model(x).square().mean().backward()
        if trains:
            update.step()

    return run


def build(depth: int, width: int, batch: int, device: str, dtype: torch.dtype, *, trains: bool) -> dict[str, Call]:
    """Return the peers, each with parameters of its own."""
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {
        "DeepStack": rezero.DeepStack(MLPBlock(width), depth),
        "DeepStack, sqrt": rezero.DeepStack(MLPBlock(width), depth, checkpoint="sqrt"),
        "naive": build_naive(width, depth),
    }
    for model in models.values():
        model.to(dtype)
    if dtype != torch.float32:
        models["DeepStack, float32"] = rezero.DeepStack(MLPBlock(width), depth)
    floors = {
        "floor, one by one": build_floor(depth, width, batch, device, dtype, batched=False),
        "floor, batched": build_floor(depth, width, batch, device, dtype, batched=True),
    }
    return floors | {name: build_run(model.to(device), width, batch, trains=trains) for name, model in models.items()}


def compare(depth: int, width: int, batch: int, device: str, dtype: torch.dtype, *, trains: bool, rounds: int) -> Table:
    """Time the peers; ratios are to the faster floor."""
    seconds = interleave(build(depth, width, batch, device, dtype, trains=trains), rounds=rounds, device=device)
    floor = min(
        (name for name in seconds if name.startswith("floor")), key=lambda name: statistics.median(seconds[name])
    )
    return ratios(seconds, to=floor)


def time_a_layer(width: int, batch: int, device: str, rounds: int) -> Table:
    """Time stacks of several depths, each run as often as makes the deepest."""
    calls = {}
    for depth in DEPTHS:
        once = build_run(rezero.DeepStack(MLPBlock(width), depth).to(device), width, batch, trains=False)
        calls[f"{depth:,} layers"] = lambda once=once, times=DEPTHS[-1] // depth: [once() for _ in range(times)]
    table = ratios(interleave(calls, rounds=rounds, device=device), to=f"{DEPTHS[0]:,} layers")
    for row in table.values():
        row["us a layer"] = 1000 * row["ms"] / DEPTHS[-1]
    return table


def time_compilation(device: str, rounds: int) -> Table:
    """Time the first call and its backward pass under torch.compile; ratios are to the shallowest."""
    stacks = {depth: rezero.DeepStack(MLPBlock(8), depth).to(device) for depth in (100, 10_000)}

    def first_call(stack: nn.Module) -> None:
        torch._dynamo.reset()
        torch.compile(stack, fullgraph=True)(torch.randn(4, 8, device=device)).sum().backward()

    calls = {f"{depth:,} layers": lambda stack=stack: first_call(stack) for depth, stack in stacks.items()}
    with torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        return ratios(interleave(calls, rounds=rounds, device=device), to="100 layers")


def train(model: nn.Module, width: int, batch: int, steps: int, device: str) -> dict[str, float]:
    """Train for some steps; median seconds a step, and the peak of the process's or the GPU's memory so far."""
    step, seconds = build_run(model.to(device), width, batch, trains=True), []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        print(f"  step {len(seconds)}/{steps}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise RuntimeError("the parameters did not stay finite")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    peak = peak if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30
    return {"steps": steps, "first s": seconds[0], "s a step": statistics.median(seconds[1:]), "peak GiB": peak}


def train_long(paper: bool, deepest: bool, device: str) -> Table:
    """Train the large stacks that were asked for, and the paper's in naive code too."""
    tables: Table = {}
    if paper:
        models: dict[str, Callable[[], nn.Module]] = {
            "DeepStack": lambda: rezero.DeepStack(MLPBlock(150), 10_000),
            "naive": lambda: build_naive(150, 10_000),
        }
        for name, make in models.items():
            tables[f"10,000 x 150, batch 100, {name}"] = row = train(make(), 150, 100, 5, device)
            row["hours for 25 epochs"] = row["s a step"] * 500 * 25 / 3600  # of 50,000 images
    if deepest:
        tables["100,000 x 64, batch 128"] = train(rezero.DeepStack(MLPBlock(64), 100_000), 64, 128, 20, device)
    for title, row in tables.items():
        print(title, {name: round(value, 2) for name, value in row.items()})
    return tables


def build_naive(width: int, depth: int) -> nn.Module:
    """Return the stack as most people write it."""
    return nn.Sequential(*(Naive(MLPBlock(width)) for _ in range(depth)))


def show(title: str, table: Table) -> None:
    """Print a table of ratios."""
    print(title)
    for name, row in table.items():
        print(f"  {name:18} {row['ms']:9.2f} ms   {row['ratio']:.2f} ({row['q1']:.2f} to {row['q3']:.2f})", flush=True)


def main() -> None:
    """Run what was asked for."""
    parser = make_parser(__doc__ or "", rounds=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--paper", action="store_true", help="train 10,000 layers of width 150 for 5 steps")
    parser.add_argument("--deepest", action="store_true", help="train 100,000 layers of width 64 for 20 steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    if arguments.paper or arguments.deepest:
        long = train_long(arguments.paper, arguments.deepest, device)
        print("written:", write_result(f"deep-stack-long-{device}", long, arguments.output))
        return
    tables = {}
    half = arguments.dtype != "float32"
    for what, trains in (("forward and backward", False), *[("training step", True)] * (not half)):
        for title, sizes in SIZES.items():
            table = compare(*sizes, device, getattr(torch, arguments.dtype), trains=trains, rounds=arguments.rounds)
            tables[f"{what}, {title}"] = table
            show(f"{what}, {title}", table)
    if half:
        print("written:", write_result(f"deep-stack-{arguments.dtype}-{device}", tables, arguments.output))
        return
    few = max(3, arguments.rounds // 4)
    for width, batch in ((150, 100), (64, 128)):
        title = f"over depth, width {width}, batch {batch}"
        tables[title] = table = time_a_layer(width, batch, device, few)
        show(title, table)
    tables["torch.compile"] = table = time_compilation(device, few)
    show("torch.compile", table)
    print("written:", write_result(f"deep-stack-{device}", tables, arguments.output))


if __name__ == "__main__":
    main()
