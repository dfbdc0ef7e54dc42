# Maxima and sums, separably: the rows of a window are combined to a line (vectors of columns), then the taps along the line
# (vectors of outputs). A block of lines is filled before the first is read, so that no load waits for a store.
# Rounding: a sum of KD*KH rows and KW taps has at most KD*KH/16 + KW + 16 additions one after the other.
# Windows that tile rows do without lines, and those that are whole planes, in the backward passes too.


cdef inline bint tile(int op, int n, int phases, const Pool *p, const Rows *rows, real *out, real factor, const real *end) noexcept nogil:
    """Rows of windows that tile rows. Returns whether there was a NaN."""
    cdef Py_ssize_t i, j, t, left, OW = p.w.out
    cdef Rows r = rows[0]       # what no store can change
    cdef vec v[3]
    cdef mask nan = is_nan(splat(0))
    for i in range(r.count):
        for j from 0 <= j < OW by LANES:
            left = OW - j
            if left >= LANES:
                columns(op, n, phases, &r, r.x + phases * j, phases * LANES, v, &nan)
            else:
                columns(op, n, phases, &r, r.x + phases * j, phases * left, v, &nan)
            for t in range(1, phases):
                v[0] = combine(op, v[0], v[t])
            put(out + j, finish(op, p, v[0], j, factor), left, end)
        r.x += r.advance
        out += OW
    return any(nan)


cdef void combine_one_by_one(int op, const Pool *p, const real *line, real *out, real factor) noexcept nogil:
    cdef Py_ssize_t ox, k
    cdef real acc
    cdef Span w
    for ox in range(p.w.out):
        w = inside(&p.w, ox)
        acc = identity(op)
        for k from w.begin <= k < w.begin + w.taps * p.w.dilation by p.w.dilation:
            acc = acc + line[k] if op == SUM else max(acc, line[k])
        out[ox] = acc if op != SUM else acc * p.scale if p.scale != 0 else acc / (p.cells_w[ox] * factor)


cdef inline bint combine_rows(int op, int n, const Pool *p, const Rows *r, const Scratch *s, real *out, real factor,
                              const real *end) noexcept nogil:
    """The same for any windows, and n rows under each, if that is not 0."""
    cdef bint nan
    if p.direct and p.phases == 2:
        return tile(op, n, 2, p, r, out, factor, end)
    if p.direct:
        return tile(op, n, 3, p, r, out, factor, end)
    nan = fill(op, n, p, r, s.lines)
    if p.phases:
        finish_lines(op, p, r.count, s.lines, out, NULL, factor, end)
    else:
        combine_one_by_one(op, p, s.lines, out, factor)
    return nan


cdef inline void combine_part(int op, const Work *w, const Pool *p, Scratch *s, Py_ssize_t row, Py_ssize_t last) noexcept nogil:
    """Rows of windows, counted over all planes."""
    cdef Py_ssize_t i, j
    cdef bint nan
    cdef const real *end = w.out + last * p.w.out
    cdef real *out
    cdef real factor
    cdef Rows r
    while row < last:
        next_rows(p, w.x, row, min(last, row + p.block), &r)
        factor = p.cells_d[r.od] * p.cells_h[r.oy]
        out = w.out + row * p.w.out
        if r.nz * r.ny == 1:
            nan = combine_rows(op, 1, p, &r, s, out, factor, end)
        else:
            nan = combine_rows(op, 0, p, &r, s, out, factor, end)
        i = row
        while nan and i < row + r.count:
            j = min(min(i + p.strip, row + r.count), (i // p.h.out + 1) * p.h.out)
            find_indices(w, p, s, i, j, NULL)
            i = j
        row += r.count


cdef inline void reduce_planes(int op, const Pool *p, const real *x, real *out, Py_ssize_t n) noexcept nogil:
    """Combine n <= LANES planes: their vectors are the rows of a square, which is folded along its other side. A NaN is
    looked for again, one by one."""
    cdef vec v[LANES]
    cdef vec part, w
    cdef Py_ssize_t i, j, half = LANES // 2, size = p.in_plane, full = size // LANES * LANES, block = 64 * LANES
    cdef mask nan = is_nan(splat(0))
    for i in range(LANES):
        v[i] = splat(identity(op))
    for i in range(n):
        v[i] = fetch(x + full, size - full, identity(op))
        if op != SUM:
            nan = either(nan, is_nan(v[i]))
        part = splat(identity(op))
        for j from 0 <= j < full by LANES:
            w = fetch(x + j, LANES, 0)
            if op != SUM:
                nan = either(nan, is_nan(w))
            part = combine(op, part, w)
            if op == SUM and j % block == block - LANES:
                v[i] = v[i] + part
                part = splat(0)
        v[i] = combine(op, v[i], part)
        x += size
    while half:
        for i in range(half):
            v[i] = combine(op, zip_low(v[i], v[i + half]), zip_high(v[i], v[i + half]))
        half //= 2
    if op == SUM:
        v[0] = v[0] * splat(p.scale) if p.scale != 0 else v[0] / splat(p.cells_w[0] * (p.cells_d[0] * p.cells_h[0]))
    put(out, v[0], n, NULL)
    for i in range(n * size if any(nan) else 0, 0, -1):
        x -= 1
        if x[0] != x[0]:
            out[(i - 1) // size] = x[0]


cdef void whole_planes(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """Windows that are whole planes: one result for each plane, its index, or its gradient."""
    cdef Py_ssize_t i, j, n, size = p.in_plane
    cdef const real *x
    cdef real *grad
    cdef real share = 0
    cdef real best[LANES]
    for plane from plane <= plane < last by LANES:
        n = min(<Py_ssize_t>LANES, last - plane)
        x = w.x + plane * size
        if w.kind == AVERAGE_FORWARD:
            reduce_planes(SUM, p, x, w.out + plane, n)
        elif w.kind != AVERAGE_BACKWARD:
            reduce_planes(MAX, p, x, &best[0] if w.kind == MAX_BACKWARD else w.out + plane, n)
        for i in range(n if w.kind == INDICES else 0):
            w.indices_out[plane + i] = find_first(x + i * size, size, w.out[plane + i])
        for i in range(n if w.kind > INDICES else 0):
            grad = w.out + (plane + i) * size
            if w.kind == AVERAGE_BACKWARD:
                share = w.grad_out[plane + i] * (p.scale if p.scale != 0 else p.cells_d[0] * p.cells_h[0] * p.cells_w[0])
            for j from 0 <= j < size by LANES:
                put(grad + j, splat(share), size - j, w.out + last * size)
            if w.kind == MAX_BACKWARD:
                grad[find_first(x + i * size, size, best[i])] = w.grad_out[plane + i]
