# Rows of the input to lines. The work of a row is done by functions with the usual numbers of rows and phases as constants.

cdef enum:
    AHEAD = 1 << 13     # bytes that are prefetched ahead of the columns read: benchmarks/pool.py, AMD Zen 5


# What is computed of the taps. MAX is exact; FAST takes no notice of a NaN but tells that there was one.
cdef enum:
    MAX
    FAST
    SUM


cdef inline real identity(int op) noexcept nogil:
    return 0 if op == SUM else -INFINITY


cdef inline vec combine(int op, vec a, vec b) noexcept nogil:
    if op == SUM:
        return a + b
    if op == FAST:
        return larger(a, b)
    return vmax(a, b)


cdef inline vec fetch(const real *x, Py_ssize_t left, real rest) noexcept nogil:
    """LANES elements, `rest` for those after the first `left`."""
    if left >= LANES:
        return load(x)
    return load_first(x, <int>max(left, 0), splat(rest))


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


cdef inline vec column(int op, int n, const Rows *r, const real *x, Py_ssize_t left, mask *nan) noexcept nogil:
    """Combine LANES columns of the rows, n of them if that is not 0. Sums of many rows restart every 16."""
    cdef Py_ssize_t z, y, k
    cdef vec v, part, acc = fetch(x, left, identity(op))
    if left >= LANES:
        prefetch(x + AHEAD // <Py_ssize_t>sizeof(real))
    if n:
        if op == FAST and n != 2:
            nan[0] = either(nan[0], is_nan(acc))
        for y in range(1, n):
            v = fetch(x + y * r.step_y, left, identity(op))
            if left >= LANES:
                prefetch(x + y * r.step_y + AHEAD // <Py_ssize_t>sizeof(real))
            if op == FAST:
                nan[0] = either(nan[0], either_nan(acc, v) if n == 2 else is_nan(v))
            acc = combine(op, acc, v)
        return acc
    if op == FAST:
        nan[0] = either(nan[0], is_nan(acc))
    for z in range(r.nz):
        if op == SUM and r.ny > 16:
            if z == 0:
                acc = splat(0)
            for k in range(0, r.ny, 16):
                part = splat(0)
                for y in range(k, min(k + 16, r.ny)):
                    part = part + fetch(x + z * r.step_z + y * r.step_y, left, 0)
                acc = acc + part
        else:
            for y in range(z == 0, r.ny):
                v = fetch(x + z * r.step_z + y * r.step_y, left, identity(op))
                if op == FAST:
                    nan[0] = either(nan[0], is_nan(v))
                acc = combine(op, acc, v)
    return acc


cdef inline void split(int s, vec *v) noexcept nogil:
    """s <= 3 vectors of consecutive elements to their phases."""
    cdef vec a = v[0]
    if s == 2:
        v[0] = even(a, v[1])
        v[1] = odd(a, v[1])
    elif s == 3:
        split3(v)


cdef inline void join(int s, vec *v) noexcept nogil:
    """The inverse of split."""
    cdef vec a = v[0]
    if s == 2:
        v[0] = zip_low(a, v[1])
        v[1] = zip_high(a, v[1])
    elif s == 3:
        join3(v)


cdef inline void columns(int op, int n, int s, const Rows *r, const real *x, Py_ssize_t left, vec *v, mask *nan) noexcept nogil:
    """LANES places of s phases."""
    v[0] = column(op, n, r, x, left, nan)
    if s > 1:
        v[1] = column(op, n, r, x + LANES, left - LANES, nan)
    if s > 2:
        v[2] = column(op, n, r, x + 2 * LANES, left - 2 * LANES, nan)
    split(s, v)


cdef inline bint fill_lines(int op, int n, int s, const Pool *p, const Rows *rows, real *lines, real *flat) noexcept nogil:
    """Combine rows of the input into lines whose padding holds the identity. Many phases (s = 0) are split one by one;
    without phases the line is `flat`. Returns whether FAST has seen a NaN."""
    cdef Py_ssize_t i, j, t, S = s if s else 1, pitch = p.pitch, line = p.line, advance = rows.advance
    cdef Py_ssize_t full = p.w.size // (S * LANES), left = p.w.size - full * S * LANES
    cdef Rows r = rows[0]       # a copy that no store can change
    cdef const real *x
    cdef real *to = lines + p.base if s else flat
    cdef vec v[3]
    cdef mask nan = is_nan(splat(0))
    for i in range(r.count):
        x = r.x
        for j in range(full):
            columns(op, n, s, &r, x, S * LANES, v, &nan)
            for t in range(S):
                store(to + t * pitch + j * LANES, v[t])
            x += S * LANES
        if left:
            columns(op, n, s, &r, x, left, v, &nan)
            for t in range(S):
                store(to + t * pitch + full * LANES, v[t])
        if s:
            to += line
        elif p.phases:
            split_flat(p, flat, lines + i * line + p.base)
        r.x += advance
    return any(nan)


cdef void split_flat(const Pool *p, const real *flat, real *line) noexcept nogil:
    """Elements one by one to their phases."""
    cdef Py_ssize_t j, t = 0, m = 0
    for j in range(p.w.size):
        line[t * p.pitch + m] = flat[j]
        t += 1
        if t == p.phases:
            t = 0
            m += 1


cdef inline bint fill_rows(int op, int n, const Pool *p, const Rows *r, real *lines, real *flat) noexcept nogil:
    if p.phases == 1:
        return fill_lines(op, n, 1, p, r, lines, flat)
    if p.phases == 2:
        return fill_lines(op, n, 2, p, r, lines, flat)
    if p.phases == 3:
        return fill_lines(op, n, 3, p, r, lines, flat)
    return fill_lines(op, n, 0, p, r, lines, flat)


cdef bint fill(int op, const Pool *p, const Rows *r, real *lines, real *flat) noexcept nogil:
    """fill_lines with the usual numbers of rows as constants."""
    cdef Py_ssize_t i
    if r.nz * r.ny == 0:
        for i in range(r.count * p.line):
            lines[i] = identity(op)
        for i in range(p.w.size):
            flat[i] = identity(op)
        return False
    if op == MAX:
        return fill_lines(MAX, 0, 0, p, r, lines, flat)
    if r.nz == 1 and r.ny == 1 and op == FAST:
        return fill_rows(FAST, 1, p, r, lines, flat)
    if r.nz == 1 and r.ny == 2:
        return fill_rows(FAST, 2, p, r, lines, flat) if op == FAST else fill_rows(SUM, 2, p, r, lines, flat)
    if r.nz == 1 and r.ny == 3:
        return fill_rows(FAST, 3, p, r, lines, flat) if op == FAST else fill_rows(SUM, 3, p, r, lines, flat)
    return fill_rows(FAST, 0, p, r, lines, flat) if op == FAST else fill_rows(SUM, 0, p, r, lines, flat)


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
    r.count = 1
    if y.taps == p.h.window:
        if p.seamless:
            r.count = last - row
        else:
            while row + r.count < last and oy + r.count < p.h.out and p.span_h[oy + r.count].taps == p.h.window:
                r.count += 1
    return r.count
