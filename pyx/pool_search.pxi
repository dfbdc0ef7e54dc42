# Where a maximum lies: of equal values the first, and the first NaN before all of them.
#
# The place of a maximum is kept as its row, by the distance in the plane from the start of the window, and its tap along w:
# two `real`, which vectors select like values. They become an index only for who asks for indices. Each row is searched along
# w first, once for all windows that read it, then what was found in the rows under a window is compared: in this order the
# first of equal values is the one that stays. Rows of windows that are alike are searched together.


cdef inline vec better(bint exact, vec v, mask *m, vec best) noexcept nogil:
    """The greater of v and the best so far; and where that is v."""
    m[0] = greater(v, best)
    if exact:
        m[0] = either(m[0], both(is_nan(v), equal(best, best)))
    return pick(m[0], v, best) if exact else larger(best, v)


cdef inline void search_lines(bint exact, int taps, const Pool *p, const Scratch *s, Py_ssize_t count, real *values,
                              real *taps_to) noexcept nogil:
    """Along w: the maxima of windows in each line, and their taps, -1 for none. `taps` is their number if it is not 0."""
    cdef Py_ssize_t i, j, k, OW = p.w.out, outputs = p.outputs
    cdef const Py_ssize_t *offset = p.offset
    cdef const real *line = s.lines
    cdef Py_ssize_t known[5]    # what no store can change
    cdef vec best, tap
    cdef mask hit
    for k in range(taps):
        known[k] = offset[k]
    for i in range(count):
        for j from 0 <= j < OW by LANES:
            best = splat(-INFINITY)
            tap = splat(-1)
            for k in range(taps if taps else p.w.window):
                best = better(exact, at(line + j, known[k] if taps else offset[k]), &hit, best)
                tap = pick(hit, splat(<real>k), tap)
            store(values + j, best)
            store(taps_to + j, tap)
        line += p.line
        values += outputs
        taps_to += outputs


cdef void search_exactly(const Pool *p, const Scratch *s, Py_ssize_t count, real *values, real *taps) noexcept nogil:
    search_lines(True, 0, p, s, count, values, taps)


cdef inline bint search_columns(bint exact, int rows, const Pool *p, const Scratch *s, Py_ssize_t count, Py_ssize_t advance) noexcept nogil:
    """The maxima of what search_rows found in the rows under windows: s.best, s.row, s.tap. Returns whether some have none."""
    cdef Py_ssize_t i, j, a, left, OW = p.w.out, outputs = p.outputs, n = rows if rows else s.rows, to = 0, x = 0
    cdef const real *values = s.values
    cdef const real *taps = s.taps
    cdef const real *start = s.start
    cdef const Py_ssize_t *from_x = s.from_x
    cdef real *best_to = s.best
    cdef real *row_to = s.row
    cdef real *tap_to = s.tap
    cdef Py_ssize_t known[3]    # what no store can change
    cdef real starts[3]
    cdef vec best, row, tap
    cdef mask hit, none = is_nan(splat(0))
    for a in range(rows):
        known[a] = from_x[a]
        starts[a] = start[a]
    for i in range(count):
        for j from 0 <= j < OW by LANES:
            best = splat(-INFINITY)
            row = tap = splat(-1)
            for a in range(n):
                best = better(exact, load(values + x + (known[a] if rows else from_x[a]) + j), &hit, best)
                row = pick(hit, splat(starts[a] if rows else start[a]), row)
                tap = pick(hit, load(taps + x + (known[a] if rows else from_x[a]) + j), tap)
            left = OW - j
            if left < LANES:
                none = either(none, greater(splat(0), first_of(tap, <int>left, splat(0))))
                tap = first_of(tap, <int>left, splat(-1))
            else:
                none = either(none, greater(splat(0), tap))
            store(best_to + to + j, best)
            store(row_to + to + j, row)
            store(tap_to + to + j, tap)
        x += advance
        to += outputs
    return any(none)


cdef inline Py_ssize_t search_windows(int phases, const Pool *p, Scratch *s, const real *x, Py_ssize_t row, Py_ssize_t last) noexcept nogil:
    """Search rows of windows from `row` on, counted over all planes, up to `last`. Returns how many."""
    cdef Py_ssize_t i, k, ox, n, lines, to, advance = p.outputs * (p.h.stride if p.shared else 1)
    cdef Span z = p.span_d[row // p.h.out % p.d.out], y = p.span_h[row % p.h.out], taps
    cdef bint nan = False, none
    cdef Rows r, group
    n = next_rows(p, x, row, min(last, row + p.together), &r)
    s.rows = r.nz * r.ny
    lines = (n - 1) * p.h.stride + (r.ny - 1) * p.h.dilation + 1 if p.shared else n
    group = r
    group.count = lines if s.rows else 0
    group.advance = p.w.size if p.shared else r.advance
    for i in range(r.nz):
        for k in range(r.ny):
            s.start[i * r.ny + k] = <real>(((z.first + i) * p.d.dilation * p.h.size + (y.first + k) * p.h.dilation) * p.w.size)
            s.from_x[i * r.ny + k] = (i * lines + k * p.h.dilation if p.shared else (i * r.ny + k) * n) * p.outputs
            if k and p.shared:
                continue
            to = s.from_x[i * r.ny + k]
            group.x = r.x + i * r.step_z + k * r.step_y
            if fill_lines(FAST, 1, phases, p, &group, s.lines, s.flat):
                nan = True
            if nan:
                search_exactly(p, s, group.count, s.values + to, s.taps + to)
            elif p.w.window == 2:
                search_lines(False, 2, p, s, group.count, s.values + to, s.taps + to)
            elif p.w.window == 3:
                search_lines(False, 3, p, s, group.count, s.values + to, s.taps + to)
            elif p.w.window == 5:
                search_lines(False, 5, p, s, group.count, s.values + to, s.taps + to)
            else:
                search_lines(False, 0, p, s, group.count, s.values + to, s.taps + to)
    if nan:
        none = search_columns(True, 0, p, s, n, advance)
    elif s.rows == 2:
        none = search_columns(False, 2, p, s, n, advance)
    elif s.rows == 3:
        none = search_columns(False, 3, p, s, n, advance)
    else:
        none = search_columns(False, 0, p, s, n, advance)
    for i in range(n if none and s.rows else 0):    # windows that hold nothing but -inf have their first tap, if they have one
        for ox in range(p.w.out):
            taps = span_w(p, ox)
            if s.tap[i * p.outputs + ox] < 0 and taps.taps:
                s.tap[i * p.outputs + ox] = <real>taps.first
                s.row[i * p.outputs + ox] = s.start[0]
    return n


cdef Py_ssize_t search_window(const Pool *p, const real *x_p, Span z, Span y, Span w) noexcept nogil:
    """The index in the plane of the maximum of one window, -1 if it has no taps."""
    cdef Py_ssize_t i, j, k, found = -1, at_tap
    cdef real best = -INFINITY, v
    for i in range(z.taps):
        for j in range(y.taps):
            at_tap = ((z.begin + i * p.d.dilation) * p.h.size + y.begin + j * p.h.dilation) * p.w.size + w.begin
            for k in range(w.taps):
                v = x_p[at_tap]
                if v > best or (v != v and best == best) or found < 0:
                    best = v
                    found = at_tap
                at_tap += p.w.dilation
    return found


cdef inline Py_ssize_t find_indices(int phases, const Pool *p, Scratch *s, const real *x, Py_ssize_t row, Py_ssize_t last, real *out,
                                    int64_t *indices) noexcept nogil:
    """Maxima of rows of windows, unless `out` is NULL, and their indices in the plane. Returns of how many rows."""
    cdef Py_ssize_t i, ox, od = row // p.h.out % p.d.out, oy = row % p.h.out, start, stride = p.w.stride, n = 1, OW = p.w.out
    cdef const real *x_p = x + row // (p.h.out * p.d.out) * p.in_plane
    cdef real dilation = <real>p.w.dilation
    cdef const real *tap
    cdef const real *at_row
    if not p.searched:
        for ox in range(p.w.out):
            indices[ox] = search_window(p, x_p, p.span_d[od], p.span_h[oy], span_w(p, ox))
            if out != NULL:
                out[ox] = x_p[indices[ox]] if indices[ox] >= 0 else -INFINITY
        return 1
    n = search_windows(phases, p, s, x, row, last)
    for i in range(n):
        if out != NULL:
            memcpy(out + i * p.w.out, s.best + i * p.outputs, p.w.out * sizeof(real))
        start = row_start(p, (row + i) // p.h.out % p.d.out, (row + i) % p.h.out)
        tap = s.tap + i * p.outputs
        at_row = s.row + i * p.outputs
        for ox in range(OW):
            indices[ox] = (start + ox * stride + <int>(at_row[ox] + tap[ox] * dilation) + 1) * (tap[ox] >= 0) - 1
        indices += OW
    return n
