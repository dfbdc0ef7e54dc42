# Maxima and sums, separably: the rows of a window are combined to a line (vectors of columns), then the taps along the line
# (vectors of outputs). A block of lines is filled before the first is read, so that no load waits for a store.

cdef enum:
    BLOCK_BYTES = 1 << 14       # of lines that are filled at a time: they stay in L1
    MANY_TAPS = 12              # contiguous taps from which doubling pays
    RESTART = 64                # vectors of a plane that are summed one after the other


cdef inline vec finish(int op, const Pool *p, vec acc, Py_ssize_t ox, real factor) noexcept nogil:
    if op != SUM:
        return acc
    if p.scale != 0:
        return acc * splat(p.scale)
    return acc / (load(p.cells_w + ox) * splat(factor))


cdef inline void combine_taps(int op, int taps, const Pool *p, Py_ssize_t count, const real *line, real *out, real factor,
                              const real *end) noexcept nogil:
    """`taps` is their number if it is not 0."""
    cdef Py_ssize_t i, j, k, OW = p.w.out, pitch = p.line, n = taps if taps else p.w.window
    cdef const Py_ssize_t *offset = p.offset
    cdef vec acc
    for i in range(count):
        for j from 0 <= j < OW by LANES:
            acc = at(line + j, offset[0])
            for k in range(1, n):
                acc = combine(op, acc, at(line + j, offset[k]))
            put(out + j, finish(op, p, acc, j, factor), OW - j, end)
        line += pitch
        out += OW


cdef inline void double_taps(int op, const Pool *p, real *line, real *sums, real *out, real factor, const real *end) noexcept nogil:
    """The same for many taps without dilation: runs of 1, 2, 4, ... taps are combined in place, those that the binary digits
    of the number of taps name are put together in `sums`. An element passes through at most 2 log2(taps) + stride sums."""
    cdef Py_ssize_t r, j, done, run, taps, n = p.w.out
    cdef real *phase
    for r in range(p.phases):
        taps = p.phase_start[r + 1] - p.phase_start[r]
        if taps == 0:
            continue
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


cdef inline void finish_block(int op, const Pool *p, Py_ssize_t count, real *lines, real *flat, real *out, real factor,
                              const real *end) noexcept nogil:
    """Rows of outputs from lines."""
    cdef Py_ssize_t ox, k
    cdef real acc
    cdef Span s
    if p.phases == 0:
        for ox in range(p.w.out):
            s = p.span_w[ox]
            acc = identity(op)
            for k in range(s.taps):
                acc = acc + flat[s.begin + k * p.w.dilation] if op == SUM else \
                    scalar_max(acc, flat[s.begin + k * p.w.dilation])
            out[ox] = acc if op != SUM else acc * p.scale if p.scale != 0 else acc / (p.cells_w[ox] * factor)
    elif op != MAX and p.w.window == 2:
        combine_taps(op, 2, p, count, lines, out, factor, end)
    elif op != MAX and p.w.window == 3:
        combine_taps(op, 3, p, count, lines, out, factor, end)
    elif p.w.window >= MANY_TAPS * p.phases and p.w.dilation == 1:
        for k in range(count):
            double_taps(op, p, lines + k * p.line, flat, out + k * p.w.out, factor, end)
        for k in range(count * p.line):
            lines[k] = identity(op)
    else:
        combine_taps(op, 0, p, count, lines, out, factor, end)


cdef inline bint direct_rows(int op, int n, int s, const Pool *p, const Rows *rows, real *out, real factor, const real *end) noexcept nogil:
    """Rows of outputs straight from the input, where the taps of a window are the phases."""
    cdef Py_ssize_t i, j, t, OW = p.w.out, full = OW // LANES * LANES, left = s * (OW - full)
    cdef Rows r = rows[0]
    cdef vec v[3]
    cdef mask nan = is_nan(splat(0))
    for i in range(r.count):
        for j from 0 <= j < OW by LANES:
            if j < full:
                columns(op, n, s, &r, r.x + s * j, s * LANES, v, &nan)
            else:
                columns(op, n, s, &r, r.x + s * j, left, v, &nan)
            for t in range(1, s):
                v[0] = combine(op, v[0], v[t])
            put(out + j, finish(op, p, v[0], j, factor), OW - j, end)
        r.x += r.advance
        out += OW
    return any(nan)


cdef inline bint direct_of(int op, int s, const Pool *p, const Rows *r, real *out, real factor, const real *end) noexcept nogil:
    if r.nz == 1 and r.ny == 2:
        return direct_rows(op, 2, s, p, r, out, factor, end)
    return direct_rows(op, 0, s, p, r, out, factor, end)


cdef bint direct(int op, const Pool *p, const Rows *r, real *out, real factor, const real *end) noexcept nogil:
    if p.phases == 1:
        return direct_of(FAST, 1, p, r, out, factor, end) if op == FAST else direct_of(SUM, 1, p, r, out, factor, end)
    if p.phases == 2:
        return direct_of(FAST, 2, p, r, out, factor, end) if op == FAST else direct_of(SUM, 2, p, r, out, factor, end)
    return direct_of(FAST, 3, p, r, out, factor, end) if op == FAST else direct_of(SUM, 3, p, r, out, factor, end)


cdef inline Py_ssize_t block_lines(const Pool *p) noexcept nogil:
    return max(1, min(16, BLOCK_BYTES // (p.line * <Py_ssize_t>sizeof(real)))) if p.phases else 1


cdef void finish_lines(int op, const Pool *p, Py_ssize_t count, real *lines, real *flat, real *out, real factor,
                       const real *end) noexcept nogil:
    if op == FAST:
        finish_block(FAST, p, count, lines, flat, out, factor, end)
    elif op == MAX:
        finish_block(MAX, p, count, lines, flat, out, factor, end)
    else:
        finish_block(SUM, p, count, lines, flat, out, factor, end)


cdef void forward_part(int op, const Pool *p, const Scratch *s, const real *x, real *out, Py_ssize_t row, Py_ssize_t last) noexcept nogil:
    """Rows of the output, counted over all planes. SUM, or FAST, with MAX for rows that have a NaN."""
    cdef Py_ssize_t block = block_lines(p), i, n
    cdef const real *end = out + last * p.w.out
    cdef Rows r
    cdef real factor = 1
    cdef int held
    for i in range(block * p.line):
        s.lines[i] = identity(op)
    while row < last:
        if op == SUM:
            factor = p.cells_d[row // p.h.out % p.d.out] * p.cells_h[row % p.h.out]
        n = next_rows(p, x, row, min(last, row + block), &r)
        if p.direct and r.nz * r.ny and not direct(op, p, &r, out + row * p.w.out, factor, end):
            row += n
            continue
        held = op
        if fill(op, p, &r, s.lines, s.flat):
            fill(MAX, p, &r, s.lines, s.flat)
            held = MAX
        finish_lines(held, p, n, s.lines, s.flat, out + row * p.w.out, factor, end)
        row += n


cdef inline vec reduce_run(int op, const real *x, Py_ssize_t n, mask *nan) noexcept nogil:
    """Combine n contiguous elements to LANES."""
    cdef Py_ssize_t j = 0, stop
    cdef vec v, part, acc = splat(identity(op))
    while j < n:
        stop = min(n, j + RESTART * LANES)
        part = splat(identity(op))
        for j from j <= j < stop by LANES:
            v = fetch(x + j, n - j, identity(op))
            if op == FAST:
                nan[0] = either(nan[0], is_nan(v))
            part = combine(op, part, v)
        j = stop
        acc = combine(op, acc, part)
    return acc


cdef inline bint reduce_planes(int op, const Pool *p, const real *x, real *out, Py_ssize_t n) noexcept nogil:
    """n <= LANES planes: their vectors are put together as the rows of a square, which is folded along its other side."""
    cdef vec v[LANES]
    cdef Py_ssize_t i, half = LANES // 2
    cdef mask nan = is_nan(splat(0))
    for i in range(LANES):
        v[i] = reduce_run(op, x + i * p.in_plane, p.in_plane, &nan) if i < n else splat(identity(op))
    while half:
        for i in range(half):
            v[i] = combine(op, zip_low(v[i], v[i + half]), zip_high(v[i], v[i + half]))
        half //= 2
    if op == SUM:
        v[0] = v[0] * splat(p.scale) if p.scale != 0 else v[0] / splat(p.cells_w[0] * (p.cells_d[0] * p.cells_h[0]))
    put(out, v[0], n, NULL)
    return any(nan)


cdef void whole_part(int op, const Pool *p, const real *x, real *out, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """One result for each plane."""
    cdef Py_ssize_t n
    while plane < last:
        n = min(<Py_ssize_t>LANES, last - plane)
        if op == SUM:
            reduce_planes(SUM, p, x + plane * p.in_plane, out + plane, n)
        elif reduce_planes(FAST, p, x + plane * p.in_plane, out + plane, n):
            reduce_planes(MAX, p, x + plane * p.in_plane, out + plane, n)
        plane += n
