# Rows of the input to lines. The numbers of rows and phases are constants where they are usual.

cdef enum:
    AHEAD = 1 << 13     # bytes that are prefetched ahead of the columns read: benchmarks/pool.py, AMD Zen 5
    RESTART = 16        # terms after which sums restart


# What is computed of the taps. MAX is exact; FAST takes no notice of a NaN but tells that there was one.
cdef enum:
    MAX
    FAST
    SUM


cdef inline real identity(int op) noexcept nogil:
    return 0 if op == SUM else -INFINITY


cdef inline vec combine(int op, vec a, vec b) noexcept nogil:
    return a + b if op == SUM else larger(a, b) if op == FAST else vmax(a, b)


cdef inline vec fetch(const real *x, Py_ssize_t left, real rest) noexcept nogil:
    """LANES elements, `rest` for those after the first `left`."""
    return load(x) if left >= LANES else load_first(x, <int>max(left, 0), splat(rest))


cdef inline vec at(const real *line, Py_ssize_t n) noexcept nogil:
    """LANES elements from line + n, where line is a multiple of a vector's size."""
    return load_at(line + (n & -<Py_ssize_t>LANES), places(n & (LANES - 1)))


cdef inline void put(real *out, vec v, Py_ssize_t left, const real *end) noexcept nogil:
    """Store `left` lanes. All of them where what follows up to `end` is going to be written later."""
    if left >= LANES or out + LANES <= end:
        store(out, v)
    elif left > 0:
        store_first(out, v, <int>left)


cdef struct Rows:
    const real *x               # first row under a row of windows
    Py_ssize_t nz               # rows under it: nz * ny, at z * step_z + y * step_y
    Py_ssize_t step_z
    Py_ssize_t ny
    Py_ssize_t step_y
    Py_ssize_t count            # rows of windows that have the same, each `advance` after the one before
    Py_ssize_t advance


cdef inline Py_ssize_t next_rows(const Pool *p, const real *x, Py_ssize_t row, Py_ssize_t last, Rows *r) noexcept nogil:
    """The rows of the input under row `row` of windows, counted over all planes, and under those after it that are alike,
    up to `last`. Returns how many these are."""
    cdef Py_ssize_t plane = row // (p.h.out * p.d.out), od = row // p.h.out - plane * p.d.out, oy = row % p.h.out
    cdef Span y = p.span_h[oy], z = p.span_d[od]
    r.x = x + plane * p.in_plane + (z.begin * p.h.size + y.begin) * p.w.size
    r.nz = z.taps
    r.step_z = p.d.dilation * p.h.size * p.w.size
    r.ny = y.taps
    r.step_y = p.h.dilation * p.w.size
    r.advance = p.h.stride * p.w.size
    r.count = last - row if p.seamless else 1
    while y.taps == p.h.window and row + r.count < last and oy + r.count < p.h.out and \
            p.span_h[oy + r.count].taps == p.h.window:
        r.count += 1
    return r.count


cdef inline vec column(int op, int n, const Rows *r, const real *x, Py_ssize_t left, mask *nan) noexcept nogil:
    """Combine LANES columns of the rows, n of them if that is not 0."""
    cdef Py_ssize_t z, y, terms = 0
    cdef vec v, part, acc = fetch(x, left, identity(op))
    if left >= LANES:
        prefetch(x + AHEAD // <Py_ssize_t>sizeof(real))
    if op == FAST:
        nan[0] = either(nan[0], is_nan(acc))
    for y in range(1, n):
        v = fetch(x + y * r.step_y, left, identity(op))
        if left >= LANES:
            prefetch(x + y * r.step_y + AHEAD // <Py_ssize_t>sizeof(real))
        if op == FAST:
            nan[0] = either(nan[0], is_nan(v))
        acc = combine(op, acc, v)
    if n:
        return acc
    part = splat(identity(op))
    for z in range(r.nz):
        for y in range(z == 0, r.ny):
            v = fetch(x + z * r.step_z + y * r.step_y, left, identity(op))
            if op == FAST:
                nan[0] = either(nan[0], is_nan(v))
            part = combine(op, part, v)
            terms += 1
            if op == SUM and terms == RESTART:
                acc = acc + part
                part = splat(0)
                terms = 0
    return combine(op, acc, part)


cdef inline void join(int phases, vec *v) noexcept nogil:
    """At most 3 vectors of phases to consecutive elements."""
    cdef vec a = v[0]
    if phases == 2:
        v[0] = zip_low(a, v[1])
        v[1] = zip_high(a, v[1])
    elif phases == 3:
        join3(v)


cdef inline void columns(int op, int n, int phases, const Rows *r, const real *x, Py_ssize_t left, vec *v, mask *nan) noexcept nogil:
    """The inverse of join, of LANES places of phases after `column`."""
    cdef vec a = column(op, n, r, x, left, nan)
    v[0] = a
    if phases > 1:
        v[1] = column(op, n, r, x + LANES, left - LANES, nan)
    if phases == 2:
        v[0] = even(a, v[1])
        v[1] = odd(a, v[1])
    if phases == 3:
        v[2] = column(op, n, r, x + 2 * LANES, left - 2 * LANES, nan)
        split3(v)


cdef inline bint fill_lines(int op, int n, int phases, const Pool *p, const Rows *rows, real *lines, real *flat) noexcept nogil:
    """Combine rows of the input into lines whose padding holds the identity. Many phases (0) are split one by one; without
    phases the line is `flat`. Returns whether FAST has seen a NaN."""
    cdef Py_ssize_t i, j, t = 0, m = 0, S = phases if phases else 1, pitch = p.pitch, line = p.line
    cdef Py_ssize_t full = p.w.size // (S * LANES), left = p.w.size - full * S * LANES
    cdef Rows r = rows[0]       # a copy that no store can change
    cdef real *to = lines + p.base if phases else flat
    cdef vec v[3]
    cdef mask nan = is_nan(splat(0))
    for i in range(r.count):
        for j in range(full):
            columns(op, n, phases, &r, r.x + j * S * LANES, S * LANES, v, &nan)
            for t in range(S):
                store(to + t * pitch + j * LANES, v[t])
        if left:
            columns(op, n, phases, &r, r.x + full * S * LANES, left, v, &nan)
            for t in range(S):
                store(to + t * pitch + full * LANES, v[t])
        if phases:
            to += line
        else:
            t = m = 0
            for j in range(p.w.size if p.phases else 0):
                lines[i * line + p.base + t * pitch + m] = flat[j]
                t += 1
                if t == p.phases:
                    t = 0
                    m += 1
        r.x += r.advance
    return any(nan)


cdef bint fill_exactly(const Pool *p, const Rows *r, real *lines, real *flat) noexcept nogil:
    return fill_lines(MAX, 0, 0, p, r, lines, flat)


cdef inline bint fill(int op, int phases, const Pool *p, const Rows *r, real *lines, real *flat) noexcept nogil:
    """fill_lines with the usual numbers of rows as constants."""
    if r.nz == 1 and r.ny == 2:
        return fill_lines(op, 2, phases, p, r, lines, flat)
    if r.nz == 1 and r.ny == 3:
        return fill_lines(op, 3, phases, p, r, lines, flat)
    return fill_lines(op, 0, phases, p, r, lines, flat)
