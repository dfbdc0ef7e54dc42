# Pooling geometry: the windows of each axis, the plan of one call and its tables.
#
# Output o of an axis has the taps k < window at positions o*stride - before + k*dilation. An axis with window 0 is
# adaptive: output o covers the positions floor(o*size/out) up to ceil((o+1)*size/out).
#
# Along w, vectors work on lines: a row, padded and split by stride. Position i = column + before lies in phase i % stride
# at place i / stride, so that a tap of consecutive outputs is a contiguous run. Irregular axes have no lines.

cdef enum:
    MAX_PHASES = 64


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
    Py_ssize_t line             # elements of a line: phases * pitch
    Py_ssize_t flat             # elements of scratch that fill_line and spread_row need with many phases
    Py_ssize_t most             # rows in a window, or windows over a row
    bint seamless               # window rows follow each other at the same distance from one plane to the next
    Span *span_w                # [w.out]
    Span *span_h                # [h.out]
    real *cells_w               # [w.out + LANES] divisor along w; in the backward pass its reciprocal
    Py_ssize_t *offset          # [w.window] where in a line a tap of output 0 lies
    Py_ssize_t *phase           # [phases] in which phase, and where in a line, the columns 0, 1, ... lie
    Py_ssize_t *place
    Py_ssize_t *phase_start     # [phases + 1] the taps of phase r are tap[phase_start[r]] ... tap[phase_start[r + 1]]
    Py_ssize_t *tap             # [w.window]
    Py_ssize_t *back            # [w.window] how many outputs before the place of these taps their window is
    Py_ssize_t *cover_h         # [2 * h.size] first_covering and end_covering of the rows
    bint include_pad
    double divisor              # divisor_override, 0 if there is none
    real scale                  # what every sum is multiplied with, 0 if they are divided by their cells


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """For a >= 0."""
    return a if b == 1 else (a + b - 1) // b


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


cdef inline bint covers(const Axis *a, Py_ssize_t o, Py_ssize_t i) noexcept nogil:
    """Whether i, which lies between the first and the last position of window o, is one of its taps."""
    return a.dilation == 1 or (i + a.before - o * a.stride) % a.dilation == 0


cdef inline Py_ssize_t covering(const Axis *a) noexcept nogil:
    """The most outputs that can contain one position."""
    if a.window == 0:
        return a.out // a.size + 2
    return min(a.out, (a.window - 1) * a.dilation // a.stride + 1)


cdef int plan(Pool *p, bytes geometry, Py_ssize_t planes) except -1:
    """Read the axes d, h, w, seven Py_ssize_t each, in the order of Axis. Lines are for windows along w that are regular,
    not too far apart and not mostly padding."""
    cdef const char *packed = geometry
    cdef Py_ssize_t need
    if len(geometry) != 3 * sizeof(Axis):
        raise ValueError("geometry")
    memset(p, 0, sizeof(Pool))
    memcpy(&p.d, packed, 3 * sizeof(Axis))
    p.planes = planes
    p.in_plane = p.d.size * p.h.size * p.w.size
    p.out_plane = p.d.out * p.h.out * p.w.out
    p.most = max(rows_of(&p.d), covering(&p.d)) * max(rows_of(&p.h), covering(&p.h))
    p.flat = 2 * whole_lines(p.w.size + 2 * LANES)
    p.seamless = p.d.size == 1 and p.d.out == 1 and p.h.window and p.h.before == 0 and p.h.out * p.h.stride == p.h.size and \
        (p.h.window - 1) * p.h.dilation < p.h.stride
    need = max((p.w.out - 1) * p.w.stride + (p.w.window - 1) * p.w.dilation + 1, p.w.before + p.w.size)
    if p.w.window and p.w.stride <= MAX_PHASES and need <= 2 * p.w.size + 1024:
        p.phases = p.w.stride
        p.pitch = whole_lines(need // p.phases + 3 * LANES)
        p.line = p.phases * p.pitch
        p.flat += p.line
    return 0


cdef inline Py_ssize_t whole_lines(Py_ssize_t elements) noexcept nogil:
    """Elements of a buffer that ends with its cache line."""
    return (elements + 31) // 16 * 16


cdef inline Py_ssize_t rows_of(const Axis *a) noexcept nogil:
    """The most taps of a window that lie in the array."""
    return a.size // a.out + 2 if a.window == 0 else min(a.window, a.size)


cdef Py_ssize_t table_bytes(const Pool *p) noexcept nogil:
    cdef Py_ssize_t n = (p.w.out + p.h.out) * <Py_ssize_t>sizeof(Span) + (p.w.out + LANES) * <Py_ssize_t>sizeof(real)
    n += (3 * p.w.window * (p.phases > 0) + 3 * p.phases + 1 + 2 * p.h.size) * <Py_ssize_t>sizeof(Py_ssize_t)
    return (n + 127) // 64 * 64


cdef void fill_tables(Pool *p, char *memory) noexcept nogil:
    cdef Py_ssize_t o, k, r, n = 0, taps = p.w.window if p.phases else 0
    p.span_w = <Span *>memory
    p.span_h = p.span_w + p.w.out
    p.cover_h = <Py_ssize_t *>(p.span_h + p.h.out)
    p.offset = p.cover_h + 2 * p.h.size
    p.phase = p.offset + taps
    p.place = p.phase + p.phases
    p.phase_start = p.place + p.phases
    p.tap = p.phase_start + p.phases + 1
    p.back = p.tap + taps
    p.cells_w = <real *>(p.back + taps)
    for o in range(p.w.out):
        p.span_w[o] = span(&p.w, o)
    for o in range(p.h.out):
        p.span_h[o] = span(&p.h, o)
    for o in range(p.h.size):
        p.cover_h[2 * o] = first_covering(&p.h, o)
        p.cover_h[2 * o + 1] = end_covering(&p.h, o)
    for k in range(taps):
        p.offset[k] = k * p.w.dilation % p.phases * p.pitch + k * p.w.dilation // p.phases
    for r in range(p.phases):
        p.phase[r] = (p.w.before + r) % p.phases
        p.place[r] = p.phase[r] * p.pitch + (p.w.before + r) // p.phases
        p.phase_start[r] = n
        k = r if p.w.dilation == 1 else 0
        while k < taps:
            if k * p.w.dilation % p.phases == r:
                p.tap[n] = k
                p.back[n] = k * p.w.dilation // p.phases
                n += 1
            k += p.phases if p.w.dilation == 1 else 1
    p.phase_start[p.phases] = n


cdef inline real row_cells(const Pool *p, Py_ssize_t od, Py_ssize_t oy) noexcept nogil:
    """The factor of the divisor that a row of outputs shares."""
    if p.divisor != 0:
        return 1
    return <real>(<double>cells(&p.d, od, p.include_pad) * <double>cells(&p.h, oy, p.include_pad))


cdef bint common_cells(const Axis *a, bint include_pad, double *product) noexcept nogil:
    """Multiply the product by the cells of this axis; return whether all its windows have as many."""
    cdef Py_ssize_t o, n = cells(a, 0, include_pad)
    product[0] *= <double>n
    for o in range(1, a.out):
        if cells(a, o, include_pad) != n:
            return False
    return True


cdef void fill_cells(Pool *p) noexcept nogil:
    """The divisors along w. All the same and a power of two: sums are multiplied by the exact reciprocal."""
    cdef Py_ssize_t o
    cdef double product = 1
    cdef bint same = True
    if p.divisor != 0:
        product = p.divisor
    else:
        same = common_cells(&p.d, p.include_pad, &product) and common_cells(&p.h, p.include_pad, &product) and \
            common_cells(&p.w, p.include_pad, &product)
    if same and 1 <= product <= 1 << 30 and not (<Py_ssize_t>product & (<Py_ssize_t>product - 1)):
        p.scale = <real>(1 / product)
    for o in range(p.w.out):
        p.cells_w[o] = <real>(p.divisor if p.divisor != 0 else <double>cells(&p.w, o, p.include_pad))
    for o in range(p.w.out, p.w.out + LANES):
        p.cells_w[o] = 1
