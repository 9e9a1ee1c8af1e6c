"""Which keys came by already, in 16 to 32 bytes a key, so that a manifest of millions can be checked for repeats."""

import hashlib
from array import array


def key_hash(key: str) -> int:
    """64 bits that stand for a key, never 0. Two of a million keys agree by chance once in 37 million data sets."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class Seen:
    """A set of keys that only grows: a table of their hashes with open addressing."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: str) -> bool:
        return self._slots[self._slot(key_hash(key))] != 0

    def add(self, key: str) -> bool:
        """Put `key` in; True if it was not there before."""
        value = key_hash(key)
        slot = self._slot(value)
        if self._slots[slot]:
            return False
        self._slots[slot] = value
        self._count += 1
        if self._count * 2 > len(self._slots):
            self._grow()
        return True

    def _slot(self, value: int) -> int:
        """Where `value` is, or the empty slot where it belongs."""
        slots, mask = self._slots, len(self._slots) - 1
        slot = value & mask
        while slots[slot] and slots[slot] != value:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(8 * 2 * len(old)))
        for value in old:
            if value:
                self._slots[self._slot(value)] = value
