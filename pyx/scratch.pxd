# The arena: one block of bytes for a call, taken from a list that the callers share and given back afterwards. Taking and
# giving back happen under the GIL, so calls from several Python threads get blocks of their own.

cdef inline take(list scratch, Py_ssize_t size):
    """A bytearray of at least `size` bytes; MemoryError if there is no memory."""
    if size > PY_SSIZE_T_MAX // 2:
        raise MemoryError(f"{size} bytes of scratch")
    if scratch:
        block = scratch.pop()
        if len(block) >= size:
            return block
        del block
    return bytearray(size)


cdef extern from *:
    Py_ssize_t PY_SSIZE_T_MAX


cdef inline Py_ssize_t align(Py_ssize_t offset) noexcept nogil:
    """The next multiple of a cache line."""
    return (offset + 63) // 64 * 64
