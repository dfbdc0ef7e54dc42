# Pooling geometry: the windows of each axis, the plan of one call and its tables.
#
# Output o of an axis has the taps k < window at positions o*stride - before + k*dilation. An axis with window 0 is
# adaptive: output o covers the positions floor(o*size/out) up to ceil((o+1)*size/out).
#
# Along w, vectors work on lines: a row, padded and split by stride. Column c lies in phase c % stride at place c / stride, so
# that a tap of consecutive outputs is a contiguous run. Irregular axes have no lines (phases 0).

cdef enum:
    MAX_PHASES = 64
    MAX_CODE = 1 << 24          # reals below are exact
    MAX_SEARCHED_BYTES = 1 << 20    # of lines under a window
    MAX_ROUTED = 100            # taps up to which gradients are routed by vectors, not scattered: benchmarks/pool.py


cdef struct Axis:
    Py_ssize_t size
    Py_ssize_t out
    Py_ssize_t window
    Py_ssize_t stride
    Py_ssize_t before
    Py_ssize_t after
    Py_ssize_t dilation


cdef struct Span:
    Py_ssize_t begin    # position of the first tap that lies in the array
    Py_ssize_t taps     # number of taps in the array
    Py_ssize_t first    # which tap of the window it is


cdef struct Pool:
    Axis d
    Axis h
    Axis w
    Py_ssize_t planes
    Py_ssize_t in_plane         # elements of a plane of the input, and of the output
    Py_ssize_t out_plane
    Py_ssize_t phases           # the stride along w, 0 without lines
    Py_ssize_t pitch            # elements of one phase
    Py_ssize_t base             # where in a phase column 0 lies
    Py_ssize_t line             # elements of a line: phases * pitch
    Py_ssize_t outputs_base     # where in a line of outputs the first lies, and its elements
    Py_ssize_t outputs
    Py_ssize_t rows             # the most rows under a window
    bint whole                  # one window, the whole plane
    bint direct                 # along w, windows follow each other without gaps, padding or overlap, strides 1 to 3
    bint gaps                   # there are rows that no window reads
    bint apart                  # windows do not overlap along d
    Py_ssize_t kept             # rows of a plane that windows in progress add to: a power of two
    bint seamless               # rows of windows follow each other at the same distance from one plane to the next
    Span *span_d                # [d.out] and so on
    Span *span_h
    Span *span_w
    Py_ssize_t *first_d         # [d.size] the first output that contains a position, `out` if none does
    Py_ssize_t *first_h         # [h.size]
    Py_ssize_t *last_h          # [h.size] the last such output
    Py_ssize_t *offset          # [w.window] where in a line a tap of output 0 lies
    Py_ssize_t *phase_start     # [phases + 1] the taps that read phase r are those from phase_start[r] on
    Py_ssize_t *back            # [w.window] output m - back of such a tap reads place m
    real *tap                   # [w.window] which tap that is
    real *cells_d               # [d.out] divisors along each axis, in the backward pass their reciprocals
    real *cells_h               # [h.out]
    real *cells_w               # [w.out + LANES]
    bint include_pad
    double divisor              # divisor_override, 0 if there is none
    real scale                  # what every sum is multiplied with, 0 if they are divided by their cells


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """For a >= 0."""
    return a if b == 1 else (a + b - 1) // b


cdef inline Py_ssize_t floor_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a // b if a >= 0 else -((b - 1 - a) // b)


cdef inline Span span(const Axis *a, Py_ssize_t o) noexcept nogil:
    cdef Span s
    cdef Py_ssize_t start
    if a.window == 0:
        s.begin = o * a.size // a.out
        s.taps = ceil_div((o + 1) * a.size, a.out) - s.begin
        s.first = 0
        return s
    start = o * a.stride - a.before
    s.first = ceil_div(-start, a.dilation) if start < 0 else 0
    s.begin = start + s.first * a.dilation
    s.taps = max(0, (min(a.window, ceil_div(a.size - start, a.dilation)) if a.size > start else 0) - s.first)
    return s


cdef inline Py_ssize_t cells(const Axis *a, Py_ssize_t o, bint include_pad) noexcept nogil:
    """How many cells of window o an average counts."""
    if include_pad and a.window:
        return min(a.window, ceil_div(a.size + a.after + a.before - o * a.stride, a.dilation))
    return span(a, o).taps


cdef inline Py_ssize_t first_covering(const Axis *a, Py_ssize_t i) noexcept nogil:
    """The first output whose window may contain position i."""
    cdef Py_ssize_t start
    if a.window == 0:
        return i * a.out // a.size
    start = i + a.before - (a.window - 1) * a.dilation
    return ceil_div(start, a.stride) if start > 0 else 0


cdef inline Py_ssize_t end_covering(const Axis *a, Py_ssize_t i) noexcept nogil:
    """One past the last output whose window may contain position i."""
    if a.window == 0:
        return ceil_div((i + 1) * a.out, a.size)
    return min(a.out, (i + a.before) // a.stride + 1)


cdef inline Py_ssize_t rows_of(const Axis *a) noexcept nogil:
    """The most taps of a window that lie in the array."""
    return a.size // a.out + 2 if a.window == 0 else min(a.window, a.size)


cdef inline bint spans_all(const Axis *a) noexcept nogil:
    return a.out == 1 and a.before == 0 and (a.window == 0 or a.window == a.size and a.dilation == 1)


cdef inline Py_ssize_t whole_lines(Py_ssize_t elements) noexcept nogil:
    """Elements of a buffer that ends with its cache line."""
    return (elements + 31) // 16 * 16


cdef int plan(Pool *p, bytes geometry, Py_ssize_t planes) except -1:
    """Read the axes d, h, w, seven Py_ssize_t each, in the order of Axis. Lines are for windows along w that are regular,
    not too far apart and not mostly padding."""
    cdef const char *packed = geometry
    cdef Py_ssize_t last, ahead, wide
    if len(geometry) != 3 * sizeof(Axis):
        raise ValueError("geometry")
    memset(p, 0, sizeof(Pool))
    memcpy(&p.d, packed, 3 * sizeof(Axis))
    p.planes = planes
    p.in_plane = p.d.size * p.h.size * p.w.size
    p.out_plane = p.d.out * p.h.out * p.w.out
    p.rows = rows_of(&p.d) * rows_of(&p.h)
    p.whole = spans_all(&p.d) and spans_all(&p.h) and spans_all(&p.w)
    p.seamless = p.d.size == 1 and p.d.out == 1 and p.h.window and p.h.before == 0 and p.h.out * p.h.stride == p.h.size and \
        (p.h.window - 1) * p.h.dilation < p.h.stride
    p.outputs = whole_lines(p.w.out + 2 * LANES)
    p.apart = p.d.window and p.d.stride >= (p.d.window - 1) * p.d.dilation + 1 or p.d.out == 1
    p.kept = 1
    while p.kept < (min(p.h.size, (p.h.window - 1) * p.h.dilation + 1) if p.h.window else rows_of(&p.h) + 1) and p.apart:
        p.kept *= 2
    last = (p.w.window - 1) * p.w.dilation - p.w.before     # of the taps of output 0
    wide = max((p.w.out - 1) * p.w.stride + last + 1, p.w.size)
    if p.w.window == 0 or p.w.stride > MAX_PHASES or p.w.before + wide > 2 * p.w.size + 1024:
        return 0
    p.phases = p.w.stride
    p.base = (p.w.before // p.phases + LANES) // LANES * LANES
    p.pitch = whole_lines(p.base + wide // p.phases + 3 * LANES)
    p.line = p.phases * p.pitch
    p.direct = p.w.window == p.phases and p.phases <= 3 and p.w.dilation == 1 and p.w.before == 0 and p.phases * p.w.out <= p.w.size
    ahead = max(0, last // p.phases + 1)
    p.outputs_base = (ahead + LANES) // LANES * LANES
    p.outputs = whole_lines(p.outputs_base + max(p.w.out, p.w.size // p.phases + p.w.before // p.phases + 2) + 3 * LANES)
    return 0


cdef bint fill_axis(const Axis *a, Span *spans, Py_ssize_t *first, Py_ssize_t *last) noexcept nogil:
    """The tables of d and h. Returns whether there are positions that no window reads."""
    cdef bint gaps = False
    cdef Py_ssize_t o, k
    for k in range(a.size):
        first[k] = a.out
    for o in range(a.out - 1, -1, -1):
        spans[o] = span(a, o)
        for k in range(spans[o].taps):
            if first[spans[o].begin + k * a.dilation] == a.out:
                last[spans[o].begin + k * a.dilation] = o
            first[spans[o].begin + k * a.dilation] = o
    for k in range(a.size):
        gaps |= first[k] == a.out
    return gaps


cdef Py_ssize_t fill_tables(Pool *p, char *memory) noexcept nogil:
    """Returns the bytes that the tables take; without memory that is all."""
    cdef Py_ssize_t o, k, r, n = 0, taps = p.w.window if p.phases else 0
    p.span_d = <Span *>memory
    p.span_h = p.span_d + p.d.out
    p.span_w = p.span_h + p.h.out
    p.first_d = <Py_ssize_t *>(p.span_w + p.w.out)
    p.first_h = p.first_d + p.d.size
    p.last_h = p.first_h + p.h.size
    p.offset = p.last_h + max(p.h.size, p.d.size)
    p.back = p.offset + taps
    p.phase_start = p.back + taps
    p.tap = <real *>(p.phase_start + p.phases + 1)
    p.cells_d = p.tap + taps
    p.cells_h = p.cells_d + p.d.out
    p.cells_w = p.cells_h + p.h.out
    if memory == NULL:
        return (<Py_ssize_t>(p.cells_w + p.w.out + LANES) + 127) // 64 * 64
    p.gaps = fill_axis(&p.d, p.span_d, p.first_d, p.last_h) | fill_axis(&p.h, p.span_h, p.first_h, p.last_h)
    for o in range(p.w.out):
        p.span_w[o] = span(&p.w, o)
    for k in range(taps):
        r = floor_div(k * p.w.dilation - p.w.before, p.phases)
        p.offset[k] = (k * p.w.dilation - p.w.before - r * p.phases) * p.pitch + p.base + r
    for r in range(p.phases):
        p.phase_start[r] = n
        k = (p.w.before + r) % p.phases if p.w.dilation == 1 else 0
        while k < taps:
            o = floor_div(k * p.w.dilation - p.w.before, p.phases)
            if k * p.w.dilation - p.w.before - o * p.phases == r:
                p.tap[n] = <real>k
                p.back[n] = o
                n += 1
            k += p.phases if p.w.dilation == 1 else 1
    if p.phases:
        p.phase_start[p.phases] = n
    return 0


cdef bint fill_cells_of(const Pool *p, const Axis *a, real *to, bint invert, double *product) noexcept nogil:
    """The divisors along an axis. Multiply the product by the first; return whether all are the same."""
    cdef Py_ssize_t o, n
    cdef bint same = True
    for o in range(a.out):
        n = cells(a, o, p.include_pad) if p.divisor == 0 else 1
        to[o] = 1 / <real>n if invert else <real>n
        same &= to[o] == to[0]
    product[0] *= <double>(cells(a, 0, p.include_pad) if p.divisor == 0 else 1)
    return same


cdef void fill_cells(Pool *p, bint invert) noexcept nogil:
    """All divisors. All the same and a power of two: sums are multiplied by the exact reciprocal."""
    cdef Py_ssize_t o
    cdef double product = p.divisor if p.divisor != 0 else 1
    cdef bint same = fill_cells_of(p, &p.d, p.cells_d, invert, &product) & fill_cells_of(p, &p.h, p.cells_h, invert, &product) & \
        fill_cells_of(p, &p.w, p.cells_w, invert, &product)
    if same and 1 <= product <= 1 << 30 and not (<Py_ssize_t>product & (<Py_ssize_t>product - 1)):
        p.scale = <real>(1 / product)
    for o in range(p.d.out if p.divisor != 0 else 0):
        p.cells_d[o] = <real>(1 / p.divisor if invert else p.divisor)
    for o in range(p.w.out, p.w.out + LANES):
        p.cells_w[o] = 1
