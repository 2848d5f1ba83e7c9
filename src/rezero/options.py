"""Kinds of options that the command line reads more strictly than its framework does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

__all__ = ["HowMany", "Place", "Whole"]


def _read_whole_number(_: object, tokens: Sequence[Token]) -> int:
    # The framework's own reading of an int takes 2.5 for 2.
    text = tokens[0].value
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f'expected a whole number, got "{text}"') from error


def _read_how_many(_: object, tokens: Sequence[Token]) -> str:
    text = tokens[0].value
    if text != "all" and not text.isdecimal():
        raise ValueError(f'expected a number, or all, got "{text}"')
    return text


def _read_path(_: object, tokens: Sequence[Token]) -> Path:
    # An empty name, as an unset variable of the shell leaves it, would mean the folder one is in.
    if not tokens[0].value:
        raise ValueError('expected a path, got ""')
    return Path(tokens[0].value)


Whole = Annotated[int | None, Parameter(converter=_read_whole_number)]
Place = Annotated[Path, Parameter(converter=_read_path)]
HowMany = Annotated[str, Parameter(converter=_read_how_many)]
