# The arena: one block of bytes for a call, taken from a list that all callers share and given back afterwards. Both happen
# under the GIL, so calls from several Python threads have blocks of their own.
cdef extern from "Python.h":
    char *PyByteArray_AsString(object block)
    enum: PY_SSIZE_T_MAX


cdef inline bytearray take(list scratch, double size):
    """A block that holds `size` bytes from the next cache line on; MemoryError if there is no memory."""
    cdef bytearray block
    if size >= <double>(PY_SSIZE_T_MAX // 2):
        raise MemoryError(f"{size:.3g} bytes of scratch")
    if scratch:
        block = scratch.pop()
        if len(block) >= size + 64:
            return block
        block = None            # freed before its successor is allocated
    return bytearray(<Py_ssize_t>size + 64)


cdef inline void *address(bytearray block):
    """The block's first cache line."""
    return <void *>((<Py_ssize_t>PyByteArray_AsString(block) + 63) // 64 * 64)
