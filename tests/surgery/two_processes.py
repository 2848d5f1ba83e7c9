"""What each of two processes does with converted models; a module of its own, so that they can import it by name."""

import gc

import torch
import torch.distributed as dist

import tests.operators  # noqa: F401 - before anything imports torchvision


def work(rank: int, folder: str) -> None:
    """Shard and replicate."""
    from tests.surgery.test_contract import CASES, replicate_and_check, shard_and_check

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        for name in ("gpt2 layer", "encoder layer channel", "hand-written"):
            shard_and_check(CASES[name], world_size=2)
            replicate_and_check(CASES[name])
        gc.collect()  # replicas hold the group in cycles, and gloo aborts if it is freed with the interpreter
        dist.barrier()
    finally:
        dist.destroy_process_group()
