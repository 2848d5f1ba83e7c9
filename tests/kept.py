"""How many bytes autograd keeps of a forward pass."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["bytes_kept"]


def bytes_kept(run: Callable[[Tensor], Tensor], x: Tensor, owner: nn.Module) -> int:
    """Count what is kept beside the input and the parameters and buffers of a module."""
    known = {each.untyped_storage().data_ptr() for each in (x, *owner.parameters(), *owner.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run(x)
    del y
    return sum(kept.values())
