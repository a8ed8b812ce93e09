"""What FORMAT.md takes from the code: grammars from the heads of modules, fields of structs, and files in hex."""

import asyncio
import importlib
import re
import struct
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import flowkit.store
from flowkit.store import Frame, SpaceChange
from flowkit.store.checkpoint import Listing, Stored
from flowkit.store.sstable_index import FileMeta, SpaceMeta
from flowkit.store.version import Edit
from tests.store.making import opened

FORMAT = Path(flowkit.store.__file__).parent / "FORMAT.md"
STRUCTS: dict[str, Any] = {
    "Edit": Edit,
    "FileMeta": FileMeta,
    "SpaceMeta": SpaceMeta,
    "Listing": Listing,
    "Stored": Stored,
}
_PART = re.compile(r"(<!-- (grammar|fields|example): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The document with all that comes from the code as it is now."""
    examples = asyncio.run(make_examples())

    def part(match: re.Match[str]) -> str:
        content = {"grammar": grammar, "fields": fields, "example": examples.__getitem__}[match[2]](match[3])
        return f"{match[1]}```text\n{content}\n```\n{match[4]}"

    return _PART.sub(part, text)


def grammar(module: str) -> str:
    """The paragraphs of a module's docstring that are grammar."""
    doc = importlib.import_module(f"flowkit.store.{module}").__doc__ or ""
    paragraphs = [textwrap.dedent(paragraph).strip("\n") for paragraph in re.split(r"\n\s*\n", doc)[1:]]
    return "\n".join(paragraph for paragraph in paragraphs if ":=" in paragraph)


def fields(name: str) -> str:
    """A struct's fields in the order in which they stand in its msgpack array."""
    names = [field.encode_name for field in msgspec.structs.fields(STRUCTS[name])]
    return "\n".join(textwrap.wrap(f"{name} := [{', '.join(names)}]", 110, subsequent_indent=" " * (len(name) + 5)))


# Files in hex

Pieces = Iterator[tuple[bytes, str]]


async def make_examples() -> dict[str, str]:
    """A store with two commits, the first one flushed; its files in hex, each piece with its meaning."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "db"
        async with opened(path) as store:
            commits: list[dict[bytes, Any]] = [{b"ada": b"1815", b"alan": b"1912"}, {b"alan": None}]
            for number, puts in enumerate(commits, 1):
                changes = [SpaceChange("users", None, [*puts], [*puts.values()])]
                parent = bytes([number - 1] * 4) if number > 1 else b""
                frame = Frame(number, bytes([number] * 4), parent, 1, {}, changes)
                await store.prepare(frame)
                await store.resolve(frame.commit_id, applied=True)
                if number == 1:
                    await store.flush()
        (log,), (manifest,), (sst,) = (list(path.glob(name)) for name in ("log-*", "manifest-*", "*.sst"))
        return {
            "log": _hex(_records(log.read_bytes())),
            "manifest": _hex(_records(manifest.read_bytes())),
            "sstable": _hex(_sstable(sst.read_bytes())),
        }


def _hex(pieces: Pieces) -> str:
    lines, at = [], 0
    for data, meaning in pieces:
        words = textwrap.wrap(meaning, 46) or [""]
        rows = [data[n : n + 16].hex(" ") for n in range(0, len(data), 16)]
        for n in range(max(len(rows), len(words))):
            row, word = rows[n] if n < len(rows) else "", words[n] if n < len(words) else ""
            place = f"{at + 16 * n:6}" if row else " " * 6
            lines.append(f"{place}  {row:<47}  {word}".rstrip())
        at += len(data)
    return "\n".join(lines)


def bytes_of(example: str) -> bytes:
    """The bytes of an example: columns 8 to 55."""
    return b"".join(bytes.fromhex(line[8:55]) for line in example.splitlines() if line[:6].strip())


def _header(data: bytes) -> Pieces:
    version, length = struct.unpack_from("<HI", data, 8)
    yield data[:8], "magic"
    yield data[8:10], f"format version {version}"
    yield data[10:14], f"length of the facts: {length}"
    yield data[14:18], "crc32 of all that"
    yield data[18:22], "crc32 of the facts"
    yield data[22 : 22 + length], f"facts: {msgspec.msgpack.decode(data[22 : 22 + length])}"


def _records(data: bytes) -> Pieces:
    yield from _header(data)
    at = 22 + struct.unpack_from("<I", data, 10)[0]
    while at < len(data):
        length, safe = struct.unpack_from("<IQ", data, at)
        payload = data[at + 20 : at + 20 + length]
        yield data[at : at + 4], f"length of the payload: {length}"
        yield data[at + 4 : at + 12], f"safe: {safe} bytes were durable"
        yield data[at + 12 : at + 16], "crc32 of length and safe"
        yield data[at + 16 : at + 20], "crc32 of the payload"
        yield payload, f"payload: {msgspec.msgpack.decode(payload)}"
        at += 20 + length


def _sstable(data: bytes) -> Pieces:
    import cramjam

    yield from _header(data)
    begin = 22 + struct.unpack_from("<I", data, 10)[0]
    footer = struct.calcsize("<QIIII8s")
    offset, stored, raw, _, _, _ = struct.unpack("<QIIII8s", data[-footer:])
    block = data[begin:offset]
    keys_at = struct.unpack_from("<II", block)[1]
    head = struct.calcsize("<IIIII")
    yield block[:head], "block: count, keys at, step, values at, step: " + str(struct.unpack_from("<IIIII", block))
    directory = keys_at - 2 - head
    yield block[head : head + directory], "ends: " + str(struct.unpack_from(f"<{directory // 4}I", block, head))
    columns = block[head + directory :]
    yield columns, f"columns: {msgspec.msgpack.decode(columns)}"
    index = bytes(cramjam.lz4.decompress_block(data[offset : offset + stored], output_len=raw))
    yield data[offset : offset + stored], f"index, lz4 of {raw} bytes: {msgspec.msgpack.decode(index)}"
    yield data[-footer : -footer + 8], f"index at {offset}"
    yield data[-footer + 8 : -footer + 12], f"its stored size: {stored}"
    yield data[-footer + 12 : -footer + 16], f"its raw size: {raw}"
    yield data[-footer + 16 : -footer + 20], "crc32 of the index as stored"
    yield data[-footer + 20 : -footer + 24], "crc32 of these four"
    yield data[-footer + 24 :], "magic"
