"""Types and ranges of the fields of configuration dataclasses."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torchrl_agentmixer.schedules import Schedule, schedule_or_number


def check_fields(config: Any, ranges: Mapping[str, str] | None = None) -> None:
    """Check the fields of a dataclass by its annotations; whole floats become integers.

    Args:
        config (dataclass): checked, and changed in place where a type allows several forms: a list
            for a tuple, 1e4 for an integer, the arguments of a schedule for a schedule.
        ranges (mapping, optional): interval of each number by the field's name, such as
            ``"[0, 1)"`` or ``"(0, inf)"``. It holds for all numbers of a list or schedule.

    Raises:
        TypeError: for a value of another type.
        ValueError: for a number outside of its interval.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Config:
        ...     epochs: int = 5
        ...     def __post_init__(self):
        ...         check_fields(self, {"epochs": "[1, inf)"})
        >>> Config(1e2)
        Config(epochs=100)
        >>> Config(0)
        Traceback (most recent call last):
            ...
        ValueError: Config: expected `epochs` >= 1, got 0.
        >>> Config(None)
        Traceback (most recent call last):
            ...
        TypeError: Config: expected `epochs` to be int, got None.
    """
    cls: Any = type(config)
    owner, hints = cls.__name__, _hints(cls)
    for f in fields(config):
        value, hint = getattr(config, f.name), hints[f.name]
        try:
            converted = _convert(value, hint)
        except TypeError:
            choices = Literal in (get_origin(hint), *map(get_origin, get_args(hint)))
            kind = ValueError if choices else TypeError
            raise kind(
                f"{owner}: expected `{f.name}` to be {_describe(hint)}, got {value!r}."
            ) from None
        except ValueError as error:  # of a schedule
            raise ValueError(f"{owner}: `{f.name}`: {error}") from error
        if converted is not value:
            object.__setattr__(config, f.name, converted)  # also of a frozen dataclass
        interval = (ranges or {}).get(f.name)
        if interval is None:
            continue
        if not all(_contains(interval, number) for number in _numbers(converted)):
            raise ValueError(f"{owner}: expected `{f.name}` {_words(interval)}, got {value!r}.")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _convert(value: Any, hint: Any) -> Any:
    """The value as the type has it; a TypeError if it is of another type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_any(value, arguments)
    if origin is Literal:
        return _require(value, any(value is a or value == a for a in arguments))
    if origin is tuple or origin is list:
        _require(value, isinstance(value, list | tuple))
        one = origin is list or arguments[-1] is Ellipsis
        inner = arguments[:1] * len(value) if one else arguments
        _require(value, len(inner) == len(value))
        converted = origin(_convert(v, h) for v, h in zip(value, inner, strict=True))
        return value if converted == value and type(value) is origin else converted
    if isinstance(value, bool) and hint in (int, float):
        raise TypeError(value)
    if hint is int:
        whole = isinstance(value, float) and value.is_integer()
        _require(value, whole or isinstance(value, Integral))
        return value if type(value) is int else int(value)
    return _require(value, isinstance(value, Real if hint is float else (origin or hint)))


def _convert_any(value: Any, hints: tuple) -> Any:
    if Schedule in hints and isinstance(value, Mapping):
        try:
            return schedule_or_number(value)
        except TypeError as error:  # a missing argument
            raise ValueError(error) from error
    for hint in hints:
        try:
            return _convert(value, hint)
        except TypeError:
            continue
    raise TypeError(value)


def _require(value: Any, valid: bool) -> Any:
    if not valid:
        raise TypeError(value)
    return value


def _numbers(value: Any) -> Iterator[float]:
    """Numbers of a value, of a list, or of the ends of a schedule."""
    if isinstance(value, Schedule):
        yield from (value.start, value.end)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, Real):
        yield value  # type: ignore[misc]


def _ends(interval: str) -> list[float]:
    return [float(end) if "." in end or "inf" in end else int(end) for end in _split(interval)]


def _split(interval: str) -> list[str]:
    return interval[1:-1].replace(" ", "").split(",")


def _contains(interval: str, number: float) -> bool:
    low, high = _ends(interval)
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def _words(interval: str) -> str:
    low, high = _split(interval)
    if high == "inf":
        return f"{'>=' if interval[0] == '[' else '>'} {low}"
    return f"in {interval}"


def _describe(hint: Any) -> str:
    """A type in words: ``tuple[int, ...]`` is a list of int."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(argument) for argument in arguments))
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(_describe(a) for a in arguments)}"
    if origin in (list, tuple):
        return f"a list of {_describe(arguments[0])}"
    kind = origin or hint
    if kind is types.NoneType:
        return "null"
    if is_dataclass(kind) or not issubclass(kind, Mapping):
        return kind.__name__
    return "a mapping"
