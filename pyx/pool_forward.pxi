# Maxima and sums, separably: the rows of a window are combined to a line (vectors of columns), then the taps along the line
# (vectors of outputs). A block of lines is filled before the first is read, so that no load waits for a store.
# Rounding: a sum of KD*KH rows and KW taps has at most KD*KH/16 + KW/16 + 32 additions one after the other.
# Windows that tile rows, and those that are whole planes, do without lines, in the backward passes too.


cdef inline bint tile_rows(int kind, int n, int phases, const Pool *p, const Rows *rows, const real *grad_out, real *out, real factor,
                           const real *end) noexcept nogil:
    """Rows of windows that tile rows, n of them if that is not 0; in the backward passes n, and out is the gradient of x, of
    which each window writes its cells. Returns whether there was a NaN."""
    cdef Py_ssize_t i, j, t, y, k, left, W = p.w.size, OW = p.w.out
    cdef bint forward = kind <= AVERAGE_FORWARD, average = kind == AVERAGE_BACKWARD
    cdef int op = SUM if kind == AVERAGE_FORWARD else MAX
    cdef Rows r = rows[0]       # what no store can change
    cdef real scale = p.scale
    cdef const real *cells_w = p.cells_w
    cdef vec v[9]
    cdef vec g, best
    cdef mask hit, nan = is_nan(splat(0))
    for i in range(r.count):
        for j from 0 <= j < (OW if forward else (W + phases - 1) // phases) by LANES:
            left = OW - j
            if forward:
                columns(op, n, phases, &r, r.x + phases * j, phases * left, v, &nan)
                for t in range(1, phases):
                    v[0] = combine(op, v[0], v[t])
                put(out + j, finish(op, p, v[0], j, factor), left, end)
                continue
            g = fetch(grad_out + j, left, 0) + splat(0)     # no -0
            if average:
                g = g * splat(scale) if scale != 0 else g * (fetch(cells_w + j, left, 1) * splat(factor))
            for y in range(0 if average else n):
                columns(MAX, 1, phases, &r, r.x + y * r.step_y + phases * j, phases * left, v + y * phases, &nan)
            best = v[0]
            for k in range(1, 0 if average else n * phases):
                best = larger(best, v[k])
            for k in range(n * phases):
                if average:
                    v[k] = g
                else:
                    hit = equal(v[k], best)
                    v[k] = pick(hit, g, splat(0))
                    g = pick(hit, splat(0), g)      # the first has it all
            for y in range(n):
                join(phases, v + y * phases)
                for t in range(phases):
                    k = phases * j + t * LANES
                    put(out + y * r.step_y + k, v[y * phases + t], W - k, NULL)
        r.x += r.advance
        out += OW if forward else r.advance
        grad_out += OW
    return any(nan)


cdef void combine_one_by_one(int op, const Pool *p, Py_ssize_t count, const real *line, real *out, real factor) noexcept nogil:
    cdef Py_ssize_t i, ox, k
    cdef real acc
    cdef Span w
    for ox in range(p.w.out):
        w = inside(&p.w, ox)
        for i in range(count):
            acc = identity(op)
            for k from i * p.line + w.begin <= k < i * p.line + w.begin + w.taps * p.w.dilation by p.w.dilation:
                acc = acc + line[k] if op == SUM else max(acc, line[k])
            out[i * p.w.out + ox] = acc if op != SUM else acc * p.scale if p.scale != 0 else acc / (p.cells_w[ox] * factor)


cdef inline bint combine_rows(int kind, int n, const Pool *p, const Rows *r, const Scratch *s, const real *grad_out, real *out,
                              real factor, const real *end) noexcept nogil:
    """Rows of outputs, or of the gradient of x of windows that tile it, from n rows each if that is not 0. Returns whether
    there was a NaN."""
    cdef int op = SUM if kind == AVERAGE_FORWARD else MAX
    cdef bint nan
    if (p.direct or kind > AVERAGE_FORWARD) and p.phases == 2:
        return tile_rows(kind, n, 2, p, r, grad_out, out, factor, end)
    if p.direct or kind > AVERAGE_FORWARD:
        return tile_rows(kind, n, 3, p, r, grad_out, out, factor, end)
    nan = fill(op, n, p, r, s.lines)
    if p.phases:
        finish_lines(op, p, r.count, s.lines, out, NULL, factor, end)
    else:
        combine_one_by_one(op, p, r.count, s.lines, out, factor)
    return nan


cdef inline void combine_part(int kind, const Work *w, const Pool *p, Scratch *s, Py_ssize_t row, Py_ssize_t last) noexcept nogil:
    """Rows of windows, counted over all planes. In the backward passes, where windows tile the plane, a row of them owns the
    rows under it, the last of a plane also those after it."""
    cdef Py_ssize_t i, n, plane, gap = (p.h.size - p.h.out * p.h.stride) * p.w.size
    cdef bint nan, forward = kind <= AVERAGE_FORWARD
    cdef const real *end = w.out + last * p.w.out
    cdef const real *x = w.x
    cdef const real *grad_out = w.grad_out
    cdef real *out
    cdef real factor
    cdef Rows r
    if kind == AVERAGE_BACKWARD:
        x = w.out       # any: nothing is read there
    while row < last:
        n = next_rows(p, x, row, min(last, row + p.block), &r)
        factor = p.cells_d[row // p.h.out % p.d.out] * p.cells_h[row % p.h.out]
        plane = row // p.h.out
        out = w.out + (row * p.w.out if forward else plane * p.in_plane + (row - plane * p.h.out) * r.advance)
        if r.nz == 1 and r.ny == 2:
            nan = combine_rows(kind, 2, p, &r, s, grad_out + row * p.w.out, out, factor, end)
        elif r.nz == 1 and r.ny == 3:
            nan = combine_rows(kind, 3, p, &r, s, grad_out + row * p.w.out, out, factor, end)
        elif forward:
            nan = combine_rows(kind, 0, p, &r, s, grad_out, out, factor, end)
        for i in range(row, row + n if nan else row):
            if forward:
                find_indices(w, p, s, i, i + 1, NULL)
            else:
                backward_strip(w, p, s, i // p.h.out, i % p.h.out * p.h.stride, (i % p.h.out + 1) * p.h.stride)
        row += n
        if not forward and gap and row % p.h.out == 0:
            memset(w.out + row // p.h.out * p.in_plane - gap, 0, gap * sizeof(real))


cdef inline bint reduce_planes(int op, const Pool *p, const real *x, real *out, Py_ssize_t n) noexcept nogil:
    """Combine n <= LANES planes: their vectors are the rows of a square, which is folded along its other side. Returns whether
    there was a NaN."""
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
    return any(nan)


cdef void reduce_to(bint average, const Pool *p, const real *x, real *out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if average:
        reduce_planes(SUM, p, x, out, n)
    elif reduce_planes(MAX, p, x, out, n):
        for i in range(n * p.in_plane - 1, -1, -1):
            if x[i] != x[i]:
                out[i // p.in_plane] = x[i]


cdef inline Py_ssize_t find(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """The first of n elements that is `value`, which is among them; or the first NaN."""
    cdef Py_ssize_t j, t
    cdef vec v
    cdef uint64_t hits = 0
    for j from 0 <= j < n by 64:
        for t from 0 <= t < 64 by LANES:
            v = fetch(x + j + t, n - j - t, 0)
            hits |= bits_of(equal(v, splat(value)) if value == value else is_nan(v)) << t
        if hits:
            break
    return j + first_bit(hits)


cdef void whole_planes(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """Windows that are whole planes: one result for each plane, its index, or its gradient."""
    cdef Py_ssize_t i, j, n, size = p.in_plane
    cdef const real *end = w.out + last * size
    cdef const real *x
    cdef real *grad
    cdef real share = 0
    cdef real best[LANES]
    for plane from plane <= plane < last by LANES:
        n = min(<Py_ssize_t>LANES, last - plane)
        x = w.x + plane * size
        if w.kind <= AVERAGE_FORWARD:
            reduce_to(w.kind == AVERAGE_FORWARD, p, x, w.out + plane, n)
            continue
        if w.kind != AVERAGE_BACKWARD:
            reduce_to(False, p, x, best, n)
        for i in range(n if w.kind == INDICES else 0):
            w.out[plane + i] = best[i]
            w.indices_out[plane + i] = find(x + i * size, size, best[i])
        for i in range(n if w.kind != INDICES else 0):
            grad = w.out + (plane + i) * size
            if w.kind == AVERAGE_BACKWARD:
                share = w.grad_out[plane + i] * (p.scale if p.scale != 0 else p.cells_d[0] * p.cells_h[0] * p.cells_w[0])
            for j from 0 <= j < size by LANES:
                put(grad + j, splat(share), size - j, end)
            if w.kind == MAX_BACKWARD:
                grad[find(x + i * size, size, best[i])] = w.grad_out[plane + i]
