"""Read from an AVIF how large the frames are that its decoder makes, whatever its boxes say of the picture.

A decoder takes memory by the sequence header of the AV1 data, and compares with the box only afterwards.
Sources: ISO/IEC 14496-12:2022 (boxes), AV1 Bitstream and Decoding Process Specification 1.0.0 with errata 1, sections
5.3, 5.5 and 5.9.2 (headers). A frame that states a size of its own counts as the largest that its fields can hold.
"""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # boxes that hold boxes and no more
MOST_BOXES = 10_000
SEQUENCE, FRAMES = 1, (3, 6, 7)  # kinds of units
HEADER_BYTES = 512  # of a unit, more than a header has
SWITCH, CHOOSE = 3, 2

Box = tuple[bytes, int, int]
Read = Callable[[int], int]


class Sequence(NamedTuple):
    """What a sequence header says that the size of its frames, or the place of their size, depends on."""

    pixels: int
    most: int  # pixels of a frame that states its own size
    reduced: bool = True
    time_bits: int = 0  # of the time that a shown frame states
    tools: int = 0  # for screen content; CHOOSE: each frame says so
    integers: int = 0  # the same for whole vectors
    id_bits: int = 0


def count_pixels(data: bytes) -> int:
    """Returns the pixels of all frames of an AVIF's items, and of the first frames of its tracks.

    A file without a sequence header, or one that is damaged, is a ValueError, a LookupError or a struct.error.
    """
    total = 0
    for stream in _streams(data):
        sequence, most = None, 0
        for kind, unit in _units(stream):
            read = _reader(unit)
            if kind == SEQUENCE:
                sequence = _read_sequence(read)
            elif kind in FRAMES and sequence:
                most = max(most, sequence.most if _states_size(read, sequence) else sequence.pixels)
        if sequence is None:
            raise ValueError("no sequence header")
        total += max(most, sequence.pixels)
    if not total:
        raise ValueError("no AV1 data")
    return total


def _boxes(data: bytes, start: int, end: int, *, left: list[int]) -> Iterator[Box]:
    """Yields the boxes of a range and those inside, each with the range of its content."""
    while start + 8 <= end:
        size, kind, head = *struct.unpack_from(">I4s", data, start), 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        stop = min(end, start + (size or end - start))
        left[0] -= 1
        if (size and size < head) or left[0] < 0:
            raise ValueError("boxes of no size, or too many")
        yield kind, start + head, stop
        if kind in FOLDERS or kind == b"meta":
            yield from _boxes(data, start + head + 4 * (kind == b"meta"), stop, left=left)
        elif kind == b"iinf":
            yield from _boxes(data, start + head + (8 if data[start + head] else 6), stop, left=left)
        start = stop


def _streams(data: bytes) -> Iterator[bytes]:
    boxes = list(_boxes(data, 0, len(data), left=[MOST_BOXES]))
    items = list[bytes]()
    coded, inside = set[int](), [place for kind, place, _ in boxes if kind == b"idat"]
    if len(inside) > 1:
        raise ValueError("two boxes of data within the description")
    for kind, place, _ in boxes:
        if kind == b"infe" and data[place] >= 2:
            form = ">H2x4s" if data[place] == 2 else ">I2x4s"
            number, name = struct.unpack_from(form, data, place + 4)
            coded |= {number} if name == b"av01" else set()
    for kind, place, end in boxes:
        if kind == b"iloc":
            for number, parts in _locate(data, place, end, sum(inside)):
                if number in coded:
                    items.append(b"".join(data[start : start + length if length else None] for start, length in parts))
    yield from items
    for kind, place, _ in boxes:
        if kind in (b"stco", b"co64"):
            first = struct.unpack_from(">I" if kind == b"stco" else ">Q", data, place + 8)[0]
            sizes = [one for name, one, _ in boxes if name == b"stsz" and one < place] or [place]
            equal, count, size = struct.unpack_from(">III", data, sizes[-1] + 4)
            length = (equal or size) if count and sizes[-1] != place else len(data)
            if (frame := data[first : first + length]) not in items:  # an animation's still picture is its first frame
                yield frame


def _locate(data: bytes, place: int, end: int, held: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yields the number and the parts of each item, from the box of locations."""
    version, widths = data[place], int.from_bytes(data[place + 4 : place + 6], "big")
    offset_bytes, length_bytes, base_bytes, index_bytes = (widths >> shift & 15 for shift in (12, 8, 4, 0))
    place += 6

    def take(size: int) -> int:
        nonlocal place
        if place + size > end:
            raise ValueError("a box of locations is cut short")
        place += size
        return int.from_bytes(data[place - size : place], "big")

    number_bytes = 2 if version < 2 else 4
    for _ in range(take(number_bytes)):
        number, method = take(number_bytes), take(2) & 15 if version else 0
        take(2)
        base, parts = take(base_bytes) + (held if method == 1 else 0), []
        for _ in range(take(2)):
            take(index_bytes if version else 0)
            parts.append((base + take(offset_bytes), take(length_bytes)))
        yield number, parts


def _units(stream: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(stream):
        head = stream[place]
        place += 1 + (head >> 2 & 1)
        size = len(stream) - place
        if head >> 1 & 1:
            size = shift = 0
            while True:
                byte = stream[place]
                place, size, shift = place + 1, size | (byte & 127) << shift, shift + 7
                if byte < 128 or shift > 56:
                    break
        yield head >> 3 & 15, stream[place : place + min(size, HEADER_BYTES)]
        place += size


def _reader(unit: bytes) -> Read:
    left, value = 8 * len(unit), int.from_bytes(unit, "big")

    def read(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise ValueError("a header is cut short")
        return value >> left & (1 << count) - 1

    return read


def _read_sequence(read: Read) -> Sequence:
    read(4)
    reduced, delay_bits, time_bits = read(1), 0, 0
    if reduced:
        read(5)
    else:
        if read(1):  # how long frames last
            read(64)
            equal = read(1)
            if equal:
                zeros = 0
                while not read(1):
                    zeros += 1
                read(zeros if zeros < 32 else 0)
            if read(1):  # a model of the decoder
                delay_bits = read(5) + 1
                read(37)
                length = read(5) + 1
                time_bits = 0 if equal else length
        has_delay = read(1)
        for _ in range(read(5) + 1):
            read(12)
            if read(5) > 7:
                read(1)
            if delay_bits and read(1):
                read(2 * delay_bits + 1)
            if has_delay and read(1):
                read(4)
    wide, high = read(4) + 1, read(4) + 1
    pixels, most = (read(wide) + 1) * (read(high) + 1), 2 ** (wide + high)
    if reduced:
        return Sequence(pixels, most)
    id_bits = 0
    if read(1):
        second = read(4) + 2
        id_bits = read(3) + second + 1
    read(7)
    if read(1):
        read(2)
    tools = CHOOSE if read(1) else read(1)
    integers = CHOOSE if not tools or read(1) else read(1)
    return Sequence(pixels, most, False, time_bits, tools, integers, id_bits)


def _states_size(read: Read, sequence: Sequence) -> bool:
    """Tells whether a frame has a size of its own."""
    if sequence.reduced or read(1):
        return False
    kind, is_shown = read(2), read(1)
    if is_shown:
        read(sequence.time_bits)
    else:
        read(1)
    if kind != SWITCH and not (kind == 0 and is_shown):
        read(1)
    read(1)
    if (read(1) if sequence.tools == CHOOSE else sequence.tools) and sequence.integers == CHOOSE:
        read(1)
    read(sequence.id_bits)
    return kind == SWITCH or bool(read(1))
