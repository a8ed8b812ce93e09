"""Functions and aggregates as they were written, more or less: no addresses, and a lambda by where it stands."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any


def function_words(function: Any) -> str:
    """A function by its name, a lambda by its file and line.

    >>> function_words(len), function_words(partial(max, 1))
    ('len', 'partial(max)')
    """
    if isinstance(function, partial):
        return f"partial({function_words(function.func)})"
    name = getattr(function, "__name__", None)
    if name is None:
        return type(function).__name__
    code = getattr(function, "__code__", None)
    if name != "<lambda>" or code is None:
        return str(name)
    return f"lambda at {Path(code.co_filename).name}:{code.co_firstlineno}"


def aggregate_words(aggregate: Any) -> str:
    """An aggregate as it is declared: its field, and what was not left as it is.

    >>> from flowkit import Count, Quantile, Sum
    >>> aggregate_words(Count()), aggregate_words(Sum("amount")), aggregate_words(Quantile(abs, q=0.5))
    ('Count()', 'Sum("amount")', 'Quantile(abs, q=0.5)')
    """
    given = []
    for field in dataclasses.fields(aggregate):
        value = getattr(aggregate, field.name)
        if value == field.default:
            continue
        shown = function_words(value) if callable(value) else f'"{value}"' if isinstance(value, str) else repr(value)
        given.append(shown if field.name == "field" else f"{field.name}={shown}")
    return f"{type(aggregate).__name__}({', '.join(given)})"
