# Gradients of x: each row of windows in turn gives to the rows under it. The first that reaches a row writes it, the others
# add to it. A part owns rows of the gradient of x and looks at all rows of windows that reach them; an element is summed in
# the order of its windows, whatever the parts.


cdef inline void route(bint average, int n, int phases, int each, const Pool *p, const Scratch *s, const real *grad, const real *places,
                       Py_ssize_t first) noexcept nogil:
    """Add the gradients of a row of windows to n rows under it, s.target[first] and the next. In the forward pass output o
    read column o*stride - before + k*dilation for its tap k; so now column m*stride + t receives from output m - back of each
    tap of phase t (`each` for each phase if that is not 0); of maxima only where that tap is the place."""
    cdef const Py_ssize_t *back = p.back
    cdef const Py_ssize_t *phase_start = p.phase_start
    cdef const real *step = p.step
    cdef Py_ssize_t i, t, y, j, m = 0, left, begin, W = p.w.size, pitch = p.pitch, S = phases if phases else p.phases
    cdef vec acc[3]
    cdef vec v[9]
    cdef vec g, place
    cdef mask hit
    cdef real start[3]
    cdef const real *given[3]
    cdef real *target[3]
    for y in range(n):
        start[y] = s.from_start[first + y]
        given[y] = s.given[first + y]
        target[y] = s.target[first + y]
    for j from 0 <= j < W by S * LANES:
        for t in range(S):
            for y in range(n):
                acc[y] = splat(0)
            begin = t * each if each else phase_start[t]
            for i in range(begin, begin + each if each else phase_start[t + 1]):
                g = load(grad + m - back[i])
                if average:
                    acc[0] = acc[0] + g
                else:
                    place = load(places + m - back[i]) - splat(step[i])
                    for y in range(n):
                        acc[y] = acc[y] + pick(equal(place, splat(start[y])), g, splat(0))
            if phases:
                for y in range(n):
                    v[y * phases + t] = acc[0] if average else acc[y]
            else:
                store(s.flat + t * pitch + m, acc[0])
        if phases:
            left = W - j
            for y in range(n):
                join(phases, v + y * phases)
                for t in range(phases):
                    if left >= phases * LANES:
                        store(target[y] + j + t * LANES, load(given[y] + j + t * LANES) + v[y * phases + t])
                    elif left > t * LANES:
                        put(target[y] + j + t * LANES, fetch(given[y] + j + t * LANES, left - t * LANES, 0) + v[y * phases + t],
                            left - t * LANES, NULL)
        m += LANES
    if phases == 0:
        t = m = 0
        for j in range(W):
            target[0][j] = given[0][j] + s.flat[t * pitch + m]
            t += 1
            if t == S:
                t = 0
                m += 1


cdef inline void route_rows(bint average, int phases, int each, const Pool *p, const Scratch *s, const real *grad, const real *places,
                            Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i < n:
        if phases == 0 or n - i == 1:
            route(average, 1, phases, each, p, s, grad, places, i)
            i += 1
        elif n - i == 2:
            route(average, 2, phases, each, p, s, grad, places, i)
            i += 2
        else:
            route(average, 3, phases, each, p, s, grad, places, i)
            i += 3


cdef inline void route_all(bint average, const Pool *p, const Scratch *s, const real *grad, const real *places,
                           Py_ssize_t n) noexcept nogil:
    if p.phases == 1 and p.w.window == 3:
        route_rows(average, 1, 3, p, s, grad, places, n)
    elif p.phases == 1:
        route_rows(average, 1, 0, p, s, grad, places, n)
    elif p.phases == 2 and p.w.window == 2 and p.w.dilation == 1:
        route_rows(average, 2, 1, p, s, grad, places, n)
    elif p.phases == 2:
        route_rows(average, 2, 0, p, s, grad, places, n)
    elif p.phases == 3 and p.w.window == 3 and p.w.dilation == 1:
        route_rows(average, 3, 1, p, s, grad, places, n)
    elif p.phases == 3:
        route_rows(average, 3, 0, p, s, grad, places, n)
    else:
        route_rows(average, 0, 0, p, s, grad, places, n)


cdef void route_maxima(const Pool *p, const Scratch *s, const real *grad, const real *places, Py_ssize_t n) noexcept nogil:
    route_all(False, p, s, grad, places, n)


cdef void route_averages(const Pool *p, const Scratch *s, const real *grad, Py_ssize_t n) noexcept nogil:
    route_all(True, p, s, grad, NULL, n)


cdef void add_spans(const Pool *p, const Scratch *s, const real *grad, Py_ssize_t n) noexcept nogil:
    """route_averages without lines."""
    cdef Py_ssize_t i, o, k
    for i in range(n):
        if s.given[i] != s.target[i]:
            memcpy(s.target[i], s.given[i], p.w.size * sizeof(real))
        for o in range(p.w.out):
            for k in range(p.span_w[o].taps):
                s.target[i][p.span_w[o].begin + k * p.w.dilation] += grad[o]


cdef Py_ssize_t find_targets(const Pool *p, const Scratch *s, real *grad_p, Py_ssize_t od, Py_ssize_t oy, Py_ssize_t low,
                             Py_ssize_t high) noexcept nogil:
    """The rows low ... high - 1 of a plane that a row of windows covers. Returns how many."""
    cdef Py_ssize_t i, k, z, y, n = 0
    cdef Span sz = p.span_d[od], sy = p.span_h[oy]
    for i in range(sz.taps):
        z = sz.begin + i * p.d.dilation
        for k in range(sy.taps):
            y = sy.begin + k * p.h.dilation
            if low <= z * p.h.size + y < high:
                s.from_start[n] = s.start[i * sy.taps + k]
                s.target[n] = grad_p + (z * p.h.size + y) * p.w.size
                s.given[n] = s.zeros if od == p.first_d[z] and oy == p.first_h[y] else s.target[n]
                n += 1
    return n


cdef inline void weigh(bint average, const Pool *p, const real *grad_out, real factor, real *grad) noexcept nogil:
    """grad_out, or grad_out / cells, and zeros behind it."""
    cdef Py_ssize_t j
    cdef vec v
    for j from 0 <= j < p.w.out by LANES:
        v = fetch(grad_out + j, p.w.out - j, 0)
        if average:
            v = v * splat(p.scale) if p.scale != 0 else v / (load(p.cells_w + j) * splat(factor))
        store(grad + j, v)


cdef void scatter_row(const int64_t *indices, const real *grad_out, Py_ssize_t n, real *grad_p, Py_ssize_t low,
                      Py_ssize_t high) noexcept nogil:
    """Add to the elements low ... high - 1 of a plane those whose index they are."""
    cdef Py_ssize_t i
    for i in range(n):
        if low <= indices[i] < high:
            grad_p[indices[i]] += grad_out[i]


cdef void backward_plane(const Work *w, const Pool *p, Scratch *s, Py_ssize_t plane, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Rows low ... high - 1 of one plane of the gradient of x."""
    cdef Py_ssize_t od, oy, i, n, row, last, targets, W = p.w.size
    cdef Py_ssize_t first_z = low // p.h.size, last_z = (high - 1) // p.h.size
    cdef Py_ssize_t first_y = low - first_z * p.h.size if first_z == last_z else 0
    cdef Py_ssize_t last_y = high - 1 - last_z * p.h.size if first_z == last_z else p.h.size - 1
    cdef real *grad_p = w.out + plane * p.in_plane
    cdef bint average = w.kind == AVERAGE_BACKWARD
    for i in range(low, high if w.scattered or p.gaps else low):
        if w.scattered or p.first_d[i // p.h.size] == p.d.out or p.first_h[i % p.h.size] == p.h.out:
            memset(grad_p + i * W, 0, W * sizeof(real))
    last = end_covering(&p.h, last_y)
    for od in range(first_covering(&p.d, first_z), end_covering(&p.d, last_z)):
        oy = first_covering(&p.h, first_y)
        while oy < last:
            row = (plane * p.d.out + od) * p.h.out + oy
            if w.scattered:
                n = find_indices(p, s, w.x, row, row + last - oy, NULL, s.index)
                scatter_row(s.index, w.grad_out + row * p.w.out, n * p.w.out, grad_p, low * W, high * W)
                oy += n
                continue
            n = min(s.block, last - oy) if average else search_rows(p, s, w.x, row, row + last - oy)
            for i in range(n):
                weigh(average, p, w.grad_out + (row + i) * p.w.out, row_cells(p, od, oy + i), s.grad + i * p.outputs)
            for i in range(n):
                if average:
                    set_taps(p, s, p.span_d[od], p.span_h[oy + i])
                targets = find_targets(p, s, grad_p, od, oy + i, low, high)
                if not average:
                    route_maxima(p, s, s.grad + i * p.outputs, s.place + i * p.outputs, targets)
                elif p.phases:
                    route_averages(p, s, s.grad + i * p.outputs, targets)
                else:
                    add_spans(p, s, s.grad + i * p.outputs, targets)
            oy += n


cdef void whole_backward(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """The gradient of one window, the whole plane."""
    cdef Py_ssize_t i, j, n
    cdef const real *end = w.out + last * p.in_plane
    cdef real *grad_p
    cdef real share = 0
    cdef real best[LANES]
    while plane < last:
        n = min(<Py_ssize_t>LANES, last - plane)
        if w.kind == MAX_BACKWARD and reduce_planes(FAST, p, w.x + plane * p.in_plane, best, n):
            reduce_planes(MAX, p, w.x + plane * p.in_plane, best, n)
        for i in range(n):
            grad_p = w.out + (plane + i) * p.in_plane
            if w.kind == AVERAGE_BACKWARD:
                share = w.grad_out[plane + i] * p.scale if p.scale != 0 else w.grad_out[plane + i] / (p.cells_w[0] * row_cells(p, 0, 0))
            for j from 0 <= j < p.in_plane by LANES:
                put(grad_p + j, splat(share), p.in_plane - j, end)
            if w.kind == MAX_BACKWARD:
                grad_p[find(w.x + (plane + i) * p.in_plane, p.in_plane, best[i])] = w.grad_out[plane + i]
        plane += n


cdef bint scatter_planes(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """Elements to their indices, which may come in any order: added (-1: nowhere) or, for `assign`, put there. Returns whether
    an index lies outside the plane; nothing is written there."""
    cdef Py_ssize_t i, n = p.out_plane
    cdef uint64_t at, size = p.in_plane
    cdef bint outside = False
    cdef const int64_t *indices
    cdef const real *grad_out
    cdef real *grad_p
    for plane in range(plane, last):
        grad_p = w.out + plane * p.in_plane
        indices = w.indices + plane * n
        grad_out = w.grad_out + plane * n
        memset(grad_p, 0, p.in_plane * sizeof(real))
        for i in range(n):
            at = <uint64_t>indices[i]
            if at < size:
                grad_p[at] = grad_out[i] if w.assign else grad_p[at] + grad_out[i]
            else:
                outside = outside or w.assign or indices[i] != -1
    return outside
