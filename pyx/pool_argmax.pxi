# Where the maximum of a window lies: of equal values the first, and the first NaN before all of them. A position in the
# window, (kz*KH + ky)*KW + kx, is kept as a `real` (exact: windows of up to MAX_WINDOW taps), so that vectors select it like a
# value. The rows of the input are kept as strips, padded and split by stride, in a ring of as many as a row of windows reaches.

cdef enum:
    MAX_WINDOW = 1 << 12
    MAX_RING_BYTES = 1 << 22


cdef struct Ring:
    const real *plane           # what the strips hold: rows of this plane, for this od
    Py_ssize_t od
    Py_ssize_t next             # the next row to be copied
    real *strips                # [tap along d][row modulo p.ring][p.line]
    real *values                # [w.out + LANES] maxima
    real *positions             # [w.out + LANES], -1: the window has no taps
    const real **row            # [d.window * h.window] strips of one row of windows


cdef void plan_ring(Pool *p) noexcept nogil:
    """Strips, if the windows are regular and not too large; else each window is searched on its own."""
    if p.phases and <double>p.d.window * p.h.window * p.w.window <= MAX_WINDOW:
        p.ring = min((p.h.window - 1) * p.h.dilation + 1, p.h.size)
        if p.ring * p.d.window * p.line * <Py_ssize_t>sizeof(real) > MAX_RING_BYTES:
            p.ring = 0


cdef inline Py_ssize_t whole_lines(Py_ssize_t elements) noexcept nogil:
    """Elements of a buffer that ends with its cache line."""
    return (elements + 31) // 16 * 16


cdef Py_ssize_t ring_elements(const Pool *p) noexcept nogil:
    if p.ring == 0:
        return whole_lines(p.w.out + LANES)
    return whole_lines(p.ring * p.d.window * p.line + line_elements(p)) + 2 * whole_lines(p.w.out + LANES) + \
        whole_lines(2 * p.d.window * p.h.window)


cdef void set_ring(const Pool *p, Ring *ring, real *memory) noexcept nogil:
    cdef Py_ssize_t i
    ring.plane = NULL
    ring.positions = memory
    memory += whole_lines(p.w.out + LANES)
    if p.ring:
        ring.values = memory
        memory += whole_lines(p.w.out + LANES)
        ring.row = <const real **>memory
        memory += whole_lines(2 * p.d.window * p.h.window)
        ring.strips = memory
        for i in range(p.ring * p.d.window * p.line + line_elements(p)):
            memory[i] = -INFINITY


cdef inline void search_taps(const Pool *p, const Ring *ring, Py_ssize_t nz, Py_ssize_t ny, Py_ssize_t first,
                             Py_ssize_t taps, bint exact, vec *value, vec *position, mask *nan, Py_ssize_t j) noexcept nogil:
    """Search the windows of LANES outputs, row by row. Without `exact` NaNs are only noticed."""
    cdef vec best = splat(-INFINITY), found = splat(<real>first), v
    cdef mask better, bad = is_nan(best)
    cdef Py_ssize_t z, y, k, code
    cdef const real *row
    for z in range(nz):
        for y in range(ny):
            row = ring.row[z * ny + y] + j
            code = first + (z * p.h.window + y) * taps
            for k in range(taps):
                v = load(row + p.offset[k])
                better = greater(v, best)
                if exact:
                    better = better | (is_nan(v) & ~is_nan(best))
                    best = pick(better, v, best)
                else:
                    bad = bad | is_nan(v)
                    best = larger(best, v)
                found = pick(better, splat(<real>(code + k)), found)
    value[0] = best
    position[0] = found
    nan[0] = bad


cdef inline void search_row(const Pool *p, const Ring *ring, Py_ssize_t nz, Py_ssize_t ny, Py_ssize_t first,
                            Py_ssize_t taps) noexcept nogil:
    cdef Py_ssize_t j = 0
    cdef vec value, position
    cdef mask nan
    while j < p.w.out:
        search_taps(p, ring, nz, ny, first, taps, False, &value, &position, &nan, j)
        if any(nan):
            search_taps(p, ring, nz, ny, first, taps, True, &value, &position, &nan, j)
        store(ring.values + j, value)
        store(ring.positions + j, position)
        j += LANES


cdef inline void fix_position(const Pool *p, Ring *ring, Py_ssize_t ox, Py_ssize_t first) noexcept nogil:
    """A window whose cells are all -inf has found its first cell; if that is padding, the first in the array is meant."""
    cdef Span s = p.span_w[ox]
    cdef Py_ssize_t kx
    if s.taps == 0:
        ring.positions[ox] = -1
    else:
        kx = <Py_ssize_t>ring.positions[ox] - first
        if 0 <= kx < s.first:
            ring.positions[ox] = <real>(first + s.first)


cdef void search_windows(const Pool *p, Ring *ring, const real *x_p, Py_ssize_t od, Py_ssize_t oy) noexcept nogil:
    """values and positions of one row of windows."""
    cdef Span z = span(&p.d, od), y = span(&p.h, oy)
    cdef Py_ssize_t first = (z.first * p.h.window + y.first) * p.w.window, i, k, ox
    if z.taps * y.taps == 0:
        for ox in range(p.w.out):
            ring.values[ox] = -INFINITY
            ring.positions[ox] = -1
        return
    if ring.plane != x_p or ring.od != od:
        ring.plane = x_p
        ring.od = od
        ring.next = 0
    ring.next = max(ring.next, oy * p.h.stride - p.h.before)
    while ring.next <= y.begin + (y.taps - 1) * p.h.dilation:
        for k in range(z.taps):
            fill_line(MAX, p, x_p + ((z.begin + k * p.d.dilation) * p.h.size + ring.next) * p.w.size, 1, 0, 1, 0,
                      ring.strips + (k * p.ring + ring.next % p.ring) * p.line, ring.strips + p.ring * p.d.window * p.line)
        ring.next += 1
    for k in range(z.taps):
        for i in range(y.taps):
            ring.row[k * y.taps + i] = ring.strips + (k * p.ring + (y.begin + i * p.h.dilation) % p.ring) * p.line
    if p.w.window == 2:
        search_row(p, ring, z.taps, y.taps, first, 2)
    elif p.w.window == 3:
        search_row(p, ring, z.taps, y.taps, first, 3)
    else:
        search_row(p, ring, z.taps, y.taps, first, p.w.window)
    ox = 0
    while ox < p.w.out and ox * p.w.stride < p.w.before:
        fix_position(p, ring, ox, first)
        ox += 1
    ox = p.w.out - 1
    while ox >= 0 and ox * p.w.stride - p.w.before >= p.w.size:
        fix_position(p, ring, ox, first)
        ox -= 1


cdef Py_ssize_t search_window(const Pool *p, const real *x_p, Span z, Span y, Span s) noexcept nogil:
    """The index in the plane of the maximum of one window, -1 if it has no taps."""
    cdef Py_ssize_t i, j, k, found = -1, at
    cdef real best = -INFINITY, v
    for i in range(z.taps):
        for j in range(y.taps):
            at = ((z.begin + i * p.d.dilation) * p.h.size + y.begin + j * p.h.dilation) * p.w.size + s.begin
            for k in range(s.taps):
                v = x_p[at]
                if v > best or (v != v and best == best) or found < 0:
                    best = v
                    found = at
                at += p.w.dilation
    return found


cdef void indices_row(const Pool *p, Ring *ring, const real *x_p, Py_ssize_t od, Py_ssize_t oy, real *values,
                      int64_t *indices) noexcept nogil:
    """Maxima and their indices in the plane of one row of windows."""
    cdef Py_ssize_t ox, at, position
    cdef Span z, y
    if p.ring == 0:
        z = span(&p.d, od)
        y = span(&p.h, oy)
        for ox in range(p.w.out):
            at = search_window(p, x_p, z, y, p.span_w[ox])
            indices[ox] = at
            values[ox] = x_p[at] if at >= 0 else -INFINITY
        return
    search_windows(p, ring, x_p, od, oy)
    memcpy(values, ring.values, p.w.out * sizeof(real))
    at = row_start(p, od, oy)
    for ox in range(p.w.out):
        position = <Py_ssize_t>ring.positions[ox]
        indices[ox] = at + p.jump[position] if position >= 0 else -1
        at += p.w.stride


cdef inline Py_ssize_t row_start(const Pool *p, Py_ssize_t od, Py_ssize_t oy) noexcept nogil:
    """Where in the plane the first window of a row starts, padding included."""
    return ((od * p.d.stride - p.d.before) * p.h.size + oy * p.h.stride - p.h.before) * p.w.size - p.w.before


cdef void indices_part(const Pool *p, const real *x, real *out, int64_t *indices, Py_ssize_t part, Py_ssize_t parts,
                       real *memory) noexcept nogil:
    cdef Py_ssize_t rows = p.planes * p.d.out * p.h.out, row, in_planes
    cdef Ring ring
    set_ring(p, &ring, memory)
    for row in range(rows * part // parts, rows * (part + 1) // parts):
        in_planes = row // p.h.out
        indices_row(p, &ring, x + in_planes // p.d.out * p.in_plane, in_planes % p.d.out, row % p.h.out,
                    out + row * p.w.out, indices + row * p.w.out)
