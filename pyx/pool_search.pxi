# Where maxima lie: along w in each row, once for all windows that read it, then down the rows under a window. In this order the
# first of equal values is the one that stays. Places are `real`, which vectors select like values: the tap along w, and the row
# by its distance from the window's first; they become an index only for who asks for one.
#
# Vectors take no notice of a NaN, nor of -inf, which padding also is, but tell; then the row is searched again one by one.


cdef void search_row(const Pool *p, const real *x, real *values, real *taps) noexcept nogil:
    """Maxima along w and their taps, exactly: NaN wins, -1 if a window has no tap. Without phases it is not the tap but its column."""
    cdef Py_ssize_t ox, k, tap
    cdef real v, best
    cdef Span w
    for ox in range(p.w.out):
        w = inside(&p.w, ox)
        best = -INFINITY
        tap = 0
        for k in range(w.taps):
            v = x[w.begin + k * p.w.dilation]
            if v != v:
                best = v
                tap = k
                break
            tap ^= (tap ^ k) & -<Py_ssize_t>(v > best)  # a branch would be a guess
            best = v if v > best else best
        values[ox] = best
        taps[ox] = <real>(-1 if w.taps == 0 else w.first + tap if p.phases else w.begin + tap * p.w.dilation)


cdef void search_strip(const Pool *p, Scratch *s, const real *x_p) noexcept nogil:
    """The same for all rows of a strip."""
    cdef Py_ssize_t i, n, y, z
    cdef real *values = s.values
    cdef real *taps = s.taps
    cdef Rows r
    r.nz = r.ny = 1
    r.advance = p.w.size
    s.exact = False
    for z in range(s.z, s.end_z):
        for y from s.y <= y < s.end_y by p.block:
            r.x = x_p + (z * p.h.size + y) * p.w.size
            r.count = n = min(p.block, s.end_y - y)
            if p.phases == 0 or fill(MAX, 1, p, &r, s.lines) or finish_lines(SEARCH, p, n, s.lines, values, taps, 1, NULL):
                s.exact = True
                for i in range(n):
                    search_row(p, r.x + i * p.w.size, values + i * p.outputs, taps + i * p.outputs)
            values += n * p.outputs
            taps += n * p.outputs


cdef inline void choose_of(int kind, bint exact, const Work *w, const Pool *p, Scratch *s, const Rows *r, Py_ssize_t row,
                           Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, j, k, to, OW = p.w.out, outputs = p.outputs, advance = p.h.stride * outputs
    cdef Py_ssize_t line = (r.z - s.z) * (s.end_y - s.y) + r.y - s.y
    cdef const real *grad_out = w.grad_out + row * OW
    cdef const real *values = s.values + line * outputs
    cdef const real *taps = s.taps + line * outputs
    cdef real *sums = s.sums + line * outputs
    cdef const Py_ssize_t *from_first = s.from_first
    cdef vec best, at_row, tap, v, g
    cdef mask hit
    for i in range(r.count):
        for j from 0 <= j < OW by LANES:
            at_row = splat(0)
            if kind != AVERAGE_BACKWARD:
                best = load(values + j)
            if kind == INDICES:
                tap = load(taps + j)
            for k in range(1, 0 if kind == AVERAGE_BACKWARD else n):
                to = j + from_first[k]
                v = load(values + to)
                hit = greater(v, best)
                if exact:
                    hit = either(hit, both(is_nan(v), equal(best, best)))
                if kind == INDICES:
                    tap = pick(hit, load(taps + to), tap)
                at_row = pick(hit, splat(s.distance[k]), at_row)
                best = pick(hit, v, best) if exact else larger(best, v)
            if kind == INDICES:
                put(w.out + (row + i) * OW + j, best, OW - j, NULL)
                store(s.row + i * outputs + j, at_row)
                store(s.tap + i * outputs + j, tap)
                continue
            g = fetch(grad_out + j, OW - j, 0)
            if kind == AVERAGE_BACKWARD:
                v = load(p.cells_w + j) * splat(p.cells_h[r.oy + i] * p.cells_d[r.od])
                g = g * (splat(p.scale) if p.scale != 0 else v)
            for k in range(n):
                to = j + from_first[k]
                v = g if kind == AVERAGE_BACKWARD else pick(equal(at_row, splat(s.distance[k])), g, splat(0))
                store(sums + to, load(sums + to) + v)
        values += advance
        taps += advance
        sums += advance
        grad_out += OW


cdef void choose(const Work *w, const Pool *p, Scratch *s, Py_ssize_t row, const Rows *r) noexcept nogil:
    """For rows of windows that are alike: maxima, s.row and s.tap; or what the rows of x receive is added to s.sums."""
    cdef Py_ssize_t i, k, n = 0
    for i in range(r.nz):
        for k in range(r.ny):
            s.from_first[n] = (i * p.d.dilation * (s.end_y - s.y) + k * p.h.dilation) * p.outputs
            s.distance[n] = <real>(i * p.d.dilation * p.h.size + k * p.h.dilation)
            n += 1
    if n == 0:
        for i in range(r.count * p.w.out if w.kind <= INDICES else 0):
            w.out[row * p.w.out + i] = -INFINITY
            s.tap[i // p.w.out * p.outputs + i % p.w.out] = -1
    elif w.kind <= INDICES:
        choose_of(INDICES, s.exact, w, p, s, r, row, n)
    else:
        choose_of(w.kind, s.exact, w, p, s, r, row, n)


cdef void find_indices(const Work *w, const Pool *p, Scratch *s, Py_ssize_t row, Py_ssize_t last, int64_t *indices) noexcept nogil:
    """Maxima of rows of windows of a plane, counted over all planes, and unless it is NULL their indices in the plane."""
    cdef Py_ssize_t od = row // p.h.out % p.d.out, last_d = (last - 1) // p.h.out % p.d.out
    cdef Py_ssize_t oy = row % p.h.out if od == last_d else 0, last_h = (last - 1) % p.h.out if od == last_d else p.h.out - 1
    cdef Py_ssize_t ox, i, at, begin, W = p.w.size, OW = p.w.out, outputs = p.outputs
    cdef Py_ssize_t stride = p.w.stride if p.phases else 0, dilation = p.w.dilation if p.phases else 1
    cdef const real *x_p = w.x + row // (p.d.out * p.h.out) * p.in_plane
    cdef const real *rows = s.row
    cdef const real *taps = s.tap
    cdef Rows r
    s.z = min(p.d.size, max(0, start(&p.d, od)))
    s.end_z = min(p.d.size, start(&p.d, last_d) + reach(&p.d) + 1)
    s.y = min(p.h.size, max(0, start(&p.h, oy)))
    s.end_y = min(p.h.size, start(&p.h, last_h) + reach(&p.h) + 1)
    search_strip(p, s, x_p)
    while row < last:
        next_rows(p, w.x, row, last, &r)
        choose(w, p, s, row, &r)
        for i in range(r.count if indices != NULL else 0):
            begin = r.x - x_p + i * r.advance - (p.w.before if p.phases else 0)
            for ox in range(OW):
                at = i * outputs + ox
                indices[(row + i) * OW + ox] = \
                    (begin + ox * stride + <int>rows[at] * W + <int>taps[at] * dilation + 1) * (taps[at] >= 0) - 1
        row += r.count
