# Where a maximum lies: of equal values the first, and the first NaN before all of them.
#
# The place of a maximum is kept as its row, by the distance in the plane from the start of the window, and its tap along w:
# two `real`, which vectors select like values. They become an index only for who asks for indices. Each row is searched along
# w first, once for all windows that read it, then what was found in the rows under a window is compared: in this order the
# first of equal values is the one that stays. Rows of windows that are alike are searched together.

cdef enum:
    SEARCHED_BYTES = 1 << 15    # of lines that are filled at a time
    SEARCHED = 8                # rows of windows that are searched at a time


cdef inline Py_ssize_t origin(const Axis *a, Py_ssize_t o, Span s) noexcept nogil:
    """Where window o starts."""
    return s.begin - s.first * a.dilation


cdef inline Py_ssize_t row_start(const Pool *p, Py_ssize_t od, Py_ssize_t oy) noexcept nogil:
    """Where in the plane the first window of a row starts."""
    return (origin(&p.d, od, p.span_d[od]) * p.h.size + origin(&p.h, oy, p.span_h[oy])) * p.w.size - p.w.before


cdef inline bint shared(const Pool *p) noexcept nogil:
    """Whether lines lie in the order of the rows, for windows that overlap; otherwise in the order of the taps."""
    return (rows_of(&p.h) - 1) * p.h.dilation + 1 >= p.h.stride


cdef inline Py_ssize_t lines_of(const Pool *p, Py_ssize_t ny, Py_ssize_t count) noexcept nogil:
    """Lines under `count` rows of windows, for each tap along d."""
    return (count - 1) * p.h.stride + (ny - 1) * p.h.dilation + 1 if shared(p) else ny * count


cdef inline Py_ssize_t search_block(const Pool *p) noexcept nogil:
    cdef Py_ssize_t count = SEARCHED
    while count > 1 and rows_of(&p.d) * lines_of(p, rows_of(&p.h), count) * (p.line + 2 * p.outputs) * <Py_ssize_t>sizeof(real) > SEARCHED_BYTES:
        count -= 1
    return count


cdef inline bint searched(const Pool *p) noexcept nogil:
    """Whether vectors can search: there are lines, not too many are kept, distances in a window are exact as reals."""
    cdef double reach = (<double>max(p.d.window, rows_of(&p.d)) * p.d.dilation * p.h.size +
                         <double>max(p.h.window, rows_of(&p.h)) * p.h.dilation) * p.w.size
    return p.phases and reach + <double>p.w.window * p.w.dilation < MAX_CODE and \
        <double>rows_of(&p.d) * lines_of(p, rows_of(&p.h), 1) * (p.line + 2 * p.outputs) * sizeof(real) <= MAX_SEARCHED_BYTES


cdef inline mask search_row(bint exact, int taps, int phases, const Pool *p, const real *x, real *values,
                            real *taps_to) noexcept nogil:
    """Along w: the maxima of one row under windows, and their taps, -1 for none. If `phases` is not 0 these are the taps and x
    is a row of the input, otherwise it is a line; `taps` is their number if it is not 0. Returns where there are NaNs."""
    cdef Py_ssize_t j, k, left, OW = p.w.out, K = phases if phases else taps if taps else p.w.window
    cdef const Py_ssize_t *offset = p.offset
    cdef Py_ssize_t known[3]    # what no store can change
    cdef vec v[3]
    cdef vec w, best, tap
    cdef mask better, nan = is_nan(splat(0))
    cdef Rows r
    for k in range(taps):
        known[k] = offset[k]
    for j from 0 <= j < OW by LANES:
        best = splat(-INFINITY)
        tap = splat(-1)
        left = OW - j
        if phases and left >= LANES:
            columns(FAST, 1, phases, &r, x + phases * j, phases * LANES, v, &nan)
        elif phases:
            columns(FAST, 1, phases, &r, x + phases * j, phases * left, v, &nan)
        for k in range(K):
            w = v[k] if phases else at(x + j, known[k] if taps else offset[k])
            better = greater(w, best)
            if exact:
                better = either(better, both(is_nan(w), equal(best, best)))
                best = pick(better, w, best)
            else:
                best = larger(best, w)
            tap = pick(better, splat(<real>k), tap)
        store(values + j, best)
        store(taps_to + j, tap)
    return nan


cdef inline bint search_rows_of(bint exact, int taps, int phases, const Pool *p, const real *x, Py_ssize_t advance, Py_ssize_t count,
                                real *values, real *taps_to) noexcept nogil:
    cdef Py_ssize_t i
    cdef mask nan = is_nan(splat(0))
    for i in range(count):
        nan = either(nan, search_row(exact, taps, phases, p, x, values, taps_to))
        x += advance
        values += p.outputs
        taps_to += p.outputs
    return any(nan)


cdef bint search_group(bint exact, const Pool *p, Scratch *s, const Rows *r, Py_ssize_t first) noexcept nogil:
    """search_row of r.count rows; to the lines of outputs from `first` on. Returns whether there was a NaN."""
    cdef real *values = s.values + first * p.outputs
    cdef real *taps = s.taps + first * p.outputs
    cdef bint nan
    if p.direct and p.phases == 1:
        return search_rows_of(True, 0, 1, p, r.x, r.advance, r.count, values, taps)
    if p.direct and p.phases == 2:
        return search_rows_of(True, 0, 2, p, r.x, r.advance, r.count, values, taps) if exact else \
            search_rows_of(False, 0, 2, p, r.x, r.advance, r.count, values, taps)
    if p.direct:
        return search_rows_of(True, 0, 3, p, r.x, r.advance, r.count, values, taps) if exact else \
            search_rows_of(False, 0, 3, p, r.x, r.advance, r.count, values, taps)
    nan = fill(FAST, p, r, s.lines, s.flat)
    if nan or exact:
        search_rows_of(True, 0, 0, p, s.lines, p.line, r.count, values, taps)
    elif p.w.window == 3:
        search_rows_of(False, 3, 0, p, s.lines, p.line, r.count, values, taps)
    else:
        search_rows_of(False, 0, 0, p, s.lines, p.line, r.count, values, taps)
    return nan


cdef inline bint search_columns(bint exact, int rows, const Pool *p, const Scratch *s, Py_ssize_t count, Py_ssize_t advance) noexcept nogil:
    """The maxima of what search_row found in the rows under windows: s.best, s.row, s.tap. Returns whether there is none."""
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
    cdef vec v, best, row, tap
    cdef mask better, none = is_nan(splat(0))
    for a in range(rows):
        known[a] = from_x[a]
        starts[a] = start[a]
    for i in range(count):
        for j from 0 <= j < OW by LANES:
            best = splat(-INFINITY)
            row = splat(-1)
            tap = splat(-1)
            for a in range(n):
                v = load(values + x + (known[a] if rows else from_x[a]) + j)
                better = greater(v, best)
                if exact:
                    better = either(better, both(is_nan(v), equal(best, best)))
                    best = pick(better, v, best)
                else:
                    best = larger(best, v)
                row = pick(better, splat(starts[a] if rows else start[a]), row)
                tap = pick(better, load(taps + x + (known[a] if rows else from_x[a]) + j), tap)
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


cdef void set_rows(const Pool *p, Scratch *s, Span z, Span y) noexcept nogil:
    """How far the rows under a window lie from its start."""
    cdef Py_ssize_t i, k
    if s.z.first == z.first and s.z.taps == z.taps and s.y.first == y.first and s.y.taps == y.taps:
        return
    s.z = z
    s.y = y
    s.rows = z.taps * y.taps
    for i in range(z.taps):
        for k in range(y.taps):
            s.start[i * y.taps + k] = <real>(((z.first + i) * p.d.dilation * p.h.size + (y.first + k) * p.h.dilation) * p.w.size)


cdef Py_ssize_t search_windows(const Pool *p, Scratch *s, const real *x, Py_ssize_t row, Py_ssize_t last) noexcept nogil:
    """Search rows of windows from `row` on, counted over all planes, up to `last`. Returns how many."""
    cdef Py_ssize_t i, k, ox, n, lines, groups
    cdef bint nan = False, none
    cdef Rows r, group
    n = next_rows(p, x, row, min(last, row + s.block), &r)
    set_rows(p, s, p.span_d[row // p.h.out % p.d.out], p.span_h[row % p.h.out])
    lines = lines_of(p, r.ny, n)
    groups = 1 if shared(p) else r.ny
    group = r
    group.nz = group.ny = 1
    group.count = lines // groups if s.rows else 0
    group.advance = p.w.size if shared(p) else r.advance
    for i in range(r.nz):
        for k in range(r.ny):
            s.from_x[i * r.ny + k] = (i * lines + k * (p.h.dilation if shared(p) else n)) * p.outputs
        for k in range(groups):
            group.x = r.x + i * r.step_z + k * r.step_y
            nan |= search_group(False, p, s, &group, i * lines + k * n)
    if nan:
        for i in range(r.nz if p.direct else 0):
            for k in range(groups):
                group.x = r.x + i * r.step_z + k * r.step_y
                search_group(True, p, s, &group, i * lines + k * n)
        none = search_columns(True, 0, p, s, n, p.outputs * (p.h.stride if shared(p) else 1))
    elif s.rows == 2:
        none = search_columns(False, 2, p, s, n, p.outputs * (p.h.stride if shared(p) else 1))
    elif s.rows == 3:
        none = search_columns(False, 3, p, s, n, p.outputs * (p.h.stride if shared(p) else 1))
    else:
        none = search_columns(False, 0, p, s, n, p.outputs * (p.h.stride if shared(p) else 1))
    if none and s.rows:       # windows that hold nothing but -inf have their first tap, if they have one
        for i in range(n):
            for ox in range(p.w.out):
                if s.tap[i * p.outputs + ox] < 0 and p.span_w[ox].taps:
                    s.tap[i * p.outputs + ox] = <real>p.span_w[ox].first
                    s.row[i * p.outputs + ox] = s.start[0]
    return n


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


cdef Py_ssize_t find_indices(const Pool *p, Scratch *s, const real *x, Py_ssize_t row, Py_ssize_t last, real *out,
                             int64_t *indices) noexcept nogil:
    """Maxima of rows of windows, unless `out` is NULL, and their indices in the plane. Returns of how many rows."""
    cdef Py_ssize_t i, ox, od = row // p.h.out % p.d.out, oy = row % p.h.out, start, stride = p.w.stride, n = 1
    cdef real dilation = <real>p.w.dilation
    cdef const real *x_p = x + row // (p.h.out * p.d.out) * p.in_plane
    cdef const real *tap
    cdef const real *at_row
    if not s.vectors:
        for ox in range(p.w.out):
            indices[ox] = search_window(p, x_p, p.span_d[od], p.span_h[oy], p.span_w[ox])
            if out != NULL:
                out[ox] = x_p[indices[ox]] if indices[ox] >= 0 else -INFINITY
        return 1
    n = search_windows(p, s, x, row, last)
    for i in range(n):
        if out != NULL:
            memcpy(out + i * p.w.out, s.best + i * p.outputs, p.w.out * sizeof(real))
        start = row_start(p, (row + i) // p.h.out % p.d.out, (row + i) % p.h.out)
        tap = s.tap + i * p.outputs
        at_row = s.row + i * p.outputs
        for ox in range(p.w.out):
            indices[i * p.w.out + ox] = start + ox * stride + <int64_t>(at_row[ox] + tap[ox] * dilation) if tap[ox] >= 0 else -1
    return n


cdef Py_ssize_t find(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """The first of n elements that is `value`, which is among them; or the first NaN."""
    cdef Py_ssize_t j = 0
    cdef vec v
    while True:
        v = fetch(x + j, n - j, 0)
        if any(equal(v, splat(value)) if value == value else is_nan(v)):
            break
        j += LANES
    while x[j] != value and (value == value or x[j] == x[j]):
        j += 1
    return j


cdef void indices_part(const Pool *p, Scratch *s, const real *x, real *out, int64_t *indices, Py_ssize_t row,
                       Py_ssize_t last) noexcept nogil:
    """Maxima and their indices in the plane, by rows of the output counted over all planes."""
    while row < last:
        row += find_indices(p, s, x, row, last, out + row * p.w.out, indices + row * p.w.out)
