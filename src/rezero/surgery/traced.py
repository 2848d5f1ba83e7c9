"""What happened in one forward pass: which operation made which tensor inside which module."""

from dataclasses import dataclass, field

from torch import nn

__all__ = ["Call", "Op", "Trace", "Value"]


@dataclass(eq=False)
class Value:
    """A tensor as an operation left it; writing into it makes another value.

    Attributes:
        index: Its place among the values.
        shape: Its sizes.
        op: The operation that made it; None for inputs, parameters and constants.
        parameter: Its name, if it is a parameter of the model.
        users: The operations that read it.
        returned: The module calls that returned it, alone or as their first item, the innermost first.
        escapes: Whether the model returned it.
        data: Whether it depends on what the model was given.
        whole: Whether its numbers are whole, or truth values: no gradient goes through them.
        below: The values that it was computed from, as bits.
    """

    index: int
    shape: tuple[int, ...]
    op: "Op | None" = None
    parameter: str | None = None
    data: bool = False
    whole: bool = False
    users: "list[Op]" = field(default_factory=list)
    returned: "list[Call]" = field(default_factory=list)
    escapes: bool = False
    below: int = 0

    def descends_from(self, other: "Value") -> bool:
        """Return whether this was computed from the other."""
        return bool(self.below >> other.index & 1)


@dataclass(eq=False)
class Op:
    """A call of a torch function.

    Attributes:
        index: Its place among the operations.
        name: Name of the function.
        inputs: The tensors that it was given.
        outputs: The tensors that it returned or wrote into.
        call: The innermost module call it happened in.
        cuts: Whether no gradient goes back through it, because it detaches, or the model disabled gradients.
    """

    index: int
    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    call: "Call"
    cuts: bool = False


@dataclass(eq=False)
class Call:
    """A call of a module.

    Attributes:
        module: The module.
        name: Its qualified name; empty for the model.
        parent: The call it happened in; None for the model's own.
        number: How many calls of the same module there were before.
        first: Number of operations before it.
        last: Number of operations at its end.
        inputs: The tensors that it was given.
        output: The tensor that it returned, alone or as its first item.
        others: The other tensors that it returned.
    """

    module: nn.Module
    name: str
    parent: "Call | None"
    number: int
    first: int
    last: int = 0
    inputs: tuple[Value, ...] = ()
    output: Value | None = None
    others: tuple[Value, ...] = ()

    @property
    def keeps_shape(self) -> bool:
        """Whether it returns a tensor of the size of one that it was given."""
        return self.output is not None and any(given.shape == self.output.shape for given in self.inputs)

    def within(self, other: "Call") -> bool:
        """Return whether this happened inside the other, or is it."""
        call: Call | None = self
        while call is not None:
            if call is other:
                return True
            call = call.parent
        return False


@dataclass(frozen=True)
class Trace:
    """What happened in one forward pass.

    Attributes:
        ops: The operations, in order.
        calls: The module calls, in the order of their beginning.
        values: The tensors.
        real: Whether it was run with the model's own numbers, and not with shapes alone.
    """

    ops: list[Op]
    calls: list[Call]
    values: list[Value]
    real: bool
