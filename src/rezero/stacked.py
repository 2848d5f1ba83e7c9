"""One block run with the numbers of many layers, which lie in stacked parameters.

A place is the qualified name of a parameter in the block, such as ``self_attn.out_proj.weight``. The layers' numbers at
a place are one tensor, ``(L, *shape)``, which is taken apart once: its gradient is then put together once, where
indexing it a layer would make a gradient of full size a layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rezero.kernels.deep_stack import cut_layers

__all__ = ["Stacked", "draw_layers", "run_layers", "stack_child"]


def _of_module(name: str) -> Any:
    """Make a method that registers a hook with the module that is called for every layer."""

    def register(self: "Stacked", *args: Any, **kwargs: Any) -> Any:
        return getattr(self._module[0], name)(*args, **kwargs)

    return register


class Stacked(nn.Module):
    """The parameters of a module for all layers: by the same names, with an axis of layers in front.

    Children without parameters are the module's own; the others are stacked in turn. It is never called: hooks and
    plain attributes are those of the module, which is called once a layer.

    Args:
        module: The module.
        depth: Number of layers ``L``. Each starts with the module's values.
    """

    _module: tuple[nn.Module]  # in a tuple, so that it is none of ours
    register_forward_pre_hook = _of_module("register_forward_pre_hook")
    register_forward_hook = _of_module("register_forward_hook")
    register_full_backward_pre_hook = _of_module("register_full_backward_pre_hook")
    register_full_backward_hook = _of_module("register_full_backward_hook")

    def __init__(self, module: nn.Module, depth: int) -> None:
        super().__init__()
        self._module = (module,)
        for name, parameter in module.named_parameters(recurse=False):
            values = parameter.detach().expand(depth, *parameter.shape).clone()
            self.register_parameter(name, nn.Parameter(values))
        for name, child in module.named_children():
            self.add_module(name, stack_child(child, depth))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_module" not in vars(self) or name not in vars(self._module[0]):
                raise
            return vars(self._module[0])[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in vars(self) and "_module" in vars(self) and name in vars(self._module[0]):
            setattr(self._module[0], name, value)
        else:
            super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Draw each layer as the module draws itself."""
        draw_layers(self._module[0], dict(self.named_parameters()))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the module in all layers."""
        self._module[0].train(mode)
        return super().train(mode)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return ", ".join(f"{name}={tuple(each.shape)}" for name, each in self.named_parameters(recurse=False))


def stack_child(child: nn.Module, depth: int) -> nn.Module:
    """Return what stands for a module of the block in a stack: the module itself, where it has no parameters."""
    return child if next(child.parameters(), None) is None else Stacked(child, depth)


def draw_layers(block: nn.Module, stacked: Mapping[str, Tensor]) -> None:
    """Let each layer draw its numbers, one after the other, by the ``reset_parameters`` of the block.

    Args:
        block: The block; one without ``reset_parameters`` draws nothing.
        stacked: Place to tensor, ``(L, *shape)``, changed in place.

    Raises:
        TypeError: If a tensor is sharded, as its layers can't be changed in place then.
    """
    if not callable(getattr(block, "reset_parameters", None)):
        return
    for place, tensor in stacked.items():
        if hasattr(tensor, "device_mesh"):
            raise TypeError(
                f"expected whole tensors to draw the layers in: {place} is a {type(tensor).__name__}; call "
                "reset_parameters before the stack is sharded"
            )
    layer, slots = _open(block, stacked)
    with torch.no_grad():
        for slices in zip(*(tensor.detach().unbind() for tensor in stacked.values()), strict=True):
            _fill(slots, slices)
            layer.reset_parameters()  # type: ignore[operator]


def run_layers(block: nn.Module, stacked: Mapping[str, Tensor], x: Tensor, *, segments: bool, **options: Any) -> Tensor:
    """Call the block once a layer, each time with the layer's numbers, on what the layer before returned.

    Under ``torch.compile`` this is one loop in the graph (``scan``, a prototype of torch), so that one layer is
    compiled, whatever the depth.

    Args:
        block: The block, ``(*) -> (*)``.
        stacked: Place to tensor, ``(L, *shape)``, for every parameter of the block.
        x: What the first layer gets.
        segments: Whether to keep for the backward pass what goes into segments of about ``sqrt(L)`` layers only, and
            to run them again. Without effect under ``torch.compile`` and ``torch.func``.
        **options: Passed on to each layer.

    Returns:
        What the last layer returns.
    """
    block = _copy(block) if segments else block  # whose modes stay, if they change before a segment is run again

    def run(x: Tensor, layers: Sequence[Sequence[Tensor]]) -> Tensor:
        layer, slots = _open(block, stacked)
        for slices in layers:
            _fill(slots, slices)
            x = layer(x, **options)
        return x

    is_transformed, is_compiling = torch._C._are_functorch_transforms_active(), torch.compiler.is_compiling()
    if is_compiling and not (is_transformed or torch.compiler.is_exporting()):
        from torch._higher_order_ops.scan import scan

        y: Tensor = scan(lambda x, slices: (run(x, [slices]), ()), x, list(stacked.values()))[0]
        return y
    layers = list(zip(*(tensor.unbind() for tensor in stacked.values()), strict=True))
    if not segments or is_transformed or is_compiling or not torch.is_grad_enabled():
        return run(x, layers)
    for part in cut_layers(len(layers)):
        x = checkpoint(run, x, layers[part], use_reentrant=False)
    return x


_Slots = list[tuple[dict[str, Any], str]]


def _open(block: nn.Module, places: Iterable[str]) -> tuple[nn.Module, _Slots]:
    """Return a copy of a block, and where its parameters are.

    They are exchanged there for those of a layer. `torch.func.functional_call` does the same, in more time a layer and
    in the block itself, where calls in several threads would meet.
    """
    layer = _copy(block)
    modules = dict(layer.named_modules())
    names = (place.rpartition(".") for place in places)
    return layer, [(modules[owner]._parameters, role) for owner, _, role in names]


def _fill(slots: _Slots, slices: Sequence[Tensor]) -> None:
    for (owner, role), numbers in zip(slots, slices, strict=True):
        owner[role] = numbers


def _copy(module: nn.Module) -> nn.Module:
    """Copy the modules of a tree, but nothing that they hold."""
    twin: nn.Module = object.__new__(type(module))
    vars(twin).update(vars(module))
    twin._parameters = module._parameters.copy()
    twin._modules = {name: None if child is None else _copy(child) for name, child in module._modules.items()}
    return twin
