# Pooling geometry: the windows of each axis, and the plan of one call.
#
# Output o of an axis has the taps k < window at positions o*stride - before + k*dilation. An axis with window 0 is
# adaptive: output o covers the positions floor(o*size/out) up to ceil((o+1)*size/out).

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
    Py_ssize_t phases           # the stride along w when lines are padded and split by stride, 0 when they are not
    Py_ssize_t pitch            # elements of one phase of a line
    Py_ssize_t line             # elements of a line: phases * pitch
    Py_ssize_t *offset          # [w.window] where in a line a tap of output 0 lies
    Span *span_w                # [w.out]
    real *weight_w              # [w.out + LANES] cells counted along w; in the backward pass its reciprocal
    bint include_pad
    real scale                  # what every sum is multiplied with, 0 if they are divided by their cells
    double divisor              # divisor_override, 0 if there is none
    Py_ssize_t ring             # strips kept for each tap along d
    Py_ssize_t *jump            # [d.window * h.window * w.window] from a window's start to its taps in the plane
    Py_ssize_t *phase_start     # [w.stride + 1] backward: the taps in order of their phase


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
    s.taps = (min(a.window, ceil_div(a.size - start, a.dilation)) if a.size > start else 0) - s.first
    if s.taps < 0:
        s.taps = 0
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


cdef int read_geometry(Pool *p, bytes geometry, Py_ssize_t planes) except -1:
    """The axes d, h, w, seven Py_ssize_t each, in the order of Axis."""
    cdef const char *packed = geometry
    if len(geometry) != 3 * sizeof(Axis):
        raise ValueError("geometry")
    memset(p, 0, sizeof(Pool))
    memcpy(&p.d, packed, 3 * sizeof(Axis))
    p.planes = planes
    p.in_plane = p.d.size * p.h.size * p.w.size
    p.out_plane = p.d.out * p.h.out * p.w.out
    return 0


cdef void plan_lines(Pool *p) noexcept nogil:
    """Padded lines, split by stride, unless windows are irregular, far apart or mostly padding."""
    cdef Py_ssize_t need = max((p.w.out - 1) * p.w.stride + (p.w.window - 1) * p.w.dilation + 1, p.w.before + p.w.size)
    if p.w.window and p.w.stride <= MAX_PHASES and need <= 2 * p.w.size + 1024:
        p.phases = p.w.stride
        p.pitch = need // p.phases + 1 + 3 * LANES
        p.line = p.phases * p.pitch


cdef Py_ssize_t table_bytes(const Pool *p) noexcept nogil:
    cdef Py_ssize_t n = p.w.out * <Py_ssize_t>sizeof(Span) + (p.w.out + LANES) * <Py_ssize_t>sizeof(real) + 64
    if p.phases:
        n += (p.w.window + p.w.stride + 1) * <Py_ssize_t>sizeof(Py_ssize_t)
    if p.ring:
        n += p.d.window * p.h.window * p.w.window * <Py_ssize_t>sizeof(Py_ssize_t)
    return (n + 127) // 64 * 64


cdef void fill_tables(Pool *p, char *memory) noexcept nogil:
    cdef Py_ssize_t o, k, j, i
    p.span_w = <Span *>memory
    memory += p.w.out * sizeof(Span)
    for o in range(p.w.out):
        p.span_w[o] = span(&p.w, o)
    if p.phases:
        p.offset = <Py_ssize_t *>memory
        memory += p.w.window * sizeof(Py_ssize_t)
        for k in range(p.w.window):
            p.offset[k] = k * p.w.dilation % p.phases * p.pitch + k * p.w.dilation // p.phases
        p.phase_start = <Py_ssize_t *>memory
        memory += (p.w.stride + 1) * sizeof(Py_ssize_t)
    if p.ring:
        p.jump = <Py_ssize_t *>memory
        memory += p.d.window * p.h.window * p.w.window * sizeof(Py_ssize_t)
        o = 0
        for i in range(p.d.window):
            for j in range(p.h.window):
                for k in range(p.w.window):
                    p.jump[o] = (i * p.d.dilation * p.h.size + j * p.h.dilation) * p.w.size + k * p.w.dilation
                    o += 1
    p.weight_w = <real *>memory


cdef inline real row_cells(const Pool *p, Py_ssize_t od, Py_ssize_t oy) noexcept nogil:
    """The factor of the divisor that a row of outputs shares."""
    if p.divisor != 0:
        return 1
    return <real>(<double>cells(&p.d, od, p.include_pad) * <double>cells(&p.h, oy, p.include_pad))


cdef void fill_cells(Pool *p) noexcept nogil:
    """The divisors along w. All the same and a power of two: sums are multiplied by the exact reciprocal."""
    cdef Py_ssize_t o
    cdef double n, common = 0
    cdef bint same = True
    for o in range(p.w.out):
        n = p.divisor if p.divisor != 0 else <double>cells(&p.w, o, p.include_pad)
        p.weight_w[o] = <real>n
        same = same and (o == 0 or n == common)
        common = n
    for o in range(p.w.out, p.w.out + LANES):
        p.weight_w[o] = 1
    if p.divisor == 0:
        n = <double>cells(&p.d, 0, p.include_pad)
        for o in range(1, p.d.out):
            same = same and <double>cells(&p.d, o, p.include_pad) == n
        common *= n
        n = <double>cells(&p.h, 0, p.include_pad)
        for o in range(1, p.h.out):
            same = same and <double>cells(&p.h, o, p.include_pad) == n
        common *= n
    if same and 1 <= common <= 1 << 30 and not (<Py_ssize_t>common & (<Py_ssize_t>common - 1)):
        p.scale = <real>(1 / common)
