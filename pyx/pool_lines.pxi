# Rows of the input to lines, and lines to what lies under windows along w. The numbers of rows, phases and taps are constants
# where they are usual.

cdef enum:
    AHEAD = 1 << 13     # bytes that are prefetched ahead of what is read: benchmarks/pool.py, AMD Zen 5
    RESTART = 16        # terms after which sums restart


# What is computed of the taps. Maxima take no notice of a NaN, but it is told that there was one.
cdef enum:
    SUM
    MAX
    SEARCH              # maxima and their taps


cdef inline real identity(int op) noexcept nogil:
    return 0 if op == SUM else -INFINITY


cdef inline vec combine(int op, vec a, vec b) noexcept nogil:
    return a + b if op == SUM else larger(a, b)


cdef inline vec fetch(const real *x, Py_ssize_t left, real rest) noexcept nogil:
    """LANES elements of an array that is read once, `rest` for those after the first `left`."""
    prefetch(x + AHEAD // <Py_ssize_t>sizeof(real))
    return load(x) if left >= LANES else load_first(x, <int>max(left, 0), splat(rest))


cdef inline vec at(const real *line, Py_ssize_t n) noexcept nogil:
    """LANES elements from line + n, where line is a multiple of a vector's size."""
    return load(line + n) if n % LANES == 0 else load_at(line + (n & -<Py_ssize_t>LANES), places(n & (LANES - 1)))


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
    cdef Py_ssize_t full = p.h.size + p.h.before - (p.h.window - 1) * p.h.dilation     # positions where a window can start
    cdef Span y = inside(&p.h, oy), z = inside(&p.d, od)
    r.x = x + plane * p.in_plane + (z.begin * p.h.size + y.begin) * p.w.size
    r.nz = z.taps
    r.step_z = p.d.dilation * p.h.size * p.w.size
    r.ny = y.taps
    r.step_y = p.h.dilation * p.w.size
    r.advance = p.h.stride * p.w.size
    r.count = 1
    if p.seamless:
        r.count = last - row
    elif y.taps == p.h.window:
        r.count = min(last - row, min(p.h.out, (full + p.h.stride - 1) // p.h.stride) - oy)
    return r.count


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
            terms += 1
            if op == SUM and n == 0 and terms % RESTART == 0:
                acc = acc + part
                part = splat(0)
    return part if n else combine(op, acc, part)


cdef inline void join(int phases, vec *v) noexcept nogil:
    """At most 3 vectors of phases to consecutive elements."""
    cdef vec a = v[0]
    if phases == 2:
        v[0] = zip_low(a, v[1])
        v[1] = zip_high(a, v[1])
    elif phases == 3:
        join3(v)


cdef inline void split(int op, int n, int phases, const Rows *r, const real *x, Py_ssize_t left, vec *v, mask *nan) noexcept nogil:
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


cdef inline void columns(int op, int n, int phases, const Rows *r, const real *x, Py_ssize_t left, vec *v, mask *nan) noexcept nogil:
    """The inverse of join, of LANES places of phases after `column`."""
    if left >= phases * LANES:
        split(op, n, phases, r, x, phases * LANES, v, nan)
    else:
        split(op, n, phases, r, x, left, v, nan)


cdef inline bint fill_lines(int op, int n, int phases, const Pool *p, const Rows *rows, real *lines) noexcept nogil:
    """Combine rows of the input into lines, whose padding holds the identity. Returns whether there was a NaN."""
    cdef Py_ssize_t i, j, t, W = p.w.size, pitch = p.pitch, line = p.line, step = phases * LANES
    cdef Rows r = rows[0]       # a copy that no store can change
    cdef real *to = lines + p.base
    cdef vec v[3]
    cdef mask nan = is_nan(splat(0))
    for i in range(r.count):
        for j from 0 <= j < W by step:
            columns(op, n, phases, &r, r.x + j, W - j, v, &nan)
            for t in range(phases):
                store(to + t * pitch + j // phases, v[t])
        to += line
        r.x += r.advance
    return any(nan)


cdef inline bint fill(int op, int n, const Pool *p, const Rows *r, real *lines) noexcept nogil:
    """The same for any stride, and n rows if that is not 0."""
    if p.phases == 2:
        return fill_lines(op, n, 2, p, r, lines)
    if p.phases == 3:
        return fill_lines(op, n, 3, p, r, lines)
    return fill_lines(op, n, 1, p, r, lines)


cdef inline vec finish(int op, const Pool *p, vec acc, Py_ssize_t ox, real factor) noexcept nogil:
    if op != SUM:
        return acc
    return acc * splat(p.scale) if p.scale != 0 else acc / (load(p.cells_w + ox) * splat(factor))


# A usual `shape` of the windows is known to the compiler, otherwise it is 100 * phases; struct Pool explains it. Tap k of output
# o is element `behind` + o of its phase.
cdef inline Py_ssize_t phase_of(int shape, Py_ssize_t k) noexcept nogil:
    return (k + 12 - shape % 10) % (shape // 100)


cdef inline Py_ssize_t behind(int shape, const Pool *p, Py_ssize_t k) noexcept nogil:
    return (k + 12 - shape % 10) // (shape // 100) - 12 // (shape // 100) if shape % 100 else p.behind[k]


cdef inline bint combine_taps(int op, int shape, const Pool *p, Py_ssize_t count, const real *line, real *out, real *places_to,
                              real factor, const real *end) noexcept nogil:
    """Combine along w to rows of outputs. SEARCH: to lines, and returns whether a result is -inf."""
    cdef Py_ssize_t i, j, k, OW = p.w.out, taps = shape // 10 % 10 if shape % 100 else p.w.window
    cdef Py_ssize_t start[10]   # what no store can change
    cdef vec acc, part, tap, v
    cdef mask least = is_nan(splat(0))
    for k in range(taps if shape % 100 else 0):
        start[k] = p.start[k]
    for i in range(count):
        for j from 0 <= j < OW by LANES:
            part = at(line + j + (start[0] if shape % 100 else p.start[0]), behind(shape, p, 0))
            acc = splat(identity(op))
            tap = splat(0)
            for k in range(1, taps):
                v = at(line + j + (start[k] if shape % 100 else p.start[k]), behind(shape, p, k))
                if op == SEARCH:
                    tap = pick(greater(v, part), splat(<real>k), tap)
                if op == SUM and k % RESTART == 0:
                    acc = acc + part
                    part = v
                else:
                    part = combine(op, part, v)
            if op == SEARCH:
                store(out + j, part)
                store(places_to + j, tap)
                least = either(least, equal(part if j + LANES <= OW else first_of(part, <int>(OW - j), splat(0)), splat(-INFINITY)))
            else:
                put(out + j, finish(op, p, part if op != SUM or shape % 100 else acc + part, j, factor), OW - j, end)
        line += p.line
        out += p.outputs if op == SEARCH else OW
        places_to += p.outputs
    return any(least)


cdef inline bint finish_lines(int op, const Pool *p, Py_ssize_t count, const real *lines, real *out, real *places_to, real factor,
                              const real *end) noexcept nogil:
    """The same for any windows."""
    if p.shape == 131:
        return combine_taps(op, 131, p, count, lines, out, places_to, factor, end)
    if p.shape == 152:
        return combine_taps(op, 152, p, count, lines, out, places_to, factor, end)
    if p.shape == 230:
        return combine_taps(op, 230, p, count, lines, out, places_to, factor, end)
    if p.shape == 231:
        return combine_taps(op, 231, p, count, lines, out, places_to, factor, end)
    return combine_taps(op, 100, p, count, lines, out, places_to, factor, end)
