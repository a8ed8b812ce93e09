"""What a type annotation says of its values: their class, their fields, how to take one out."""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec


def bare(type_: Any) -> Any:
    """A type without what only annotates it: Annotated, NewType, an alias of Python 3.12."""
    while True:
        if typing.get_origin(type_) is typing.Annotated:
            type_ = typing.get_args(type_)[0]
        elif isinstance(type_, typing.NewType):
            type_ = type_.__supertype__
        elif type(type_).__name__ == "TypeAliasType":
            type_ = type_.__value__
        else:
            return type_


def class_of(type_: Any) -> Any:
    """The class of a type's values where it has one: `list[int]` gives `list`. Anything else comes back bare."""
    type_ = bare(type_)
    return typing.get_origin(type_) or type_


def arms_of(type_: Any) -> tuple[Any, ...]:
    """The types that a union is made of, bare; of any other type, itself."""
    type_ = bare(type_)
    if typing.get_origin(type_) in (typing.Union, types.UnionType):
        return tuple(dict.fromkeys(inner for arm in typing.get_args(type_) for inner in arms_of(arm)))
    return (type_,)


def type_name(type_: Any) -> str:
    """A type as its user wrote it, more or less, for messages."""
    return type_.__name__ if isinstance(type_, type) and not typing.get_args(type_) else str(type_)


def fields_of(type_: Any) -> tuple[str, ...] | None:
    """The field names of a record type as they are in the outside, or None where the type fixes none (dict, Any)."""
    cls = class_of(type_)
    if isinstance(cls, type) and issubclass(cls, msgspec.Struct):
        return cls.__struct_encode_fields__
    return _names(cls)


def _names(cls: Any) -> tuple[str, ...] | None:
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if typing.is_typeddict(cls):
        return tuple(cls.__annotations__)
    return None


def is_mapping(type_: Any) -> bool:
    """True if values of `type_` are dicts: fields are taken by `[]`, not by attribute."""
    cls = class_of(type_)
    return typing.is_typeddict(cls) or cls is dict


def has_field(type_: Any, name: str) -> bool:
    """True if values of `type_` have the field `name`, or may have it (Any and plain dicts may have any)."""
    found = [_has_field(class_of(arm), name) for arm in arms_of(type_) if arm not in (None, type(None))]
    return bool(found) and all(found)


def _has_field(cls: Any, name: str) -> bool:
    if cls is Any or cls is dict:
        return True
    if isinstance(cls, type) and issubclass(cls, msgspec.Struct):
        return name in cls.__struct_fields__
    return name in (_names(cls) or ())


def field_getter(type_: Any, name: str) -> Callable[[Any], Any]:
    """A function that takes field `name` out of a value of `type_`; a missing one gives None."""
    mappings = {is_mapping(arm) for arm in arms_of(type_)}
    if mappings == {True}:
        return lambda value: value.get(name)
    if mappings == {False} and Any not in arms_of(type_):
        return lambda value: getattr(value, name)
    return lambda value: value.get(name) if isinstance(value, dict) else getattr(value, name, None)
