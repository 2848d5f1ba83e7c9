"""Change the class of a module in place: it stays what it is for everybody else."""

import types
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from torch import nn

from rezero.errors import UsageError

__all__ = ["Changed", "has_own_forward", "restore_class", "rezero_attributes", "swap_class"]

if TYPE_CHECKING:
    _Module = nn.Module
else:  # a mixin, which the class of any module can follow
    _Module = object


class Changed(_Module):
    """A module of somebody's class, changed by `rezero.convert_`.

    Its class is made on the spot, from one of those of `gated` and `passed` and the module's own, so `isinstance` still
    holds, the keys of the state dict stay, and no hook stands in the way of a compiler.
    """

    original_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class made on the spot can't be found by its name, so a copy or a pickle names what it is made from.
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        _, arguments, *rest = reduced
        made = next(kind for kind in type(self).__mro__ if "original_class" in vars(kind))
        change = made.__bases__[0]
        return _rebuild, (change, self.original_class, tuple(arguments[1:])), *rest


_ATTRIBUTES = (
    "rezero_gate",
    "rezero_owner",
    "rezero_moved",
    "rezero_weights",
    "rezero_reading",
    "rezero_silent",
    "rezero_graft",
)


@cache
def _changed_class(change: type[Changed], original: Any) -> type[Changed]:
    try:
        made: Any = types.new_class(f"{change.__name__}{original.__name__}", (change, original))
    except Exception as error:  # somebody's __init_subclass__ may refuse in any way
        raise UsageError(
            f"expected a class that a gated one can be derived from, got {original.__name__}: {error}; leave its "
            "branches out with filter_fn, or put them into a module around it"
        ) from error
    made.__module__, made.__doc__ = original.__module__, original.__doc__
    made.original_class = original
    made.__init__ = _init_of(original)
    if hasattr(original, "__deepcopy__"):
        made.__deepcopy__ = _deepcopy_of(original)
    return made  # type: ignore[no-any-return]


def _init_of(original: Any) -> Any:
    """Return what lets ``type(layer)(...)`` make a new layer of the original class: it is nobody's branch."""

    @wraps(original.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__class__ = original
        original.__init__(self, *args, **kwargs)

    return init


def _deepcopy_of(original: Any) -> Any:
    """Return what refuses a copy that its own class made anew, and so without the gate."""

    @wraps(original.__deepcopy__)
    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        twin = original.__deepcopy__(self, memo)
        if type(twin) is not type(self):
            raise UsageError(
                f"{original.__name__}.__deepcopy__ makes a {type(twin).__name__} without what the conversion changed: "
                "let it copy vars(self), or copy the model before the conversion"
            )
        return twin

    return deepcopy


def swap_class(module: nn.Module, change: type[Changed]) -> None:
    """Change a module's class in place.

    Args:
        module: Any module.
        change: What becomes of it.
    """
    original = module.original_class if isinstance(module, Changed) else type(module)
    module.__class__ = _changed_class(change, original)  # type: ignore[arg-type]


def has_own_forward(module: nn.Module) -> bool:
    """Return whether a module runs a ``forward`` that is not its class's, as with the hooks of accelerate.

    Args:
        module: Any module. After accelerate has removed a hook, the class's own is set on it.

    Returns:
        Whether a change of its class would be passed by.
    """
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def restore_class(module: nn.Module) -> None:
    """Give a changed module its own class back, and take away what the change had added beside its parameters.

    Args:
        module: A module whose class `swap_class` changed.
    """
    module.__class__ = module.original_class  # type: ignore[assignment]
    for name in ("forward", *_ATTRIBUTES):
        vars(module).pop(name, None)


def rezero_attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a changed module knows of its change."""
    return {name: vars(module)[name] for name in _ATTRIBUTES if name in vars(module)}


def _rebuild(change: type[Changed], original: type[nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    kind = _changed_class(change, original)  # type: ignore[arg-type]
    return kind.__new__(kind, *arguments)
