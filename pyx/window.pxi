# What the kernels know of the windows, as cyconv/_windows.py packs it: it explains the terms.

cdef struct Axis:
    Py_ssize_t size, out, window, stride, before, dilation


cdef enum:
    HEADER = 34         # numbers before the tables


cdef struct Pool:
    Axis d, h, w
    Py_ssize_t rows             # the most rows under a window
    Py_ssize_t phases           # the stride along w, 1 to 3, or 0: windows are taken one by one
    Py_ssize_t pitch, base      # elements of one phase of a line, and where in it column 0 lies
    Py_ssize_t line, block      # elements of a line, and lines that are filled at a time
    Py_ssize_t outputs, ahead   # elements of a line of outputs, and where in it the first lies
    Py_ssize_t strip, lines     # rows of the result that are found together, and the most rows under windows that reach them
    Py_ssize_t whole            # one window, the whole plane
    Py_ssize_t direct           # windows tile a row: their taps along w are the phases, 2 or 3, and there is no padding
    Py_ssize_t seamless         # rows of windows follow each other at the same distance from one plane to the next
    Py_ssize_t small            # window and stride along h and w as four digits, 0 unless pool_small.pxi knows them
    Py_ssize_t in_plane, out_plane  # elements of a plane of the input, and of the output
    const Py_ssize_t *start     # [w.window] where in a line the phase of a tap lies,
    const Py_ssize_t *behind    # and where behind that output 0 reads it
    const Py_ssize_t *order     # [w.window] the taps in the order of their phases
    const Py_ssize_t *phase_start   # [phases + 1] the first tap of each phase in that order
    const real *cells_d         # [d.out] divisors along each axis, in the backward passes their reciprocals
    const real *cells_h         # [h.out]
    const real *cells_w         # [w.out + LANES]
    real scale                  # what every sum is multiplied with, 0 if they are divided by their cells


cdef void unpack(Pool *p, bytes packed):
    """The tables stay where they are: `packed` must live as long."""
    cdef const Py_ssize_t *numbers = <const Py_ssize_t *><const char *>packed
    cdef Py_ssize_t taps
    memcpy(p, numbers, HEADER * sizeof(Py_ssize_t))
    taps = p.w.window if p.phases else 0
    p.start = numbers + HEADER
    p.behind = p.start + taps
    p.order = p.behind + taps
    p.phase_start = p.order + taps
    p.scale = (<const real *>(p.phase_start + p.phases + 1))[0]
    p.cells_d = <const real *>(p.phase_start + p.phases + 1) + 1
    p.cells_h = p.cells_d + p.d.out
    p.cells_w = p.cells_h + p.h.out


cdef struct Span:
    Py_ssize_t begin, taps, first   # position of the first tap in the array, their number, and which of the window it is


cdef inline Py_ssize_t start(const Axis *a, Py_ssize_t o) noexcept nogil:
    """The position of a window's first tap, which may lie in the padding."""
    return o * a.stride - a.before if a.window else o * a.size // a.out


cdef inline Py_ssize_t reach(const Axis *a) noexcept nogil:
    """Positions from a window's first tap to the last, at most."""
    return (a.window - 1) * a.dilation if a.window else a.size // a.out + 1


cdef inline Span inside(const Axis *a, Py_ssize_t o) noexcept nogil:
    cdef Span s
    s.begin = start(a, o)
    s.first = 0
    s.taps = a.window if a.window else ((o + 1) * a.size + a.out - 1) // a.out - s.begin
    if a.window and (s.begin < 0 or s.begin + reach(a) >= a.size):
        s.first = max(0, (a.dilation - 1 - s.begin) // a.dilation)
        s.taps = max(0, min(s.taps, (a.size - s.begin + a.dilation - 1) // a.dilation if s.begin < a.size else 0) - s.first)
        s.begin += s.first * a.dilation
    return s


cdef inline Py_ssize_t first_covering(const Axis *a, Py_ssize_t i) noexcept nogil:
    """The first output whose window may contain position i."""
    return max(0, (i + a.before - reach(a) + a.stride - 1) // a.stride) if a.window else i * a.out // a.size


cdef inline Py_ssize_t end_covering(const Axis *a, Py_ssize_t i) noexcept nogil:
    """One past the last output whose window may contain position i."""
    return min(a.out, (i + a.before) // a.stride + 1) if a.window else ((i + 1) * a.out + a.size - 1) // a.size
