"""Just enough of BTF to read structs and enums out of an object file.

Source: Documentation/bpf/btf.rst of the Linux kernel; the ELF64 specification for finding the section.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_STRUCT, _UNION, _ENUM = 4, 5, 6
_INT, _PTR, _ARRAY, _FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 1, 2, 3, 13, 14, 15, 17, 19


def _section(elf: bytes, wanted: str) -> bytes:
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_index = struct.unpack_from("<HHH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names = sections[names_index][4]
    for name, _, _, _, offset, length in sections:
        start = names + name
        if elf[start : elf.index(b"\0", start)].decode() == wanted:
            return elf[offset : offset + length]
    raise LookupError(f"no section {wanted}")


@dataclass(frozen=True)
class Struct:
    """A struct's size and the byte offset of each of its fields, in order."""

    size: int
    offsets: dict[str, int]

    def read(self, raw: bytes, field: str, size: int, *, big: bool = False) -> int:
        """The unsigned number of `size` bytes that `raw` holds in `field`."""
        at = self.offsets[field]
        return int.from_bytes(raw[at : at + size], "big" if big else "little")


@dataclass(frozen=True)
class Btf:
    structs: dict[str, Struct]
    enums: dict[str, dict[str, int]]


def read(path: Path) -> Btf:
    raw = _section(path.read_bytes(), ".BTF")
    magic, _, _, header, types_at, types_size, strings_at, _ = struct.unpack_from("<HBBIIIII", raw)
    assert magic == 0xEB9F
    strings = header + strings_at

    def text(offset: int) -> str:
        start = strings + offset
        return raw[start : raw.index(b"\0", start)].decode()

    found = Btf({}, {})
    at, end = header + types_at, header + types_at + types_size
    while at < end:
        name, info, size = struct.unpack_from("<III", raw, at)
        kind, length = info >> 24 & 0x1F, info & 0xFFFF
        at += 12
        if kind in (_STRUCT, _UNION):
            members = [struct.unpack_from("<III", raw, at + i * 12) for i in range(length)]
            found.structs[text(name)] = Struct(
                size, {text(n): (bits & 0xFFFFFF) // 8 for n, _, bits in members}
            )
        elif kind == _ENUM:
            values = [struct.unpack_from("<Ii", raw, at + i * 8) for i in range(length)]
            found.enums[text(name)] = {text(n): value for n, value in values}
        at += {
            _INT: 4,
            _ARRAY: 12,
            _STRUCT: 12 * length,
            _UNION: 12 * length,
            _ENUM: 8 * length,
            _FUNC_PROTO: 8 * length,
            _VAR: 4,
            _DATASEC: 12 * length,
            _DECL_TAG: 4,
            _ENUM64: 12 * length,
        }.get(kind, 0)
    return found
