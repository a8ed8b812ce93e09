"""Configuration: typed settings from the environment, and a worker's options with defaults right for production."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, dataclass_transform

import msgspec

from flowkit.errors import ConfigError

Guarantee = Literal["exactly once", "at least once"]
"""How often what an event causes is seen outside if a worker dies. State is exact in any case, but for that of tasks
which read what other tasks sent: at least once."""


Start = Literal["earliest", "latest"] | int | Mapping[int, int]
"""Where a topic is read from if there is no position yet: one of its ends, a time (ms: the first record that is not
older), or offsets by partition (others from the earliest)."""

OutOfRange = Literal["fail", "earliest", "latest"]
"""What to do if the position is not in the topic any more, or not yet: records were deleted, or it was made anew."""


class _SettingsMeta(msgspec.StructMeta):
    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], prefix: str | None = None, **options: Any
    ) -> Any:
        if prefix is not None:
            namespace["__settings_prefix__"] = prefix
        return super().__new__(mcs, name, bases, namespace, **options)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Settings(msgspec.Struct, metaclass=_SettingsMeta, frozen=True, kw_only=True):
    """Typed configuration of a service, from the environment. A class without `prefix` has that of its base.

    >>> class Limits(Settings, prefix="FRAUD_"):
    ...     threshold: float = 0.8
    ...     regions: list[str] = []
    >>> Limits.load({"FRAUD_THRESHOLD": "0.9", "FRAUD_REGIONS": '["EU","US"]'})
    Limits(threshold=0.9, regions=['EU', 'US'])
    """

    __settings_prefix__: ClassVar[str] = ""

    if TYPE_CHECKING:  # the metaclass takes it, which type checkers do not look at

        def __init_subclass__(cls, *, prefix: str = "", **options: Any) -> None: ...

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read `PREFIX_FIELD` for every field. Raises ConfigError naming every variable that is missing or wrong."""
        found = os.environ if environ is None else environ
        values, problems = {}, []
        for item in msgspec.structs.fields(cls):
            variable = f"{cls.__settings_prefix__}{item.name}".upper()
            if variable not in found:
                if item.required:
                    problems.append(f"{variable} is not set ({cls.__name__}.{item.name})")
                continue
            try:
                values[item.name] = parse_text(found[variable], item.type)
            except ValueError as error:
                problems.append(f"{variable}: {error}")
        if problems:
            raise ConfigError(*problems)
        return cls(**values)


def parse_text(text: str, type_: Any) -> Any:
    """A value of `type_` from text: as it is, or as JSON for lists and other structures. Raises ValueError."""
    try:
        return msgspec.convert(text, type_, strict=False)
    except msgspec.ValidationError as error:
        try:
            return msgspec.json.decode(text, type=type_)
        except msgspec.ValidationError as inner:  # it is JSON: what is wrong inside tells more
            raise ValueError(f"{inner}, found {text[:80]!r}") from None
        except msgspec.DecodeError:
            raise ValueError(f"{error}, found {text[:80]!r}") from None


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker runs. Every field can be set by environment (`FLOWKIT_…`) and most by flag.

    `commit_every` events and results of windows, or `commit_interval` ms, end a commit interval. `batch_size` records
    are fetched at once. `grace` ms is what a stop by SIGTERM may take. `stall_after` ms without progress make the
    watchdog speak up and restart the task. `lease_ttl` ms after its last sign of life a worker's tasks are taken over.
    `live_objects` table values are kept decoded in memory, a table; what the stores of all tasks keep of the rest takes
    `store_memory` bytes, and their compaction may write `compaction_rate` bytes a second. Topics that are missing are
    made with `partitions`; every `topic_refresh` ms it is looked which topics match the patterns of the app. Where
    `checkpoints` names a place (`file:///DIR`, a path, `s3://BUCKET/PREFIX`, `kafka://HOST:PORT/TOPIC`), each task's
    state is published there every `checkpoint_interval` ms. The app begins with the savepoint at `from_savepoint`. A
    broker that is away when the worker starts is waited for, at most `broker_patience` ms; one that refuses it is not.
    """

    commit_every: int = 5_000
    commit_interval: int = 1_000
    batch_size: int = 5_000
    grace: int = 25_000
    stall_after: int = 60_000
    lease_ttl: int = 10_000
    live_objects: int = 1_000_000
    store_memory: int = 256 * 2**20
    compaction_rate: int = 2**30
    partitions: int = 1
    topic_refresh: int = 5_000
    checkpoints: str = ""
    checkpoint_interval: int = 60_000
    from_savepoint: str = ""
    broker_patience: int = 60_000

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **flags: Any) -> Self:
        """Flags that are not None over `FLOWKIT_…` variables over the defaults. Raises ConfigError."""
        found = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        problems = []
        defaults = cls()
        for name in cls.__struct_fields__:
            variable = f"FLOWKIT_{name.upper()}"
            if flags.get(name) is not None:
                values[name] = flags[name]
                where = f"{name}={flags[name]!r}"
            elif found.get(variable):  # an empty variable is one that is not set
                where = f"{variable}={found[variable]!r}"
                if isinstance(getattr(defaults, name), str):
                    values[name] = found[variable]
                    continue
                try:
                    values[name] = int(found[variable])
                except ValueError:
                    problems.append(f"{where} is no whole number")
            if name in values and not isinstance(values[name], str) and values[name] < 1:
                problems.append(f"{where} must be at least 1")
        if problems:
            raise ConfigError(*problems)
        return cls(**values)
