"""Lookups: what `stream.enrich` asks for each key, over HTTP, in SQL, or in a file; and the cache before it.

Any async function of one key is a lookup. What the outside world answers is an input like any other: a bounded run is a
pure function of its inputs *and* of these answers.
"""

from flowkit.lookup.cache import Cache
from flowkit.lookup.file import FileLookup, file
from flowkit.lookup.http import HttpLookup, http
from flowkit.lookup.protocol import Lookup, begin, cache_counts, result_type
from flowkit.lookup.sql import SqlLookup, sql

__all__ = [
    "Cache",
    "FileLookup",
    "HttpLookup",
    "Lookup",
    "SqlLookup",
    "begin",
    "cache_counts",
    "file",
    "http",
    "result_type",
    "sql",
]
