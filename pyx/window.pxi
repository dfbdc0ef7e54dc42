# What the kernels know of the windows, as cyconv/_windows.py packs it: it explains the terms.

cdef struct Axis:
    Py_ssize_t size, out, window, stride, before, dilation


cdef enum:
    HEADER = 33         # numbers before the tables
    TABLE_LANES = 16    # LANES of _windows.py


cdef struct Pool:
    Axis d, h, w
    Py_ssize_t rows             # the most rows under a window
    Py_ssize_t phases           # the stride along w, 1 to 3, or 0: windows are taken one by one
    Py_ssize_t shape            # 100 * phases, plus 10 * window + before if there is no dilation and these are digits
    Py_ssize_t pitch            # elements of one phase of a line
    Py_ssize_t base             # where in a phase column 0 lies
    Py_ssize_t ahead            # where in a line of outputs the first lies
    Py_ssize_t outputs          # elements of such a line
    Py_ssize_t block            # lines that are filled at a time
    Py_ssize_t strip            # rows of the result (indices or the gradient of x) that are found at a time
    Py_ssize_t lines            # the most rows under the windows that reach them
    Py_ssize_t in_order         # rows under a window follow each other, and so do those of the windows
    Py_ssize_t whole            # one window, the whole plane
    Py_ssize_t direct           # windows tile a row: their taps along w are the phases, 2 or 3, and there is no padding
    Py_ssize_t seamless         # rows of windows follow each other at the same distance from one plane to the next
    Py_ssize_t tiles            # windows tile the plane, which is no more than 2-D
    const Py_ssize_t *start     # [w.window] where in a line the phase of a tap lies,
    const Py_ssize_t *behind    # and where behind that output 0 reads it
    const Py_ssize_t *order     # [w.window] the taps in the order of their phases
    const Py_ssize_t *phase_start   # [phases + 1] the first tap of each phase in that order
    const real *cells_d         # [d.out] divisors along each axis, in the backward passes their reciprocals
    const real *cells_h         # [h.out]
    const real *cells_w         # [w.out + LANES]
    real scale                  # what every sum is multiplied with, 0 if they are divided by their cells
    Py_ssize_t line             # elements of a line
    Py_ssize_t in_plane         # elements of a plane of the input, and of the output
    Py_ssize_t out_plane


cdef int unpack(Pool *p, bytes packed) except -1:
    """The tables stay where they are: `packed` must live as long."""
    cdef const Py_ssize_t *numbers = <const Py_ssize_t *><const char *>packed
    cdef Py_ssize_t taps
    memcpy(p, numbers, HEADER * sizeof(Py_ssize_t))
    taps = p.w.window if p.phases else 0
    p.start = numbers + HEADER
    p.behind = p.start + taps
    p.order = p.behind + taps
    p.phase_start = p.order + taps
    p.cells_d = <const real *>(p.phase_start + p.phases + 1)
    p.cells_h = p.cells_d + p.d.out
    p.cells_w = p.cells_h + p.h.out
    p.scale = p.cells_w[p.w.out + TABLE_LANES]
    p.line = p.phases * p.pitch if p.phases else (p.w.size + LANES - 1) // 16 * 16 + 16
    p.in_plane = p.d.size * p.h.size * p.w.size
    p.out_plane = p.d.out * p.h.out * p.w.out
    return 0


cdef struct Span:
    Py_ssize_t begin    # position of the first tap that lies in the array
    Py_ssize_t taps     # number of taps in the array
    Py_ssize_t first    # which tap of the window it is


cdef inline Span inside(const Axis *a, Py_ssize_t o) noexcept nogil:
    cdef Span s
    cdef Py_ssize_t start = o * a.stride - a.before, dilation = a.dilation
    if a.window == 0:
        s.begin = o * a.size // a.out
        s.taps = ((o + 1) * a.size + a.out - 1) // a.out - s.begin
        s.first = 0
        return s
    s.first = (dilation - 1 - start) // dilation if start < 0 else 0
    s.begin = start + s.first * dilation
    s.taps = max(0, min(a.window, (a.size - start + dilation - 1) // dilation if a.size > start else 0) - s.first)
    return s


cdef inline Span under(const Axis *a, Py_ssize_t o, Py_ssize_t last) noexcept nogil:
    """The positions from the first to the last that windows o ... last may contain."""
    cdef Span s
    cdef Py_ssize_t start = last * a.stride - a.before
    s.begin = o * a.size // a.out if a.window == 0 else min(a.size, max(0, o * a.stride - a.before))
    s.taps = ((last + 1) * a.size + a.out - 1) // a.out if a.window == 0 else min(a.size, start + (a.window - 1) * a.dilation + 1)
    s.taps = max(0, s.taps - s.begin)
    return s


cdef inline Py_ssize_t first_covering(const Axis *a, Py_ssize_t i) noexcept nogil:
    """The first output whose window may contain position i."""
    if a.window == 0:
        return i * a.out // a.size
    return max(0, (i + a.before - (a.window - 1) * a.dilation + a.stride - 1) // a.stride)


cdef inline Py_ssize_t end_covering(const Axis *a, Py_ssize_t i) noexcept nogil:
    """One past the last output whose window may contain position i."""
    return ((i + 1) * a.out + a.size - 1) // a.size if a.window == 0 else min(a.out, (i + a.before) // a.stride + 1)
