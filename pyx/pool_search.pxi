# Where maxima lie: along w in each row, once for all windows that read it, then down the rows under a window. In this order the
# first of equal values is the one that stays. Places are `real`, which vectors select like values: the tap along w, and the row
# by its distance from the window's first; they become an index only for who asks for one.
#
# A strip is the rows under some rows of windows. A tap in the padding has the value -inf and wins only if all others are that, too.
# Vectors take no notice of it nor of a NaN, but tell; then the row is searched again one by one.


cdef struct Strip:
    Span z                      # planes of rows
    Span y
    bint exact                  # a row has been searched again


cdef void search_row(const Pool *p, const real *x, real *values, real *taps) noexcept nogil:
    """Maxima along w and their taps, exactly: NaN wins, -1 if a window has no tap. Taps are counted from the window's first, or
    (one by one) from the first in the row."""
    cdef Py_ssize_t ox, k
    cdef real v
    cdef Span w
    for ox in range(p.w.out):
        w = inside(&p.w, ox)
        values[ox] = -INFINITY
        taps[ox] = -1
        for k in range(w.taps):
            v = x[w.begin + k * p.w.dilation]
            if taps[ox] < 0 or v > values[ox] or (v != v and values[ox] == values[ox]):
                values[ox] = v
                taps[ox] = <real>(w.first * (p.phases > 0) + k)


cdef void search_strip(const Pool *p, Scratch *s, const real *x_p, Strip *t) noexcept nogil:
    """The same for all rows of a strip."""
    cdef Py_ssize_t i, n, y, z
    cdef real *values = s.values
    cdef real *taps = s.taps
    cdef Rows r
    r.nz = r.ny = 1
    r.advance = p.w.size
    for z in range(t.z.begin, t.z.begin + t.z.taps):
        for y from t.y.begin <= y < t.y.begin + t.y.taps by p.block:
            r.x = x_p + (z * p.h.size + y) * p.w.size
            r.count = n = min(p.block, t.y.begin + t.y.taps - y)
            if p.phases == 0 or fill(MAX, 1, p, &r, s.lines) or finish_lines(SEARCH, p, n, s.lines, values, taps, 1, NULL):
                t.exact = True
                for i in range(n):
                    search_row(p, r.x + i * p.w.size, values + i * p.outputs, taps + i * p.outputs)
            values += n * p.outputs
            taps += n * p.outputs


cdef inline void choose_of(int kind, bint exact, int rows, const Work *w, const Pool *p, Scratch *s, Py_ssize_t n, Py_ssize_t line,
                           Py_ssize_t row, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i, j, k, to, fresh, OW = p.w.out, outputs = p.outputs, advance = p.h.stride * outputs
    cdef const real *grad_out = w.grad_out + row * OW
    cdef real *out = w.out + row * OW
    cdef const real *values = s.values + line * outputs
    cdef const real *taps = s.taps + line * outputs
    cdef real *sums = s.sums + line * outputs
    cdef real *row_to = s.row
    cdef real *tap_to = s.tap
    cdef real *target
    cdef real factor
    cdef const real *distance = s.distance
    cdef const Py_ssize_t *from_first = s.from_first
    cdef Py_ssize_t known[3]    # what no store can change
    cdef vec best, at_row, tap, v, u, g
    cdef mask hit
    cdef bint places = kind == INDICES or exact
    for k in range(rows):
        known[k] = from_first[k]
    for i in range(row, row + count):
        factor = p.cells_d[i // p.h.out % p.d.out] * p.cells_h[i % p.h.out]
        fresh = s.reached - line if p.in_order else n
        for j from 0 <= j < OW by LANES:
            at_row = splat(0)
            if kind != AVERAGE_BACKWARD:
                best = load(values + j)
            if places:
                tap = load(taps + j)
            for k in range(1, 0 if kind == AVERAGE_BACKWARD else rows if rows else n):
                to = j + (known[k] if rows else from_first[k])
                v = load(values + to)
                hit = greater(v, best)
                if places:
                    u = load(taps + to)
                if exact:
                    hit = either(hit, both(is_nan(v), equal(best, best)))
                if places:
                    tap = pick(hit, u, tap)
                at_row = pick(hit, splat(distance[k] if kind == INDICES else <real>k), at_row)
                best = pick(hit, v, best) if exact else larger(best, v)
            if kind == INDICES:
                put(out + j, best, OW - j, NULL)
                store(row_to + j, at_row)
                store(tap_to + j, tap)
                continue
            g = fetch(grad_out + j, OW - j, 0)
            if kind == AVERAGE_BACKWARD:
                g = g * splat(p.scale) if p.scale != 0 else g * (load(p.cells_w + j) * splat(factor))
            for k in range(rows if rows else n):
                target = sums + j + (known[k] if rows else from_first[k])
                v = g if kind == AVERAGE_BACKWARD else pick(equal(at_row, splat(<real>k)), g, splat(0))
                store(target, load(target) + v if k < fresh else v)
        line += p.h.stride
        s.reached = line - p.h.stride + n
        values += advance
        taps += advance
        sums += advance
        row_to += outputs
        tap_to += outputs
        grad_out += OW
        out += OW


cdef void choose(const Work *w, const Pool *p, Scratch *s, const Strip *t, Py_ssize_t row, const Rows *r) noexcept nogil:
    """For rows of windows that are alike: INDICES finds the maxima, and their places for lines s.row and s.tap; the gradients add to
    s.sums what the rows of x receive. The numbers of rows under a window are constants where they are usual."""
    cdef Py_ssize_t i, k, n = 0, z = inside(&p.d, row // p.h.out % p.d.out).begin, y = inside(&p.h, row % p.h.out).begin
    cdef Py_ssize_t line = (z - t.z.begin) * t.y.taps + y - t.y.begin
    for i in range(r.nz):
        for k in range(r.ny):
            s.from_first[n] = (i * p.d.dilation * t.y.taps + k * p.h.dilation) * p.outputs
            s.distance[n] = <real>(i * p.d.dilation * p.h.size + k * p.h.dilation)
            n += 1
    if n == 0:
        for i in range(p.w.out if w.kind <= INDICES else 0):
            w.out[row * p.w.out + i] = -INFINITY
            s.tap[i] = -1
    elif w.kind == AVERAGE_BACKWARD and n == 3:
        choose_of(AVERAGE_BACKWARD, False, 3, w, p, s, n, line, row, r.count)
    elif w.kind == AVERAGE_BACKWARD:
        choose_of(AVERAGE_BACKWARD, False, 0, w, p, s, n, line, row, r.count)
    elif w.kind != MAX_BACKWARD:
        choose_of(INDICES, t.exact, 0, w, p, s, n, line, row, r.count)
    elif t.exact:
        choose_of(MAX_BACKWARD, True, 0, w, p, s, n, line, row, r.count)
    elif n == 3:
        choose_of(MAX_BACKWARD, False, 3, w, p, s, n, line, row, r.count)
    else:
        choose_of(MAX_BACKWARD, False, 0, w, p, s, n, line, row, r.count)


cdef void find_indices(const Work *w, const Pool *p, Scratch *s, Py_ssize_t row, Py_ssize_t last, int64_t *indices) noexcept nogil:
    """Maxima of rows of windows of a plane, counted over all planes, and unless it is NULL their indices in the plane."""
    cdef Py_ssize_t od = row // p.h.out % p.d.out, last_d = (last - 1) // p.h.out % p.d.out
    cdef Py_ssize_t ox, i, start, W = p.w.size, stride = p.w.stride, dilation = p.w.dilation, OW = p.w.out
    cdef const real *x_p = w.x + row // (p.d.out * p.h.out) * p.in_plane
    cdef const real *rows
    cdef const real *taps
    cdef Strip t
    cdef Rows r
    t.exact = False
    t.z = under(&p.d, od, last_d)
    t.y = under(&p.h, row % p.h.out, (last - 1) % p.h.out) if od == last_d else under(&p.h, 0, p.h.out - 1)
    search_strip(p, s, x_p, &t)
    while row < last:
        next_rows(p, w.x, row, last, &r)
        choose(w, p, s, &t, row, &r)
        for i in range(r.count if indices != NULL else 0):
            start = r.x - x_p + i * r.advance
            rows = s.row + i * p.outputs
            taps = s.tap + i * p.outputs
            for ox in range(OW if p.phases else 0):
                indices[(row + i) * OW + ox] = \
                    (start + ox * stride - p.w.before + <int>rows[ox] * W + <int>taps[ox] * dilation + 1) * (taps[ox] >= 0) - 1
            for ox in range(0 if p.phases else OW):
                indices[(row + i) * OW + ox] = -1 if taps[ox] < 0 else \
                    start + inside(&p.w, ox).begin + <int>rows[ox] * W + <int>taps[ox] * dilation
        row += r.count
