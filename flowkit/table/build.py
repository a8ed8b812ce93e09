"""From a table's definition to one task's state of it: codecs, defaults, kinds; and whether stored state still fits."""

import copy
import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from flowkit.codec import Codec, KeyCodec
from flowkit.errors import SchemaChanged
from flowkit.record import MIN_TIME
from flowkit.table.aggregates import Compiled, compile_aggregates
from flowkit.table.aligned import AlignedState
from flowkit.table.cells import Shape
from flowkit.table.counted import CountState, counter_codec, no_count
from flowkit.table.cursor import Cursor
from flowkit.table.definition import AnyTable
from flowkit.table.keyed_timers import Timers, TimerState
from flowkit.table.panes import PaneState
from flowkit.table.process import ProcessState, ProcessTable
from flowkit.table.session import SessionState, span_codec
from flowkit.table.state import PlainState, State
from flowkit.table.stored import Stored
from flowkit.table.ticks import Ticks, TickState
from flowkit.window import Count, Cumulative, Global, Session, Sliding

Values = tuple[
    Callable[[Any], bytes],  # encode
    Callable[[bytes], Any],  # decode
    Callable[[Any], Any],  # new, from the key
    Callable[[Any], Any],  # present: a copy for a reader
    Callable[[Any], Any],  # final: handed over, the table is done with it
]


def make_state(
    table: AnyTable[Any, Any],
    cursor: Cursor,
    store: Stored,
    *,
    owns: Callable[[bytes], bool] | None = None,
    wants_closed: bool = True,
    clean_limit: int = 1_000_000,
    space: str | None = None,
) -> State:
    """The state of `table` in one task, empty until its `open`. In the store it is called `space`, or as the table."""
    keys = KeyCodec(table.key_type)
    if isinstance(table, Ticks):
        return TickState(_plain_shape(table, space), cursor, store, table=table)
    if isinstance(table, ProcessTable | Timers):
        return _process_state(table, keys, cursor, store, owns, clean_limit, space)
    compiled = compiled_of(table)
    encode, decode, new, present, final = _values(table) if compiled is None else _accumulators(compiled)
    make = default_factory(table) if compiled is None else compiled.new
    window = table.windowing
    cell_new, encode_value = new, encode
    if isinstance(window, Session):
        encode, decode = span_codec(encode, decode)
        cell_new = _no_spans
    elif isinstance(window, Count):
        encode, decode = counter_codec(encode, decode)
        cell_new = no_count
    elif table.ttl is not None and (window is None or isinstance(window, Global)):
        encode, decode, cell_new = _timed(encode, decode, new)
    if table.local or table.broadcast:
        owns = None
    elif owns is not None and keys.wire is not bytes:
        owns = _by_wire(owns, keys.wire)
    shape = Shape(
        table.name,
        keys.encode,
        keys.decode,
        encode,
        decode,
        cell_new,
        present,
        final,
        encode_value=encode_value,
        owns=owns,
        clean_limit=clean_limit,
        space=space,
        make=make if cell_new is new else None,
    )
    common: dict[str, Any] = {"lateness": table.allowed_lateness, "wants_closed": wants_closed}
    if window is None or isinstance(window, Global):
        return PlainState(shape, cursor, store, ttl=table.ttl, all_time=window is not None, early=table.early, **common)
    if isinstance(window, Session):
        merge = table.merging if compiled is None else compiled.merge
        assert merge is not None
        return SessionState(shape, cursor, store, gap=window.gap, merge=merge, new=new, early=table.early, **common)
    if isinstance(window, Count):
        assert window.n is not None
        return CountState(
            shape, cursor, store, n=window.n, every=window.every or window.n, new=new, ttl=table.ttl, **common
        )
    if compiled is not None and isinstance(window, Sliding | Cumulative):
        return PaneState(
            shape, cursor, store, window=window, pane=window.pane, merge=compiled.merge, early=table.early, **common
        )
    return AlignedState(shape, cursor, store, window=window, early=table.early, **common)


def _process_state(
    table: ProcessTable | Timers[Any],
    keys: KeyCodec,
    cursor: Cursor,
    store: Stored,
    owns: Callable[[bytes], bool] | None,
    clean_limit: int,
    space: str | None,
) -> ProcessState:
    codec = Codec("msgpack", table.process.cell_type)
    new = table.process.new
    shape = Shape(
        table.name,
        keys.encode,
        keys.decode,
        codec.encode,
        codec.decode_fast,
        lambda _key: new(),
        lambda cell: codec.decode_fast(codec.encode(cell)),
        _same,
        owns=_by_wire(owns, keys.wire) if owns is not None and keys.wire is not bytes else owns,
        clean_limit=clean_limit,
        space=space,
        make=new,
    )
    if isinstance(table, Timers):
        return TimerState(shape, cursor, store, table=table)
    return ProcessState(shape, cursor, store, table=table)


def _plain_shape(table: AnyTable[Any, Any], space: str | None) -> Shape:
    """Of a state that has no cells."""
    keys, values = KeyCodec(table.key_type), Codec("msgpack", table.value_type)
    return Shape(
        table.name, keys.encode, keys.decode, values.encode, values.decode_fast, _same, _same, _same, space=space
    )


def _by_wire(owns: Callable[[bytes], bool], wire: Callable[[bytes], bytes]) -> Callable[[bytes], bool]:
    return lambda key: owns(wire(key))


def compiled_of(table: AnyTable[Any, Any]) -> Compiled | None:
    """The table's declared aggregates as code, or None."""
    if table.source is None:
        return None
    return compile_aggregates(table.name, table.aggregates, table.source.type, table.by)


def _no_spans(_key: Any) -> list[Any]:
    return []


def _values(table: AnyTable[Any, Any]) -> Values:
    codec = Codec("msgpack", table.value_type)
    encode, decode = codec.encode, codec.decode_fast
    factory = default_factory(table)

    def new(key: Any) -> Any:
        if factory is None:
            raise KeyError(
                f"table {table.name!r} has no value for {key!r}, and {table.value_type!r} has no default: "
                "use get(), set it, or give the table default="
            )
        return factory()

    def present(value: Any) -> Any:
        return decode(encode(value))

    return encode, decode, new, present, _same


def _same(value: Any) -> Any:
    return value


def _accumulators(compiled: Compiled) -> Values:
    def new(_key: Any) -> Any:
        return compiled.new()

    return compiled.encode, compiled.decode, new, compiled.result, compiled.result


def _timed(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], new: Callable[[Any], Any]
) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any], Callable[[Any], Any]]:
    """Cells `[value, time of last use]` (ms) around a value's codec: eight bytes of time, then the value."""

    def encode_timed(cell: list[Any]) -> bytes:
        return int(cell[1]).to_bytes(8, "big", signed=True) + encode(cell[0])

    def decode_timed(data: bytes) -> list[Any]:
        return [decode(data[8:]), int.from_bytes(data[:8], "big", signed=True)]

    return encode_timed, decode_timed, lambda key: [new(key), MIN_TIME]


def default_factory(table: AnyTable[Any, Any]) -> Callable[[], Any] | None:
    """What makes the value of a new key, or None if the table has no default."""
    default, type_ = table.default, table.value_type
    if callable(default):
        return typing.cast("Callable[[], Any]", default)
    if default is not None:
        return lambda: copy.deepcopy(default)
    origin = typing.get_origin(type_) or type_
    if origin in (int, float, str, bytes, bool, list, dict, set, tuple):
        return typing.cast("Callable[[], Any]", origin)
    if typing.is_typeddict(type_):
        return dict if not type_.__required_keys__ else None
    if not isinstance(origin, type):
        return None
    if issubclass(origin, msgspec.Struct):
        fields = msgspec.structs.fields(type_)
        return None if any(field.required for field in fields) else typing.cast("Callable[[], Any]", type_)
    if dataclasses.is_dataclass(origin):
        missing = dataclasses.MISSING
        required = [f for f in dataclasses.fields(origin) if f.default is missing and f.default_factory is missing]
        return None if required else origin
    return origin if hasattr(origin, "from_state") else None


# Stored state against what the app declares now


def schema_of(table: AnyTable[Any, Any]) -> dict[str, Any]:
    """What must fit for stored state to be read: key and value types, window, version, as builtins."""
    compiled = compiled_of(table)
    value: Any = _type_schema(table.value_type) if compiled is None else list(compiled.layout)
    return {
        "key": _type_schema(table.key_type),
        "value": value,
        "window": repr(table.windowing),
        "version": table.version,
        "timed": table.ttl is not None,
        "logic": table.signature if isinstance(table, ProcessTable | Timers) else "",
    }


def _type_schema(type_: Any) -> Any:
    try:
        (root,), parts = msgspec.json.schema_components((type_,), schema_hook=lambda _: {})
    except TypeError:
        return {"name": getattr(type_, "__name__", str(type_))}
    return _without_words({"root": root, "parts": parts})


def _without_words(schema: Any) -> Any:
    """A JSON schema without titles, descriptions and defaults: what does not change how bytes are read."""
    if isinstance(schema, dict):
        drop = ("title", "description", "default")
        return {k: _without_words(v) for k, v in schema.items() if k not in drop or k == "properties"}
    if isinstance(schema, list):
        return [_without_words(item) for item in schema]
    return schema


def _reads(old: Any, new: Any) -> bool:
    """True if values written under `old` can be read under `new`: equal, or with more fields that have defaults."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return bool(old == new)
    if "properties" in old and "properties" in new:
        fields_fit = all(
            name in new["properties"] and _reads(s, new["properties"][name]) for name, s in old["properties"].items()
        )
        gained = set(new["properties"]) - set(old["properties"])
        rest = {k: v for k, v in old.items() if k not in ("properties", "required")}
        new_rest = {k: v for k, v in new.items() if k not in ("properties", "required")}
        required = set(new.get("required", ()))
        return fields_fit and not gained & required and required <= set(old.get("required", ())) and rest == new_rest
    return old.keys() <= new.keys() and all(_reads(old[key], new[key]) for key in old)


def check_schema(table: AnyTable[Any, Any], stored: dict[str, Any]) -> bool:
    """True if stored values must be migrated. Raises SchemaChanged if they can neither be read nor migrated."""
    now = schema_of(table)
    where = f"table {table.name!r}"
    if stored["window"] != now["window"]:
        raise SchemaChanged(
            f"{where}: stored with window {stored['window']}, declared with {now['window']}: give it another name, or "
            "start with an empty state directory"
        )
    if stored["key"] != now["key"]:
        raise SchemaChanged(f"{where}: the key type has changed: give the table another name")
    if stored.get("logic", "") != now["logic"]:
        raise SchemaChanged(
            f"{where}: what it does has changed from {stored.get('logic')} to {now['logic']}, and its state belongs to "
            "the former: give it another name="
        )
    if stored["timed"] != now["timed"]:
        raise SchemaChanged(f"{where}: stored {'with' if stored['timed'] else 'without'} a ttl: give it another name")
    if stored["version"] < table.version:
        missing = [v for v in range(stored["version"], table.version) if v not in table.migrations]
        if missing:
            raise SchemaChanged(
                f"{where}: stored as version {stored['version']}: add @{table.name}.migrate({missing[0]})"
            )
        return True
    if stored["version"] > table.version:
        raise SchemaChanged(f"{where}: stored as version {stored['version']}, newer than the declared {table.version}")
    if not _reads(stored["value"], now["value"]):
        if table.aggregates:
            raise SchemaChanged(f"{where}: its aggregates have changed: give the table another name")
        raise SchemaChanged(
            f"{where}: stored values have another type. A new field with a default is read as it is; for any other "
            f"change declare version={table.version + 1} and say how with @{table.name}.migrate({table.version})"
        )
    return False


def migrate_cell(table: AnyTable[Any, Any], data: bytes, version: int) -> bytes:
    """A stored cell of `version` as one of the declared version. Raises SchemaChanged if the result does not fit."""
    pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode
    codec = Codec("msgpack", table.value_type)

    def value(raw: bytes) -> bytes:
        builtins = unpack(raw)
        for step in range(version, table.version):
            builtins = table.migrations[step](builtins)
        migrated = pack(builtins)
        try:
            return codec.encode(codec.decode(migrated))
        except Exception as error:
            raise SchemaChanged(f"table {table.name!r}: a migrated value does not fit: {error}") from error

    if isinstance(table.windowing, Session):
        return pack([(*span, value(raw)) for *span, raw in unpack(data)])
    if isinstance(table.windowing, Count):
        count, last, parts = unpack(data)
        return pack((count, last, [(*part, value(raw)) for *part, raw in parts]))
    if table.ttl is not None and (table.windowing is None or isinstance(table.windowing, Global)):
        return data[:8] + value(data[8:])
    return value(data)
