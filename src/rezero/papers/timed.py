"""Time and memory of things beside each other: interleaved, so that a machine's drift falls on all alike."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["bytes_kept", "interleave", "peak_bytes", "ratios"]


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: str,
    calls: int = 1,
    title: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each candidate once a round, after two rounds that do not count; each round begins with another one.

    Args:
        candidates: Name to what is timed.
        rounds: How many rounds.
        device: Where it runs, as torch names it.
        calls: How often it is called each time, so that a GPU need not wait for what is called.
        title: Of what is timed, for who waits.
        clock: Tells the time in seconds.

    Returns:
        Seconds a call, in the order of the rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for turn in range(rounds + 2):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            call = candidates[name]
            start = clock()
            for _ in range(calls):
                call()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append((clock() - start) / calls)
        print(f"\r  {title and title + ': '}round {turn + 1}/{rounds + 2}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def ratios(seconds: Mapping[str, list[float]], *, to: str) -> dict[str, dict[str, float]]:
    """Reduce to milliseconds and ratios.

    Args:
        seconds: What `interleave` returned.
        to: The candidate that ratios are to.

    Returns:
        Name to the median in ``ms``, and of the ratio, round by round, the median and the quartiles.
    """
    table = {}
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(values, seconds[to], strict=True)], n=4)
        table[name] = {"ms": 1000 * statistics.median(values), "ratio": middle, "q1": low, "q3": high}
    return table


def bytes_kept(layer: nn.Module, x: Tensor) -> int:
    """Count what autograd keeps of a forward pass, beside input and parameters.

    Args:
        layer: The module.
        x: Its input.

    Returns:
        Bytes.
    """
    known = {each.untyped_storage().data_ptr() for each in (x, *layer.parameters())}
    kept: dict[int, int] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    del y
    return sum(kept.values())


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Count what torch holds at the most while something runs, beside what it holds before.

    Args:
        call: What runs; it is called once before.
        device: Where.

    Returns:
        Bytes.
    """
    call()
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells stderr of each start and end
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    found = profiled.profiler
    assert found is not None  # noqa: S101 - it has run
    events = [each for each in found.kineto_results.events() if each.name() == "[memory]"]
    held = accumulate(each.nbytes() for each in sorted(events, key=lambda each: each.start_ns()))
    return max(held, default=0)
