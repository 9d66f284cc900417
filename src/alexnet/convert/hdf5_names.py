"""Lists of names in an HDF5 file, read without the HDF5 library.

Such a list is an attribute whose strings lie elsewhere, in a heap. A changed byte there makes the library (HDF5 2.0) ask for
4 GB, or never come back; nothing that Python can catch. So these few structures are read here, within the file's bytes, in the
versions that the library writes by default (HDF5 File Format Specification: object header version 1, attribute message, global
heap). All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

from alexnet.errors import WeightsError

ATTRIBUTE, CONTINUATION = 0x0C, 0x10  # kinds of messages in an object header
HEADS = {1: (8, 8), 3: (9, 1)}  # by an attribute's version: bytes before its name, type and shape; what each is filled up to
MAX_ENTRIES, MAX_LENGTH = 200_000, 1000  # of lists, heaps and headers together, of a name; Keras writes some hundreds and 100

Content = bytes | mmap


class Names:
    """The lists of names in a file whose bytes are `content`."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.heaps: dict[int, dict[int, tuple[int, int]]] = {}
        self.entries = 0

    def read(self, header: int, attribute: str, count: int, size: int | None) -> list[str]:
        """Return the `count` strings of an attribute.

        Args:
            header: where the object's header begins.
            attribute: its name.
            count: how many.
            size: bytes of each, or None where each has its own length.

        Raises:
            WeightsError: they are not there.
        """
        self._count(count)
        data = self._attribute(header, attribute.encode())
        step = 16 if size is None else size
        pieces = [data[i * step : (i + 1) * step] for i in range(count)]
        if len(data) < count * step:
            raise WeightsError(f"the list {attribute!r} is damaged")
        texts = pieces if size is not None else [self._in_heap(piece) for piece in pieces]
        return [text.rstrip(b"\0").decode() for text in texts]

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self.content[at : at + size], "little")

    def _count(self, more: int = 1) -> None:
        self.entries += more
        if self.entries > MAX_ENTRIES:
            raise WeightsError("its lists of names are far longer than those of an AlexNet")

    def _attribute(self, header: int, name: bytes) -> bytes:
        """Return the data of an attribute of the object whose header is there."""
        for message in self._messages(header):
            version, *lengths = message[0], *(int.from_bytes(message[i : i + 2], "little") for i in (2, 4, 6))
            start, align = HEADS.get(version, (0, 0))
            if start and message[start : start + lengths[0]].rstrip(b"\0") == name:
                return message[start + sum(-(-length // align) * align for length in lengths) :]
        raise WeightsError(f"the list {name.decode()!r} is not kept as Keras does, or it is damaged")

    def _messages(self, header: int) -> Iterator[bytes]:
        """Yield the attributes in an object header of version 1: 16 bytes, then messages of kind, size, flags, and the rest."""
        if self._number(header, 2) != 1:
            raise WeightsError("its groups are not kept as Keras does (another version of HDF5's format); save the model anew")
        blocks = [(header + 16, self._number(header + 8, 4))]
        for at, left in blocks:
            while left >= 8:
                self._count()
                kind, size = self._number(at, 2), self._number(at + 2, 2)
                if kind == CONTINUATION:
                    blocks.append((self._number(at + 8, 8), self._number(at + 16, 8)))
                elif kind == ATTRIBUTE and 8 <= size <= left:
                    yield self.content[at + 8 : at + 8 + size]
                at, left = at + 8 + size, left - 8 - size

    def _in_heap(self, reference: bytes) -> bytes:
        """Return the bytes that a reference of length (4), address of the heap (8) and number in it (4) means."""
        length, heap, number = (int.from_bytes(reference[a:b], "little") for a, b in ((0, 4), (4, 12), (12, 16)))
        if heap not in self.heaps:
            self.heaps[heap] = dict(self._heap(heap))
        start, size = self.heaps[heap].get(number, (0, 0))
        if not start or length > min(size, MAX_LENGTH):
            raise WeightsError("a list of names leads to none; the file is damaged")
        return self.content[start : start + length]

    def _heap(self, heap: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield number, start and size of a heap's entries: a head of 16 bytes, then number (2), 6, size (8), bytes up to 8."""
        if self.content[heap : heap + 4] != b"GCOL":
            return
        at, end = heap + 16, min(heap + self._number(heap + 8, 8), len(self.content))
        while at + 16 <= end:
            self._count()
            number, size = self._number(at, 2), self._number(at + 8, 8)
            if number == 0:  # the free rest
                return
            yield number, (at + 16, min(size, end - at - 16))
            at += 16 + -(-size // 8) * 8
