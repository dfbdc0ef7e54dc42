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
        elif r.nz == 1 and r.ny == 2:
            nan = combine_rows(op, 2, p, &r, s, out, factor, end)
        else:
            nan = combine_rows(op, 0, p, &r, s, out, factor, end)
        i = row
        while nan and i < row + r.count:
            j = min(min(i + p.strip, row + r.count), (i // p.h.out + 1) * p.h.out)
            find_indices(w, p, s, i, j, NULL)
            i = j
        row += r.count


cdef inline real reduced(int op, const real *x, Py_ssize_t size) noexcept nogil:
    """The maximum or sum of a plane; a maximum is NaN if there is one."""
    cdef vec seen[2]
    cdef vec v, acc = splat(identity(op)), part = acc
    cdef Py_ssize_t j
    seen[0] = seen[1] = splat(0)
    for j from 0 <= j < size by LANES:
        v = fetch(x + j, size - j, identity(op))
        if op != SUM:
            seen[j // LANES % 2] = seen[j // LANES % 2] + v
        part = combine(op, part, v)
        if op == SUM and j // LANES % 64 == 63:
            acc = acc + part
            part = splat(0)
    if op == SUM:
        return lane_sum(acc + part)
    if any(is_nan(seen[0] + seen[1])):      # or inf - inf
        j = find_nan(x, size)
        if j < size:
            return x[j]
    return lane_max(part)


cdef inline void whole_planes_of(int kind, Py_ssize_t size, const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """First what is read of some planes, then what is written: a load that lies a multiple of 4096 bytes behind a store waits for it."""
    cdef Py_ssize_t i, j, n
    cdef Py_ssize_t place[PLANES]
    cdef const real *x
    cdef real *grad
    cdef real value, cells = p.cells_d[0] * p.cells_h[0] * p.cells_w[0], scale = p.scale
    for plane from plane <= plane < last by PLANES:
        n = min(<Py_ssize_t>PLANES, last - plane)
        for i in range(n if kind != AVERAGE_BACKWARD else 0):
            x = w.x + (plane + i) * size
            value = reduced(SUM if kind == AVERAGE_FORWARD else MAX, x, size)
            if kind >= INDICES:
                place[i] = find_first(x, size, value)
            if kind == AVERAGE_FORWARD:
                value = value * scale if scale != 0 else value / cells
            if kind <= INDICES:
                w.out[plane + i] = value
            if kind == INDICES:
                w.indices_out[plane + i] = place[i]
        for i in range(n if kind > INDICES else 0):
            grad = w.out + (plane + i) * size
            value = 0 if kind == MAX_BACKWARD else w.grad_out[plane + i] * (scale if scale != 0 else cells)
            for j from 0 <= j < size by LANES:
                put(grad + j, splat(value), size - j, w.out + last * size)
            if kind == MAX_BACKWARD:
                grad[place[i]] = w.grad_out[plane + i]


cdef void whole_planes(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """Windows that are whole planes: one result for each plane, its index, or its gradient."""
    cdef int kind
    for kind in range(5):
        if w.kind == kind and p.in_plane == 49:     # 7x7, where many networks end
            whole_planes_of(kind, 49, w, p, plane, last)
        elif w.kind == kind:
            whole_planes_of(kind, p.in_plane, w, p, plane, last)
