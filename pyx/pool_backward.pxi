# Gradients of x: a part owns rows of the gradient and looks at all windows that reach them. First down the rows: what each row
# of x receives at each window, s.sums; then along w, to the columns. An element is summed in an order that does not depend on
# the parts, and from 0 on, so that there is no -0.


cdef inline void collect(bint average, int phases, const Pool *p, const real *sums, const real *taken, Py_ssize_t count,
                         real *out) noexcept nogil:
    """Rows of the gradient from lines of the strip. In the forward pass output o read place o + behind of the phase of its tap; so
    now place m of a phase receives from output m - behind of each of its taps; of maxima only where that is the tap."""
    cdef Py_ssize_t i, j, n, t, W = p.w.size
    cdef vec v[3]
    cdef vec given
    for i in range(count):
        for j from 0 <= j < (W + phases - 1) // phases by LANES:
            for t in range(phases):
                v[t] = splat(0)
                for n in range(p.phase_start[t], p.phase_start[t + 1]):
                    given = at(sums + j, -p.behind[p.order[n]])
                    if not average:
                        given = pick(equal(at(taken + j, -p.behind[p.order[n]]), splat(<real>p.order[n])), given, splat(0))
                    v[t] = v[t] + given
            join(phases, v)
            for t in range(phases):
                put(out + j * phases + t * LANES, v[t], W - j * phases - t * LANES, NULL)
        sums += p.outputs
        taken += p.outputs
        out += W


cdef void collect_one_by_one(bint average, const Pool *p, const real *sums, const real *columns, real *out) noexcept nogil:
    cdef Py_ssize_t ox, k
    cdef Span w
    memset(out, 0, p.w.size * sizeof(real))
    for ox in range(p.w.out):
        w = inside(&p.w, ox)
        for k in range(w.taps if average else 0):
            out[w.begin + k * p.w.dilation] += sums[ox]
        if not average and columns[ox] >= 0:
            out[<Py_ssize_t>columns[ox]] += sums[ox]


cdef void collect_of(bint average, const Pool *p, const Scratch *s, Py_ssize_t line, Py_ssize_t count, real *out) noexcept nogil:
    cdef const real *sums = s.sums + line * p.outputs
    cdef const real *taken = s.taps + line * p.outputs
    if p.phases == 0:
        for line in range(count):
            collect_one_by_one(average, p, sums + line * p.outputs, taken + line * p.outputs, out + line * p.w.size)
    elif p.phases == 1:
        collect(average, 1, p, sums, taken, count, out)
    elif p.phases == 2:
        collect(average, 2, p, sums, taken, count, out)
    else:
        collect(average, 3, p, sums, taken, count, out)


cdef void backward_strip(const Work *w, const Pool *p, Scratch *s, Py_ssize_t plane, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Rows low ... high - 1 of one plane of the gradient of x."""
    cdef Py_ssize_t od, row, last, z = low // p.h.size, last_z = (high - 1) // p.h.size
    cdef Py_ssize_t y = low - z * p.h.size if z == last_z else 0, last_y = (high - 1) % p.h.size if z == last_z else p.h.size - 1
    cdef Rows r
    s.z = max(0, z - reach(&p.d))
    s.end_z = min(p.d.size, last_z + reach(&p.d) + 1)
    s.y = max(0, y - reach(&p.h))
    s.end_y = min(p.h.size, last_y + reach(&p.h) + 1)
    if w.kind == MAX_BACKWARD:
        search_strip(p, s, w.x + plane * p.in_plane)
    memset(s.sums, 0, (s.end_z - s.z) * (s.end_y - s.y) * p.outputs * sizeof(real))
    for od in range(first_covering(&p.d, z), end_covering(&p.d, last_z)):
        row = (plane * p.d.out + od) * p.h.out + first_covering(&p.h, y)
        last = (plane * p.d.out + od) * p.h.out + end_covering(&p.h, last_y)
        while row < last:
            next_rows(p, w.grad_out, row, last, &r)
            choose(w, p, s, row, &r)
            row += r.count
    for z in range(z, last_z + 1):
        y = max(low - z * p.h.size, 0)
        collect_of(w.kind == AVERAGE_BACKWARD, p, s, (z - s.z) * (s.end_y - s.y) + y - s.y, min(high - z * p.h.size, p.h.size) - y,
                   w.out + plane * p.in_plane + (z * p.h.size + y) * p.w.size)


cdef inline bint scatter(bint assign, Py_ssize_t count, const int64_t *indices, const real *grad_out, real *grad_p,
                         uint64_t size) noexcept nogil:
    cdef Py_ssize_t i
    cdef bint outside = False
    prefetch(<const real *>(indices + SCATTER_AHEAD))
    prefetch(grad_out + SCATTER_AHEAD)
    for i in range(count):
        if <uint64_t>indices[i] < size:
            grad_p[indices[i]] = grad_out[i] if assign else grad_p[indices[i]] + grad_out[i]
        else:
            outside = outside or assign or indices[i] != -1
    return outside


cdef bint scatter_planes(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """Elements to their indices, which may come in any order: added (-1: nowhere) or put there. Returns whether an index lies
    outside the plane; nothing is written there."""
    cdef Py_ssize_t i, n = p.out_plane, full = n // 8 * 8
    cdef uint64_t size = p.in_plane
    cdef bint outside = False, assign = w.kind == ASSIGN
    cdef const int64_t *indices
    cdef const real *grad_out
    cdef real *grad_p
    for plane in range(plane, last):
        grad_p = w.out + plane * p.in_plane
        indices = w.indices + plane * n
        grad_out = w.grad_out + plane * n
        memset(grad_p, 0, p.in_plane * sizeof(real))
        for i from 0 <= i < full by 8:
            outside |= scatter(assign, 8, indices + i, grad_out + i, grad_p, size)
        outside |= scatter(assign, n - full, indices + full, grad_out + full, grad_p, size)
    return outside
