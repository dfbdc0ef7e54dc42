"""Arrays between pages that cannot be read or written."""

import ctypes
import mmap

import numpy as np


class Guarded:
    """Arrays whose last (or first) element lies next to a protected page; they live as long as this object."""

    def __init__(self, at_the_end):
        self.at_the_end, self.maps = at_the_end, []

    def empty(self, shape, dtype=np.float64):
        dtype, page = np.dtype(dtype), mmap.PAGESIZE
        size = int(np.prod(shape)) * dtype.itemsize
        pages = -(-size // page) * page
        memory = mmap.mmap(-1, pages + 2 * page)
        handle = ctypes.c_char.from_buffer(memory)
        for start in (0, page + pages):
            assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(ctypes.addressof(handle) + start), page, 0)
        self.maps.append((memory, handle))
        offset = page + (pages - size if self.at_the_end else 0)
        a = np.frombuffer(memory, dtype, size // dtype.itemsize, offset).reshape(shape)
        a.fill(np.nan)
        return a

    def random(self, rng, shape, dtype):
        a = self.empty(shape, dtype)
        a[...] = rng.standard_normal(shape)
        return a
