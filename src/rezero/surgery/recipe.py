"""What a conversion changes, as plain data: applied to a model, stored beside its weights, applied again."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rezero.errors import UsageError

__all__ = ["GateRecipe", "Recipe", "SilentRecipe", "Undo"]


@dataclass(frozen=True)
class GateRecipe:
    """A gate and where it goes.

    Attributes:
        leaf: Qualified name of the module.
        shape: Shape of the scale beside the branch: ``(1,)``, ``(C,)`` or ``(C, 1, 1)``.
        init_value: Start of the gate (dimensionless).
        activation: None or ``"tanh"``.
        parameter: Name of the gate's parameter.
        branches: How many branches it scales.
        owner: The module whose gate it shares; None if it has its own.
        reader: The module that reads the leaf's weights without calling it; None if there is none.
        moved: The activation module that is applied to the branch instead of to the sum; None for none.
        read_by: Other modules whose code reads the leaf's parameters, so that a gate can't be folded into them.
        reused: Whether the module is a LayerScale, whose own parameter becomes the gate.
        blended: Whether the module is a layer, whose whole change of its input is gated.
    """

    leaf: str
    shape: tuple[int, ...] = (1,)
    init_value: float = 0.0
    activation: str | None = None
    parameter: str = "alpha"
    branches: int = 1
    owner: str | None = None
    reader: str | None = None
    moved: str | None = None
    read_by: tuple[str, ...] = ()
    reused: bool = False
    blended: bool = False

    @property
    def branch(self) -> str:
        """Name of the module that ends the branch: of the attention where the gate is on its output projection."""
        return self.leaf if self.reader is None else self.leaf.removesuffix(".out_proj")


@dataclass(frozen=True)
class SilentRecipe:
    """A module that returns zeros.

    Attributes:
        module: Qualified name of the module.
        axis: The axis, counted from the end, along which the zeros are of another size than the input; None for none.
        size: That size.
        items: Length of the tuple of which the zeros are the first item; 0 if they come alone.
    """

    module: str
    axis: int | None = None
    size: int = 0
    items: int = 0


@dataclass(frozen=True)
class Recipe:
    """All changes of a conversion.

    Attributes:
        gates: The gates.
        norms: Norms that return their input.
        frozen: Their parameters that nothing else reads.
        activations: Activation modules that return their input.
        silent: Modules that return zeros, because the branches they served were pruned.
        dropped: Parameters and buffers that are gone.
        version: Of this form.
    """

    gates: tuple[GateRecipe, ...]
    norms: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    silent: tuple[SilentRecipe, ...] = ()
    dropped: tuple[str, ...] = ()
    version: int = 1

    def __bool__(self) -> bool:
        """Return whether anything is changed."""
        return bool(self.gates or self.norms or self.activations or self.silent)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the gates' parameters."""
        return tuple(f"{gate.leaf}.{gate.parameter}".lstrip(".") for gate in self.gates if gate.owner is None)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that it speaks of."""
        gated = (name for gate in self.gates for name in (gate.leaf, gate.owner, gate.reader, gate.moved))
        silent = (each.module for each in self.silent)
        return (*(name for name in gated if name is not None), *self.norms, *self.activations, *silent)

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, source: str) -> "Recipe":
        """Read what `to_json` returned.

        Args:
            data: The data.
            source: Where it comes from, for errors.

        Returns:
            The recipe.

        Raises:
            UsageError: If it is damaged, or of a newer form.
        """
        version = data.get("version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > cls.version:
            raise UsageError(f"{source} was written by a newer version of rezero: update it")
        try:
            content = {each.name: data[each.name] for each in fields(cls)}
            content["gates"] = [_read_gate(each) for each in content["gates"]]
            content["silent"] = [_read(SilentRecipe, each) for each in content["silent"]]
            return _read(cls, content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{source} holds no recipe of a conversion, or is damaged: {error!r}") from error


def _read_gate(data: Any) -> GateRecipe:
    gate = _read(GateRecipe, data)
    long = [size for size in gate.shape if size != 1]
    if not (gate.reused or gate.shape) or len(long) > 1 or min(long, default=1) < 1:
        raise ValueError(f"shape of a gate with {gate.shape}")
    if gate.activation not in (None, "tanh") or not gate.parameter.isidentifier() or not math.isfinite(gate.init_value):
        raise ValueError(f"activation, parameter or init_value of {gate}")
    return gate


_Kind = TypeVar("_Kind", "GateRecipe", "SilentRecipe", "Recipe")


def _read(kind: type[_Kind], data: Any) -> _Kind:
    """Make what a mapping describes; each field must be of its type."""
    content: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in data.items()}
    made = kind(**content)
    for name, expected in get_type_hints(kind).items():
        if not _is_a(getattr(made, name), expected):
            raise TypeError(f"{name} is {getattr(made, name)!r}")
    return made


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(each, get_args(kind)[0]) for each in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


@dataclass
class Undo:
    """Steps that put a model back, done in reverse.

    Attributes:
        steps: The steps.
    """

    steps: list[Callable[[], object]] = field(default_factory=list)

    def __call__(self) -> None:
        """Do the steps, the last one first; a second call does nothing."""
        while self.steps:
            self.steps.pop()()
