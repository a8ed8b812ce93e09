"""How generated code takes a field out of an event, and what the field's type says about its values.

    event type                          text for the field `amount`
    Record, dataclass, any class        e.amount
    TypedDict                           e["amount"], or e.get("amount") where the key may be missing
    dict                                e.get("amount")
    Any, dicts and objects mixed        a function that looks at each event
    a callable instead of a name        that callable

A value that the type says is always there is used without a check for None.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec

from flowkit.codec import field_getter

Field: TypeAlias = str | Callable[[Any], Any]
"""The name of a field, or a function of an event. What a function is annotated to return is its values' type;
without that it has to return builtins."""

MISSING = (type(None), msgspec.UnsetType)


@dataclass(frozen=True)
class Value:
    """What an aggregate looks at in each event.

    `source` is Python text over `e`; names in braces are `objects`. `type` is without None; `nullable` is True if the
    value may be None or missing.
    """

    field: Field
    source: str
    type: Any
    nullable: bool
    objects: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """The field's name, or the function's."""
        return self.field if isinstance(self.field, str) else getattr(self.field, "__qualname__", repr(self.field))


def value_of(event_type: Any, field: Field, *, required: bool = False) -> Value:
    """How to take `field` from events of `event_type`. Raises LookupError if they have no such field.

    With `required` a key that is missing from a dict is an error of that event, instead of None.
    """
    if not isinstance(field, str):
        return _value(field, "{get}(e)", returned(field), {"get": field})
    events = [arm for arm in arms(event_type) if arm not in MISSING]
    type_ = _union(_field_type(arm, field) for arm in events)
    dicts = [_is_dict(arm) for arm in events]
    if len(events) < len(arms(event_type)) or Any in events or any(dicts) != all(dicts):
        return _value(field, "{get}(e)", type_, {"get": field_getter(Any, field)}, nullable=True)
    if all(dicts):
        sure = required or all(field in getattr(arm, "__required_keys__", ()) for arm in events)
        return _value(field, f"e[{field!r}]" if sure else f"e.get({field!r})", type_, {}, nullable=not sure)
    return _value(field, f"e.{field}", type_, {})


def _value(field: Field, source: str, type_: Any, objects: dict[str, Any], *, nullable: bool = False) -> Value:
    kinds = arms(type_)
    if msgspec.UnsetType in kinds:
        source, objects = "{known}(" + source + ")", {**objects, "known": _known}
    if datetime in kinds:
        source, objects = "{utc}(" + source + ")", {**objects, "utc": _utc}
    if nullable or Any in kinds or any(kind in MISSING for kind in kinds):
        return Value(field, source, without_none(type_), True, objects)
    return Value(field, source, type_, False, objects)


def _known(value: Any) -> Any:
    return None if value is msgspec.UNSET else value


def _utc(value: Any) -> Any:
    """Aware times in UTC, as they come back from the store: results must not depend on a restart."""
    aware = isinstance(value, datetime) and value.tzinfo is not None and value.tzinfo is not UTC
    return value.astimezone(UTC) if aware else value


def _field_type(event_type: Any, field: str) -> Any:
    """The type of `field`, as declared. Raises LookupError."""
    if event_type is Any:
        return Any
    origin = typing.get_origin(event_type) or event_type
    if origin is dict:
        return (typing.get_args(event_type) or (Any, Any))[1]
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
        fields = {info.name: info.type for info in msgspec.structs.fields(event_type)}
    else:
        try:
            fields = typing.get_type_hints(origin, include_extras=True)
        except (NameError, TypeError):  # a name that only its own module knows, or no class
            fields = dict.fromkeys(getattr(origin, "__annotations__", ()), Any)
    if field not in fields:
        known = ", ".join(fields) or "none"
        raise LookupError(f"{field!r} is no field of {shown(event_type)}, whose fields are: {known}")
    return fields[field]


def _is_dict(type_: Any) -> bool:
    return typing.is_typeddict(type_) or (typing.get_origin(type_) or type_) is dict


def returned(function: Callable[..., Any]) -> Any:
    """The type that a function says it returns; of a class, the class itself."""
    if isinstance(function, type):
        return function
    try:
        return typing.get_type_hints(function, include_extras=True).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any


# --- types ----------------------------------------------------------------------------------------------------------


def shown(type_: Any) -> str:
    """A type as its user wrote it, more or less."""
    plain = isinstance(type_, type) and not typing.get_args(type_)
    return type_.__name__ if plain else str(type_).replace("typing.", "")


def arms(type_: Any) -> tuple[Any, ...]:
    """The plain types that values may have: unions opened, annotations and new names taken off, literals' types.

    >>> arms(typing.Annotated[int, "years"] | typing.Literal["young", "old"])
    (<class 'int'>, <class 'str'>)
    """
    origin = typing.get_origin(type_)
    if origin in (typing.Union, types.UnionType):
        return tuple(dict.fromkeys(kind for arm in typing.get_args(type_) for kind in arms(arm)))
    if origin is typing.Literal:
        return tuple(dict.fromkeys(map(type, typing.get_args(type_))))
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return arms(typing.get_args(type_)[0])
    if isinstance(type_, typing.NewType):
        return arms(type_.__supertype__)
    if isinstance(type_, typing.TypeVar):
        return arms(type_.__bound__) if type_.__bound__ is not None else (Any,)
    if hasattr(type_, "__value__"):  # type X = …, from Python 3.12
        return arms(type_.__value__)
    return (Any,) if type_ is object else (type(None),) if type_ is None else (type_,)


def without_none(type_: Any) -> Any:
    """The type of the values that are there."""
    if typing.get_origin(type_) not in (typing.Union, types.UnionType):
        return Any if arms(type_) in (MISSING[:1], MISSING[1:]) else type_
    return _union(arm for arm in typing.get_args(type_) if arm not in MISSING)


def _union(types_: Iterable[Any]) -> Any:
    found = tuple(types_)
    return typing.Union.__getitem__(found) if found else Any


def optional(type_: Any) -> Any:
    """The type with None."""
    return Any if type_ is Any else typing.Optional.__getitem__(type_)


def number(type_: Any) -> Any:
    """int, float, Decimal or Any: what a sum of such values is. None if they cannot all be added."""
    kinds = {_number(arm) for arm in arms(type_)}
    if None in kinds:
        return None
    if Any in kinds:
        return Any
    if Decimal in kinds:
        return None if float in kinds else Decimal
    return float if float in kinds else int


def _number(arm: Any) -> Any:
    if arm is Any:
        return Any
    return next((kind for kind in (int, float, Decimal) if isinstance(arm, type) and issubclass(arm, kind)), None)


def may_be_nan(type_: Any) -> bool:
    """True if a value may differ from itself."""
    return any(_number(arm) in (float, Decimal, Any) for arm in arms(type_))


def may_be_wide(type_: Any) -> bool:
    """True if a value, or a key of it, may be an integer beyond 64 bits, for which msgpack has no form."""
    kinds = arms(type_)
    keys = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is dict]
    return any(_number(kind) in (int, Any) and kind is not bool for kind in (*kinds, *keys))


def is_ordered(type_: Any) -> bool:
    """True if any two values can be compared by `<`."""
    kinds = arms(type_)
    if Any in kinds:
        return True
    if len(kinds) > 1:
        return number(type_) is not None or all(isinstance(kind, type) and issubclass(kind, str) for kind in kinds)
    origin = typing.get_origin(kinds[0]) or kinds[0]
    if not isinstance(origin, type) or issubclass(origin, dict | set | frozenset):
        return False  # sets have a `<`, but it is no order of all of them
    if issubclass(origin, list | tuple):
        return all(item is Ellipsis or is_ordered(item) for item in typing.get_args(kinds[0]))
    if issubclass(origin, msgspec.Struct):
        return bool(origin.__struct_config__.order)
    return getattr(origin, "__lt__", None) is not getattr(object, "__lt__", None)


def is_hashable(type_: Any) -> bool:
    """True if values can be keys of a dict."""
    for kind in arms(type_):
        origin = typing.get_origin(kind) or kind
        if kind is not Any and (not isinstance(origin, type) or origin.__hash__ is None):
            return False
        if isinstance(origin, type) and issubclass(origin, msgspec.Struct) and not origin.__struct_config__.frozen:
            return False
        if origin is tuple and not all(item is Ellipsis or is_hashable(item) for item in typing.get_args(kind)):
            return False
    return True


def is_builtin(type_: Any) -> bool:
    """True if values come back from msgpack as what they were, without their type being told."""
    for kind in arms(type_):
        origin = typing.get_origin(kind) or kind
        if origin not in (Any, bool, int, float, str, bytes, type(None), list, dict):
            return False
        if not all(map(is_builtin, typing.get_args(kind))):
            return False
    return True
