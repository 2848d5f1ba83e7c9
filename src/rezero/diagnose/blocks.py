"""Which modules of a model follow one another as its blocks."""

from collections.abc import Iterator

from torch import nn

from rezero.errors import UsageError
from rezero.gate import Gate

__all__ = ["block_names"]


def block_names(model: nn.Module) -> list[str]:
    """Name the blocks of a model, in the order of its module tree.

    They are the children of the longest list of modules (``nn.ModuleList`` or ``nn.Sequential``; of two equally long
    ones that with more parameters), and where they all have one class, the modules of that class in other lists too:
    the stages of a convolutional network, or the two halves of an encoder and decoder. A model without any list has
    the owners of its gates as blocks.

    Args:
        model: The model.

    Returns:
        Qualified names.

    Raises:
        UsageError: If there is neither a list nor a gate.

    Example:
        >>> from rezero.layers import MLP
        >>> block_names(MLP(4, 8, 3, 2))
        ['blocks.0', 'blocks.1', 'blocks.2']
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module)
    }
    if not lists:
        owners = [name.rpartition(".")[0] for name, module in model.named_modules() if isinstance(module, Gate)]
        if not owners:
            raise UsageError(
                "the model has no list of blocks (nn.ModuleList or nn.Sequential): name the layers, as in "
                "layers=['encoder.0', 'encoder.1']"
            )
        return owners
    longest = max(lists, key=lambda name: (len(lists[name]), _size(lists[name])))
    kinds = {type(child) for child in lists[longest]}
    [kind] = kinds if len(kinds) == 1 else [None]
    alike = kind is not None and any(True for _ in lists[longest][0].children())
    chosen: list[str] = []
    for name, module in lists.items():
        if name != longest and not alike:
            continue
        children = {f"{name}.{key}".lstrip("."): child for key, child in module.named_children()}
        chosen += [each for each, child in children.items() if name == longest or type(child) is kind]
    inside = {*chosen}
    return [name for name in chosen if not inside.intersection(_around(name))]


def _around(name: str) -> Iterator[str]:
    """Yield the names of the modules that a module lies in."""
    while name := name.rpartition(".")[0]:
        yield name


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
