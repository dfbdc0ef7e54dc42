# Maxima and sums, separably: the rows of a window are combined to a line (vectors of columns), then the taps along the line
# (vectors of outputs). A block of lines is filled before the first is read, so that no load waits for a store.
# Rounding: a sum of KD*KH rows and KW taps has at most KD*KH/16 + 16 + 2*log2(KW) + stride additions one after the other.

cdef enum:
    MANY_TAPS = 12              # contiguous taps from which doubling pays


cdef inline vec finish(int op, const Pool *p, vec acc, Py_ssize_t ox, real factor) noexcept nogil:
    if op != SUM:
        return acc
    return acc * splat(p.scale) if p.scale != 0 else acc / (load(p.cells_w + ox) * splat(factor))


cdef inline void combine_taps(int op, int taps, const Pool *p, Py_ssize_t count, const real *line, real *out, real factor,
                              const real *end) noexcept nogil:
    """`taps` is their number if it is not 0."""
    cdef Py_ssize_t i, j, k, OW = p.w.out
    cdef Py_ssize_t known[5]    # what no store can change
    cdef const Py_ssize_t *offset = p.offset
    cdef vec acc
    for k in range(taps):
        known[k] = offset[k]
    for i in range(count):
        for j from 0 <= j < OW by LANES:
            acc = at(line + j, known[0] if taps else offset[0])
            for k in range(1, taps if taps else p.w.window):
                acc = combine(op, acc, at(line + j, known[k] if taps else offset[k]))
            put(out + j, finish(op, p, acc, j, factor), OW - j, end)
        line += p.line
        out += OW


cdef inline void double_taps(int op, const Pool *p, real *line, real *sums, real *out, real factor, const real *end) noexcept nogil:
    """The same for many taps without dilation: runs of 1, 2, 4, ... taps are combined in place, those that the binary digits
    of the number of taps name are put together in `sums`. An element passes through at most 2 log2(taps) + stride sums."""
    cdef Py_ssize_t r, j, done, run, taps, n = p.w.out
    cdef real *phase
    for r in range(p.phases):
        taps = p.phase_start[r + 1] - p.phase_start[r]
        phase = line + p.offset[<Py_ssize_t>p.tap[p.phase_start[r]]]
        done = 0
        run = 1
        while taps > 0:
            if taps & run:
                for j from 0 <= j < n by LANES:
                    store(sums + j, combine(op, load(sums + j), load(phase + done + j)) if r or done else load(phase + j))
                done += run
                taps -= run
            if taps > 0:
                for j from 0 <= j < n + done + taps - run by LANES:
                    store(phase + j, combine(op, load(phase + j), load(phase + j + run)))
                run *= 2
    for j from 0 <= j < n by LANES:
        put(out + j, finish(op, p, load(sums + j), j, factor), n - j, end)


cdef inline void finish_lines(int op, const Pool *p, Py_ssize_t count, real *lines, real *flat, real *out, real factor,
                              const real *end) noexcept nogil:
    """Rows of outputs from lines."""
    cdef Py_ssize_t ox, k
    cdef real acc
    cdef Span s
    if p.phases == 0:
        for ox in range(p.w.out):
            s = span_w(p, ox)
            acc = identity(op)
            for k from s.begin <= k < s.begin + s.taps * p.w.dilation by p.w.dilation:
                acc = acc + flat[k] if op == SUM else scalar_max(acc, flat[k])
            out[ox] = acc if op != SUM else acc * p.scale if p.scale != 0 else acc / (p.cells_w[ox] * factor)
    elif op != MAX and p.w.window == 2:
        combine_taps(op, 2, p, count, lines, out, factor, end)
    elif op != MAX and p.w.window == 3:
        combine_taps(op, 3, p, count, lines, out, factor, end)
    elif op != MAX and p.w.window == 5:
        combine_taps(op, 5, p, count, lines, out, factor, end)
    elif p.w.window >= MANY_TAPS * p.phases and p.w.dilation == 1:
        for k in range(count):
            double_taps(op, p, lines + k * p.line, flat, out + k * p.w.out, factor, end)
        for k in range(count * p.line):
            lines[k] = identity(op)
    else:
        combine_taps(op, 0, p, count, lines, out, factor, end)


cdef void finish_exactly(const Pool *p, Py_ssize_t count, real *lines, real *flat, real *out, const real *end) noexcept nogil:
    finish_lines(MAX, p, count, lines, flat, out, 1, end)


cdef inline bint direct_rows(int op, int n, int phases, const Pool *p, const Rows *rows, real *out, real factor,
                             const real *end) noexcept nogil:
    """Rows of outputs straight from the input, where the taps of a window are the phases."""
    cdef Py_ssize_t i, j, t, OW = p.w.out, full = OW // LANES * LANES, left = phases * (OW - full)
    cdef Rows r = rows[0]
    cdef vec v[3]
    cdef mask nan = is_nan(splat(0))
    for i in range(r.count):
        for j from 0 <= j < OW by LANES:
            if j < full:
                columns(op, n, phases, &r, r.x + phases * j, phases * LANES, v, &nan)
            else:
                columns(op, n, phases, &r, r.x + phases * j, left, v, &nan)
            for t in range(1, phases):
                v[0] = combine(op, v[0], v[t])
            put(out + j, finish(op, p, v[0], j, factor), OW - j, end)
        r.x += r.advance
        out += OW
    return any(nan)


cdef inline void forward_part(int op, int phases, const Pool *p, const Scratch *s, const real *x, real *out, Py_ssize_t row,
                              Py_ssize_t last) noexcept nogil:
    """Rows of the output, counted over all planes. SUM, or FAST, with MAX for rows that have a NaN."""
    cdef Py_ssize_t i, n
    cdef const real *end = out + last * p.w.out
    cdef real *to
    cdef real factor = 1
    cdef Rows r
    cdef bint nan
    while row < last:
        to = out + row * p.w.out
        if op == SUM:
            factor = p.cells_d[row // p.h.out % p.d.out] * p.cells_h[row % p.h.out]
        n = next_rows(p, x, row, min(last, row + p.block), &r)
        if r.nz * r.ny == 0:
            for i in range(n * p.w.out):
                to[i] = -INFINITY if op != SUM else 0 if p.scale != 0 else 0 / (p.cells_w[i] * factor)
            row += n
            continue
        nan = True
        if phases > 1 and p.direct:
            nan = direct_rows(op, 2, phases, p, &r, to, factor, end) if r.nz == 1 and r.ny == 2 else \
                direct_rows(op, 0, phases, p, &r, to, factor, end)
        if nan:
            nan = fill(op, phases, p, &r, s.lines, s.flat)
            if nan:
                fill_exactly(p, &r, s.lines, s.flat)
                finish_exactly(p, n, s.lines, s.flat, to, end)
            else:
                finish_lines(op, p, n, s.lines, s.flat, to, factor, end)
        row += n


cdef inline bint reduce_planes(int op, const Pool *p, const real *x, real *out, Py_ssize_t n) noexcept nogil:
    """Combine n <= LANES planes: their vectors are the rows of a square, which is folded along its other side."""
    cdef vec v[LANES]
    cdef vec part, w
    cdef Py_ssize_t i, j, half = LANES // 2
    cdef mask nan = is_nan(splat(0))
    for i in range(LANES):
        v[i] = part = splat(identity(op))
        for j from 0 <= j < (p.in_plane if i < n else 0) by LANES:
            w = fetch(x + i * p.in_plane + j, p.in_plane - j, identity(op))
            if op == FAST:
                nan = either(nan, is_nan(w))
            part = combine(op, part, w)
            if op == SUM and j // LANES % 64 == 63:
                v[i] = v[i] + part
                part = splat(0)
        v[i] = combine(op, v[i], part)
    while half:
        for i in range(half):
            v[i] = combine(op, zip_low(v[i], v[i + half]), zip_high(v[i], v[i + half]))
        half //= 2
    if op == SUM:
        v[0] = v[0] * splat(p.scale) if p.scale != 0 else v[0] / splat(p.cells_w[0] * (p.cells_d[0] * p.cells_h[0]))
    put(out, v[0], n, NULL)
    return any(nan)


cdef void reduce_to(int kind, const Pool *p, const real *x, real *out, Py_ssize_t n) noexcept nogil:
    if kind == AVERAGE_FORWARD:
        reduce_planes(SUM, p, x, out, n)
    elif reduce_planes(FAST, p, x, out, n):
        reduce_planes(MAX, p, x, out, n)


cdef void whole_forward(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """One result for each plane."""
    for plane from plane <= plane < last by LANES:
        reduce_to(w.kind, p, w.x + plane * p.in_plane, w.out + plane, min(<Py_ssize_t>LANES, last - plane))
