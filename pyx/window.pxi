# What the kernels know of the windows, as cyconv/_windows.py packs it: it explains the terms.

cdef struct Axis:
    Py_ssize_t size, out, window, stride, before, dilation


cdef struct Span:
    Py_ssize_t begin    # position of the first tap that lies in the array
    Py_ssize_t taps     # number of taps in the array
    Py_ssize_t first    # which tap of the window it is


cdef enum:
    HEADER = 37         # numbers before the tables
    TABLE_LANES = 16    # LANES of _windows.py


cdef struct Pool:
    Axis d, h, w
    Py_ssize_t rows             # the most rows under a window
    Py_ssize_t phases           # the stride along w, 0 without lines
    Py_ssize_t pitch            # elements of one phase of a line
    Py_ssize_t base             # where in a phase column 0 lies
    Py_ssize_t ahead            # where in a line of outputs the first lies
    Py_ssize_t outputs          # elements of such a line
    Py_ssize_t block            # lines that are filled at a time
    Py_ssize_t together         # rows of windows that are searched, or give, at a time
    Py_ssize_t lines            # under them
    Py_ssize_t kept             # rows of the gradient of x that windows in progress add to: a power of two
    Py_ssize_t whole            # one window, the whole plane
    Py_ssize_t direct           # along w the taps of a window are the phases, 2 or 3, and there is no padding
    Py_ssize_t seamless         # rows of windows follow each other at the same distance from one plane to the next
    Py_ssize_t shared           # lines lie in the order of the rows, otherwise of the taps
    Py_ssize_t apart            # windows do not overlap along d
    Py_ssize_t disjoint         # nor along h, and there is no d
    Py_ssize_t gaps             # there are rows that no window reads
    Py_ssize_t searched         # vectors can search: there are lines, not too many, and places are exact as reals
    Py_ssize_t scattered        # gradients go to indices one by one
    const Span *span_d          # [d.out]
    const Span *span_h          # [h.out]
    const Py_ssize_t *first_d   # [d.size] the first output that reads a position; in the backward passes
    const Py_ssize_t *first_h   # [h.size]
    const Py_ssize_t *last_h    # [h.size] the last one
    const Py_ssize_t *offset    # [w.window] where in a line a tap of output 0 lies
    const Py_ssize_t *back      # [w.window] taps in the order of their phases: output m - back reads place m
    const Py_ssize_t *phase_start   # [phases + 1] the first tap of each phase in that order
    const real *tap             # [w.window] which tap that is
    const real *cells_d         # [d.out] divisors along each axis, in the backward passes their reciprocals
    const real *cells_h         # [h.out]
    const real *cells_w         # [w.out + LANES]
    real scale                  # what every sum is multiplied with, 0 if they are divided by their cells
    Py_ssize_t line             # elements of a line: phases * pitch
    Py_ssize_t in_plane         # elements of a plane of the input, and of the output
    Py_ssize_t out_plane


cdef int unpack(Pool *p, bytes packed, bint backward) except -1:
    """The tables stay where they are: `packed` must live as long."""
    cdef const Py_ssize_t *numbers = <const Py_ssize_t *><const char *>packed
    cdef Py_ssize_t taps
    memcpy(p, numbers, HEADER * sizeof(Py_ssize_t))
    taps = p.w.window if p.phases else 0
    p.span_d = <const Span *>(numbers + HEADER)
    p.span_h = p.span_d + p.d.out
    p.first_d = <const Py_ssize_t *>(p.span_h + p.h.out)
    p.first_h = p.first_d + p.d.size * backward
    p.last_h = p.first_h + p.h.size * backward
    p.offset = p.last_h + p.h.size * backward
    p.back = p.offset + taps
    p.phase_start = p.back + taps
    p.tap = <const real *>(p.phase_start + p.phases + 1)
    p.cells_d = p.tap + taps
    p.cells_h = p.cells_d + p.d.out
    p.cells_w = p.cells_h + p.h.out
    p.scale = p.cells_w[p.w.out + TABLE_LANES]
    p.line = p.phases * p.pitch
    p.in_plane = p.d.size * p.h.size * p.w.size
    p.out_plane = p.d.out * p.h.out * p.w.out
    return 0


cdef inline Span span_w(const Pool *p, Py_ssize_t o) noexcept nogil:
    cdef Span s
    cdef Py_ssize_t start = o * p.w.stride - p.w.before, dilation = p.w.dilation
    if p.w.window == 0:
        s.begin = o * p.w.size // p.w.out
        s.taps = ((o + 1) * p.w.size + p.w.out - 1) // p.w.out - s.begin
        s.first = 0
        return s
    s.first = (dilation - 1 - start) // dilation if start < 0 else 0
    s.begin = start + s.first * dilation
    s.taps = max(0, min(p.w.window, (p.w.size - start + dilation - 1) // dilation if p.w.size > start else 0) - s.first)
    return s


cdef inline Py_ssize_t first_covering(const Axis *a, Py_ssize_t i) noexcept nogil:
    """The first output whose window may contain position i."""
    if a.window == 0:
        return i * a.out // a.size
    return max(0, (i + a.before - (a.window - 1) * a.dilation + a.stride - 1) // a.stride)


cdef inline Py_ssize_t end_covering(const Axis *a, Py_ssize_t i) noexcept nogil:
    """One past the last output whose window may contain position i."""
    return ((i + 1) * a.out + a.size - 1) // a.size if a.window == 0 else min(a.out, (i + a.before) // a.stride + 1)


cdef inline Py_ssize_t row_start(const Pool *p, Py_ssize_t od, Py_ssize_t oy) noexcept nogil:
    """Where in the plane the first window of a row starts."""
    cdef Span z = p.span_d[od], y = p.span_h[oy]
    return ((z.begin - z.first * p.d.dilation) * p.h.size + y.begin - y.first * p.h.dilation) * p.w.size - p.w.before


cdef inline Py_ssize_t row_room(const Pool *p) noexcept nogil:
    """Elements of a row with room for whole vectors."""
    return (p.w.size + 4 * LANES + 15) // 16 * 16
