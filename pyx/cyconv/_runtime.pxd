# What modules of kernels share at run time: the threads.

cdef inline int useful_threads(double work, double share, Py_ssize_t tasks, int threads) noexcept nogil:
    """How many of at most `threads` threads the work is worth, `share` of it for each."""
    return <int>max(1., min(min(<double>threads, <double>tasks), work / share))

cdef int ready(int threads) noexcept nogil
