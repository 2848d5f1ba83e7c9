"""What a layer was built with, so that a file can say how to build it again."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["Rebuildable", "remembers"]

_P = ParamSpec("_P")


class Rebuildable:
    """A layer that knows what it was built with; its ``__init__`` carries `remembers`.

    Example:
        >>> from rezero.layers import GatedAdapter
        >>> adapter = GatedAdapter(8, 2, activation=None)
        >>> again = GatedAdapter(**adapter.arguments())
        >>> again.load_state_dict(adapter.state_dict())
        <All keys matched successfully>
    """

    _arguments: dict[str, Any]

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that build the layer anew, defaults included.

        Returns:
            Name to value, for JSON as they are: without ``device`` and ``dtype``, which depend on where the layer is
            built.
        """
        return dict(self._arguments)


_Layer = TypeVar("_Layer", bound=Rebuildable)


def remembers(init: Callable[Concatenate[_Layer, _P], None]) -> Callable[Concatenate[_Layer, _P], None]:
    """Let the ``__init__`` of a `Rebuildable` note its arguments.

    Args:
        init: The ``__init__``, each argument with a name of its own.

    Returns:
        The same, which notes them once it is through.
    """
    names = signature(init)

    @wraps(init)
    def noting(self: _Layer, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        init(self, *args, **kwargs)
        bound = names.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = list(bound.arguments.items())[1:]  # without self
        self._arguments = {name: value for name, value in given if name not in {"device", "dtype"}}

    return noting
