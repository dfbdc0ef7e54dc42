# Rows of the input to lines, and lines to what lies under windows along w. What is usual is a constant.

# What is computed of the taps. Maxima take no notice of a NaN, but it is told that there was one.
cdef enum:
    SUM
    MAX
    SEARCH              # maxima and their taps


cdef inline real identity(int op) noexcept nogil:
    return 0 if op == SUM else -INFINITY


cdef inline vec combine(int op, vec a, vec b) noexcept nogil:
    return a + b if op == SUM else larger(a, b)


cdef struct Rows:
    const real *x                       # first row under a row of windows
    Py_ssize_t nz, step_z, ny, step_y   # rows under it: nz * ny, at z * step_z + y * step_y
    Py_ssize_t count, advance           # rows of windows that have the same, each `advance` after the one before
    Py_ssize_t z, y, od, oy             # where in their planes the first row and the first row of windows lie


cdef inline void next_rows(const Pool *p, const real *x, Py_ssize_t row, Py_ssize_t last, Rows *r) noexcept nogil:
    """The rows under row `row` of windows, counted over all planes, and under those after it that are alike, up to `last`."""
    cdef Py_ssize_t plane = row // p.h.out
    cdef Span y, z
    r.oy = row - plane * p.h.out
    r.od = plane % p.d.out if p.d.out > 1 else 0
    y = inside(&p.h, r.oy)
    z = inside(&p.d, r.od)
    r.z = z.begin
    r.y = y.begin
    r.x = x + (plane // p.d.out if p.d.out > 1 else plane) * p.in_plane + (r.z * p.h.size + r.y) * p.w.size
    r.nz = z.taps
    r.step_z = p.d.dilation * p.h.size * p.w.size
    r.ny = y.taps
    r.step_y = p.h.dilation * p.w.size
    r.advance = p.h.stride * p.w.size
    r.count = 1
    if p.seamless:
        r.count = last - row
    elif y.taps == p.h.window:
        r.count = min(last - row, min(p.h.out, (p.h.size - 1 - reach(&p.h) + p.h.before) // p.h.stride + 1) - r.oy)


cdef inline vec column(int op, int n, const Rows *r, const real *x, Py_ssize_t left, mask *nan) noexcept nogil:
    """Combine LANES columns of the rows, n of them if that is not 0."""
    cdef Py_ssize_t z, y, terms = 0
    cdef vec v, part = splat(identity(op)), acc = part
    for z in range(1 if n else r.nz):
        for y in range(n if n else r.ny):
            v = fetch(x + z * r.step_z + y * r.step_y, left, identity(op))
            if op != SUM:
                nan[0] = either(nan[0], is_nan(v))
            part = combine(op, part, v) if y or not n else v
            if op == SUM and n == 0:
                terms += 1
                if terms % RESTART == 0:
                    acc = acc + part
                    part = splat(0)
    return part if n else combine(op, acc, part)


cdef inline void columns(int op, int n, int phases, const Rows *r, const real *x, Py_ssize_t left, vec *v, mask *nan) noexcept nogil:
    """LANES places of each phase after `column`. `left` is a constant when nothing is missing."""
    v[0] = column(op, n, r, x, left, nan)
    if phases > 1:
        v[1] = column(op, n, r, x + LANES, left - LANES, nan)
    if phases > 2:
        v[2] = column(op, n, r, x + 2 * LANES, left - 2 * LANES, nan)
    split(phases, v)


cdef inline bint fill_lines(int op, int n, int phases, const Pool *p, const Rows *rows, real *lines) noexcept nogil:
    """Combine rows of the input into lines, whose padding holds the identity. Returns whether there was a NaN."""
    cdef Py_ssize_t i, j, t, pitch = p.pitch, line = p.line
    cdef Py_ssize_t full = p.w.size // (phases * LANES), left = p.w.size - full * phases * LANES
    cdef Rows r = rows[0]       # a copy that no store can change
    cdef real *to = lines + p.base
    cdef vec v[3]
    cdef mask nan = is_nan(splat(0))
    for i in range(r.count):
        for j in range(full):
            columns(op, n, phases, &r, r.x + j * phases * LANES, phases * LANES, v, &nan)
            for t in range(phases):
                store(to + t * pitch + j * LANES, v[t])
        if left:
            columns(op, n, phases, &r, r.x + full * phases * LANES, left, v, &nan)
            for t in range(phases):
                store(to + t * pitch + full * LANES, v[t])
        to += line
        r.x += r.advance
    return any(nan)


cdef inline bint fill(int op, int n, const Pool *p, const Rows *r, real *lines) noexcept nogil:
    if p.phases == 2: return fill_lines(op, n, 2, p, r, lines)
    if p.phases == 3: return fill_lines(op, n, 3, p, r, lines)
    return fill_lines(op, n, 1, p, r, lines)


cdef inline vec finish(int op, const Pool *p, vec acc, Py_ssize_t ox, real factor) noexcept nogil:
    if op != SUM:
        return acc
    return acc * splat(p.scale) if p.scale != 0 else acc / (load(p.cells_w + ox) * splat(factor))


cdef inline bint finish_lines(int op, const Pool *p, Py_ssize_t count, const real *line, real *out, real *places_to,
                              real factor, const real *end) noexcept nogil:
    """Combine along w to rows of outputs. SEARCH: to lines, and returns whether a result is -inf."""
    cdef Py_ssize_t i, j, k, OW = p.w.out, taps = p.w.window
    cdef vec acc, tap, v
    cdef mask least = is_nan(splat(0))
    for i in range(count):
        for j from 0 <= j < OW by LANES:
            acc = at(line + j + p.start[0], p.behind[0])
            tap = splat(0)
            for k in range(1, taps):
                v = at(line + j + p.start[k], p.behind[k])
                if op == SEARCH:
                    tap = pick(greater(v, acc), splat(<real>k), tap)
                acc = combine(op, acc, v)
            if op == SEARCH:
                store(out + j, acc)
                store(places_to + j, tap)
                least = either(least, equal(acc if j + LANES <= OW else first_of(acc, <int>(OW - j), splat(0)), splat(-INFINITY)))
            else:
                put(out + j, finish(op, p, acc, j, factor), OW - j, end)
        line += p.line
        out += p.outputs if op == SEARCH else OW
        places_to += p.outputs
    return any(least)
