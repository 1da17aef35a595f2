"""Checks from the first bytes of a container whether its file is complete.

A complete file was not truncated, even if its last frame is held for longer than its frames say.
"""

import os
from typing import BinaryIO

_EBML, _SEGMENT = bytes.fromhex('1a45dfa3'), bytes.fromhex('18538067')


def is_complete(path: str | os.PathLike) -> bool:
    """Return True if a Matroska, WebM or AVI file is at least as long as it states; False = shorter, or unknown."""
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        start = file.read(4)
        file.seek(0)
        if start == b'RIFF':
            return _riff_end(file, size) <= size
        return start == _EBML and _segment_end(file) <= size


def _riff_end(file: BinaryIO, size: int) -> float:
    """Return the end of the last RIFF chunk. AVI files of more than 1 GB have several chunks."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(8)
        if end and head[:4] != b'RIFF':
            break
        length = int.from_bytes(head[4:], 'little')
        if len(head) < 8 or not length or length == 0xFFFFFFFF:
            return float('inf')  # the writer ended before it knew the length
        end += 8 + length
    return end


def _segment_end(file: BinaryIO) -> float:
    """Return the end of the segment of a Matroska file; infinity = unknown."""
    while True:
        name = file.read(1)
        name += file.read(_width(name) - 1)
        first = file.read(1)
        width = _width(first)
        if not name or not first or not width:
            return float('inf')
        value = int.from_bytes(first + file.read(width - 1)) & ((1 << 7 * width) - 1)
        if name == _SEGMENT:
            unknown = value == (1 << 7 * width) - 1
            return float('inf') if unknown else file.tell() + value
        file.seek(value, os.SEEK_CUR)


def _width(first: bytes) -> int:
    """Return the number of bytes of an EBML number, given by the leading zero bits of its first byte; 0 = no number."""
    return 9 - first[0].bit_length() if first and first[0] else 0
