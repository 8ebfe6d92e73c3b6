"""Protocol buffers by field number: the few messages that a pull sends to containerd.  No I/O.

A message is written as a list of ``(number, value)`` and read as lists of values by number.
Values are integers (varint), text, bytes, or a message's bytes.  Format: the encoding page of
protobuf.dev; the numbers stand beside their use, from containerd's ``api/services``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_VARINT, _BYTES = 0, 2  # wire types
_LONGEST_VARINT = 10

Value = int | str | bytes
Fields = dict[int, list[int | bytes]]


def message(*fields: tuple[int, Value]) -> bytes:
    """Zero and empty values are left out, as proto3 does."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            if value:
                out += _varint(number << 3 | _VARINT) + _varint(value)
        elif value:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | _BYTES) + _varint(len(data)) + data
    return bytes(out)


def mapping(number: int, values: Mapping[str, str]) -> list[tuple[int, Value]]:
    """A ``map<string, string>`` as fields of the message that has it."""
    return [(number, message((1, key), (2, value))) for key, value in sorted(values.items())]


def texts(number: int, values: Iterable[str | bytes]) -> list[tuple[int, Value]]:
    """A repeated field of texts, or of messages."""
    return [(number, value) for value in values]


def parse(data: bytes) -> Fields:
    """``ValueError`` for bytes that are not a message."""
    fields: Fields = {}
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        value: int | bytes
        match key & 7:
            case 0:
                value, at = _read_varint(data, at)
            case 2:
                size, at = _read_varint(data, at)
                value, at = data[at : at + size], at + size
            case 1:
                value, at = data[at : at + 8], at + 8
            case 5:
                value, at = data[at : at + 4], at + 4
            case kind:
                raise ValueError(f"wire type {kind}")
        if at > len(data):
            raise ValueError("a field is longer than its message")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def text_of(fields: Fields, number: int) -> str:
    value = fields.get(number, [b""])[-1]
    return value.decode() if isinstance(value, bytes) else ""


def number_of(fields: Fields, number: int) -> int:
    value = fields.get(number, [0])[-1]
    return value if isinstance(value, int) else 0


def messages_of(fields: Fields, number: int) -> list[bytes]:
    """The repeated field as it came."""
    return [value for value in fields.get(number, []) if isinstance(value, bytes)]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for off in range(at, min(at + _LONGEST_VARINT, len(data))):
        value |= (data[off] & 0x7F) << shift
        shift += 7
        if data[off] < 0x80:
            return value, off + 1
    raise ValueError("a number does not end")
