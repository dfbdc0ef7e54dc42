# Where a maximum lies: of equal values the first, and the first NaN before all of them.
#
# The place of a maximum is kept as its distance in the plane from the start of its window: a `real`, so that vectors select
# it like a value, and -1 for none. It becomes an index only for who asks for indices. Taps are compared row by row, so that
# the first of equal values is the one found. Rows of windows that are alike are searched together: several of them read a line.

cdef enum:
    SEARCHED_BYTES = 1 << 15    # of lines that are filled at a time
    SEARCHED = 8                # rows of windows that are searched at a time
    NAN = 1                     # what a search has met
    NONE = 2


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
    while count > 1 and not p.direct and \
            rows_of(&p.d) * lines_of(p, rows_of(&p.h), count) * p.line * <Py_ssize_t>sizeof(real) > SEARCHED_BYTES:
        count -= 1
    return count


cdef inline bint searched(const Pool *p) noexcept nogil:
    """Whether vectors can search: there are lines, not too many are kept, distances in a window are exact as reals."""
    cdef double reach = (<double>max(p.d.window, rows_of(&p.d)) * p.d.dilation * p.h.size +
                         <double>max(p.h.window, rows_of(&p.h)) * p.h.dilation) * p.w.size
    return p.phases and reach + <double>p.w.window * p.w.dilation < MAX_CODE and \
        <double>rows_of(&p.d) * lines_of(p, rows_of(&p.h), 1) * p.line * sizeof(real) <= MAX_SEARCHED_BYTES


cdef inline int search(bint exact, int taps, int phases, int rows, const Pool *p, const Scratch *s, const real *x, Py_ssize_t count,
                       Py_ssize_t advance) noexcept nogil:
    """Search `count` rows of windows: s.best, s.place. Without `exact` a NaN is only noticed. If `phases` is not 0 these are
    the taps of rows of the input, otherwise lines are read; `taps` and `rows` are their numbers if they are not 0."""
    cdef Py_ssize_t i, j, a, k, left, OW = p.w.out, K = phases if phases else taps if taps else p.w.window, outputs = p.outputs
    cdef Py_ssize_t n = rows if rows else s.rows
    cdef const Py_ssize_t *offset = p.offset
    cdef const Py_ssize_t *at = s.at
    cdef const real *place_of = s.place_of
    cdef real *best_to = s.best
    cdef real *place_to = s.place
    cdef vec v[3]
    cdef vec w, best, place
    cdef mask better, nan = is_nan(splat(0)), none = is_nan(splat(0))
    cdef Rows r
    for i in range(count):
        for j from 0 <= j < OW by LANES:
            best = splat(-INFINITY)
            place = splat(-1)
            left = OW - j
            for a in range(n):
                if phases and left >= LANES:
                    columns(FAST, 1, phases, &r, x + at[a] + phases * j, phases * LANES, v, &nan)
                elif phases:
                    columns(FAST, 1, phases, &r, x + at[a] + phases * j, phases * left, v, &nan)
                for k in range(K):
                    w = v[k] if phases else load(x + at[a] + offset[k] + j)
                    better = greater(w, best)
                    if exact:
                        better = either(better, both(is_nan(w), equal(best, best)))
                        best = pick(better, w, best)
                    else:
                        best = larger(best, w)
                    place = pick(better, splat(place_of[a * K + k]), place)
            store(best_to + j, best)
            if left < LANES:
                none = either(none, greater(splat(0), first_of(place, <int>left, splat(0))))
                place = first_of(place, <int>left, splat(-1))
            else:
                none = either(none, greater(splat(0), place))
            store(place_to + j, place)
        x += advance
        best_to += outputs
        place_to += outputs
    return any(nan) * NAN + any(none) * NONE


cdef int search_phases(const Pool *p, const Scratch *s, const Rows *r) noexcept nogil:
    cdef int met
    if p.phases == 1:
        met = search(False, 0, 1, 0, p, s, r.x, r.count, r.advance)
    elif p.phases == 2:
        met = search(False, 0, 2, 2, p, s, r.x, r.count, r.advance) if s.rows == 2 else \
            search(False, 0, 2, 0, p, s, r.x, r.count, r.advance)
    else:
        met = search(False, 0, 3, 0, p, s, r.x, r.count, r.advance)
    if met & NAN == 0:
        return met
    if p.phases == 1:
        return search(True, 0, 1, 0, p, s, r.x, r.count, r.advance)
    if p.phases == 2:
        return search(True, 0, 2, 0, p, s, r.x, r.count, r.advance)
    return search(True, 0, 3, 0, p, s, r.x, r.count, r.advance)


cdef int search_lines(const Pool *p, Scratch *s, const Rows *r) noexcept nogil:
    cdef Py_ssize_t i, k, lines = lines_of(p, r.ny, r.count), advance = p.line * (p.h.stride if shared(p) else 1)
    cdef bint nan = False
    cdef Rows row = r[0]
    row.nz = row.ny = 1
    for i in range(r.nz):
        for k in range(r.ny):
            s.at[i * r.ny + k] = (i * lines + k * (p.h.dilation if shared(p) else r.count)) * p.line
            row.x = r.x + i * r.step_z + k * r.step_y
            if k == 0 and shared(p):
                row.count = lines
                row.advance = p.w.size
            if k == 0 or not shared(p):
                nan |= fill(FAST, p, &row, s.lines + s.at[i * r.ny + k], s.flat)
    if nan:
        return search(True, 0, 0, 0, p, s, s.lines, r.count, advance)
    if p.w.window == 2:
        return search(False, 2, 0, 0, p, s, s.lines, r.count, advance)
    if p.w.window == 3:
        return search(False, 3, 0, 3, p, s, s.lines, r.count, advance) if s.rows == 3 else \
            search(False, 3, 0, 0, p, s, s.lines, r.count, advance)
    return search(False, 0, 0, 0, p, s, s.lines, r.count, advance)


cdef void set_taps(const Pool *p, Scratch *s, Span z, Span y) noexcept nogil:
    """How far the rows and taps of a window lie from its start."""
    cdef Py_ssize_t i, k, j, n = 0
    if s.z.first == z.first and s.z.taps == z.taps and s.y.first == y.first and s.y.taps == y.taps:
        return
    s.z = z
    s.y = y
    s.rows = z.taps * y.taps
    for i in range(z.first, z.first + z.taps):
        for k in range(y.first, y.first + y.taps):
            s.start[n] = <real>((i * p.d.dilation * p.h.size + k * p.h.dilation) * p.w.size)
            for j in range(p.w.window if s.vectors else 0):
                s.place_of[n * p.w.window + j] = s.start[n] + <real>(j * p.w.dilation)
            n += 1


cdef Py_ssize_t search_rows(const Pool *p, Scratch *s, const real *x, Py_ssize_t row, Py_ssize_t last) noexcept nogil:
    """Search rows of windows from `row` on, counted over all planes, up to `last`: s.best, s.place. Returns how many."""
    cdef Py_ssize_t i, k, ox, n
    cdef Span z = p.span_d[row // p.h.out % p.d.out], y = p.span_h[row % p.h.out]
    cdef Rows r
    cdef int met
    n = next_rows(p, x, row, min(last, row + s.block), &r)
    set_taps(p, s, z, y)
    if p.direct:
        for i in range(r.nz):
            for k in range(r.ny):
                s.at[i * r.ny + k] = i * r.step_z + k * r.step_y
        met = search_phases(p, s, &r)
    else:
        met = search_lines(p, s, &r)
    if met & NONE and s.rows:       # windows that hold nothing but -inf have their first tap, if they have one
        for i in range(n):
            for ox in range(p.w.out):
                if s.place[i * p.outputs + ox] < 0 and p.span_w[ox].taps:
                    s.place[i * p.outputs + ox] = s.start[0] + <real>(p.span_w[ox].first * p.w.dilation)
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
    cdef const real *x_p = x + row // (p.h.out * p.d.out) * p.in_plane
    cdef const real *place
    if not s.vectors:
        for ox in range(p.w.out):
            indices[ox] = search_window(p, x_p, p.span_d[od], p.span_h[oy], p.span_w[ox])
            if out != NULL:
                out[ox] = x_p[indices[ox]] if indices[ox] >= 0 else -INFINITY
        return 1
    n = search_rows(p, s, x, row, last)
    for i in range(n):
        if out != NULL:
            memcpy(out + i * p.w.out, s.best + i * p.outputs, p.w.out * sizeof(real))
        start = row_start(p, (row + i) // p.h.out % p.d.out, (row + i) % p.h.out)
        place = s.place + i * p.outputs
        for ox in range(p.w.out):
            indices[i * p.w.out + ox] = start + ox * stride + <int64_t>place[ox] if place[ox] >= 0 else -1
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
