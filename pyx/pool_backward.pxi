# Gradients of x: each row of windows in turn gives to the rows under it. The first that reaches a row writes it, the others
# add to it. A part owns rows of the gradient of x and looks at all rows of windows that reach them; an element is summed in
# the order of its windows, whatever the parts.

cdef enum:
    GIVEN = 16      # rows of windows that give directly at a time


cdef inline void route(bint average, int n, int phases, int each, const Pool *p, const Scratch *s, Py_ssize_t begin,
                       Py_ssize_t count, Py_ssize_t first) noexcept nogil:
    """Add the gradients of `count` rows of windows, from `begin` on, to n rows under each, from `first` on. In the forward pass
    output o read column o*stride - before + k*dilation for its tap k; so now column m*stride + t receives from output m - back of each tap
    of phase t (`each` for each phase if that is not 0); of maxima only where that is the tap. All maxima of a row of windows
    that lie in one column lie in one row: the first that has the column's maximum."""
    cdef Py_ssize_t i, k, t, y, j, m, left, low, W = p.w.size, pitch = p.pitch, S = phases if phases else p.phases
    cdef Py_ssize_t outputs = p.outputs, under = s.rows
    cdef const Py_ssize_t *back = p.back
    cdef const Py_ssize_t *phase_start = p.phase_start
    cdef const real *tap = p.tap
    cdef const real *grad = s.grad + begin * outputs
    cdef const real *taps = s.tap + begin * outputs
    cdef const real *rows = s.row + begin * outputs
    cdef real *flat = s.flat
    cdef real **targets = s.target + begin * under + first
    cdef const Py_ssize_t *rooms = s.room + begin * under + first
    cdef const real **givens = s.given + begin * under + first
    cdef Py_ssize_t known[3]    # what no store can change
    cdef real known_taps[3]
    cdef real start[3]
    cdef Py_ssize_t room[3]
    cdef Py_ssize_t given_room = whole_lines(W + 4 * LANES) if p.apart else W
    cdef const real *given[3]
    cdef real *target[3]
    cdef vec acc, row, g
    cdef vec v[9]
    cdef mask hit
    for k in range(each * phases):
        known[k] = -back[k]
        known_taps[k] = tap[k]
    for y in range(n):
        start[y] = s.start[first + y]
    for i in range(count):
        for y in range(n):
            given[y] = givens[y]
            target[y] = targets[y]
            room[y] = rooms[y]
        m = 0
        for j from 0 <= j < W by S * LANES:
            for t in range(S):
                acc = splat(0)
                row = splat(0)
                low = t * each if each else phase_start[t]
                for k in range(low, low + each if each else phase_start[t + 1]):
                    g = at(grad + m, known[k] if each else -back[k])
                    if average:
                        acc = acc + g
                    else:
                        hit = equal(at(taps + m, known[k] if each else -back[k]), splat(known_taps[k] if each else tap[k]))
                        acc = acc + pick(hit, g, splat(0))
                        row = pick(hit, at(rows + m, known[k] if each else -back[k]), row)
                if phases:
                    for y in range(n):
                        v[y * phases + t] = acc if average else pick(equal(row, splat(start[y])), acc, splat(0))
                else:
                    store(flat + t * pitch + m, acc if average else pick(equal(row, splat(start[0])), acc, splat(0)))
            left = W - j
            for y in range(n if phases else 0):
                join(phases, v + y * phases)
                for t in range(phases):
                    if left >= phases * LANES:
                        store(target[y] + j + t * LANES, load(given[y] + j + t * LANES) + v[y * phases + t])
                    elif left > t * LANES:
                        put(target[y] + j + t * LANES, fetch(given[y] + j + t * LANES, given_room - j - t * LANES, 0) +
                            v[y * phases + t], room[y] - j - t * LANES, NULL)
            m += LANES
        if phases == 0:
            t = m = 0
            for j in range(W):
                target[0][j] = given[0][j] + flat[t * pitch + m]
                t += 1
                if t == S:
                    t = 0
                    m += 1
        grad += outputs
        taps += outputs
        rows += outputs
        targets += under
        givens += under
        rooms += under


cdef inline void route_chunks(bint average, int phases, int each, const Pool *p, const Scratch *s, Py_ssize_t count) noexcept nogil:
    """Up to three rows at a time; then the next row of windows, so that the first to reach a row is the first here."""
    cdef Py_ssize_t i, y
    if s.rows == 3 and phases:
        route(average, 3, phases, each, p, s, 0, count, 0)
        return
    for i in range(count):
        y = 0
        while y < s.rows:
            if phases == 0 or s.rows - y == 1:
                route(average, 1, phases, each, p, s, i, 1, y)
                y += 1
            elif s.rows - y == 2:
                route(average, 2, phases, each, p, s, i, 1, y)
                y += 2
            else:
                route(average, 3, phases, each, p, s, i, 1, y)
                y += 3


cdef inline void route_rows(bint average, const Pool *p, const Scratch *s, Py_ssize_t count) noexcept nogil:
    """`route` with the usual numbers as constants."""
    if p.phases == 1 and p.w.window == 3:
        route_chunks(average, 1, 3, p, s, count)
    elif p.phases == 1:
        route_chunks(average, 1, 0, p, s, count)
    elif p.phases == 2:
        route_chunks(average, 2, 0, p, s, count)
    elif p.phases == 3:
        route_chunks(average, 3, 0, p, s, count)
    else:
        route_chunks(average, 0, 0, p, s, count)


cdef void route_maxima(const Pool *p, const Scratch *s, Py_ssize_t count) noexcept nogil:
    route_rows(False, p, s, count)


cdef void route_averages(const Pool *p, const Scratch *s, Py_ssize_t count) noexcept nogil:
    route_rows(True, p, s, count)


cdef inline bint give(bint average, bint exact, int n, int phases, const Pool *p, const Rows *rows, const real *grad_out, real *grad_x,
                      real factor) noexcept nogil:
    """The gradient of windows that do not overlap and are n rows high, straight from the input: each writes its cells. Returns
    whether there was a NaN, which only `exact` heeds."""
    cdef Py_ssize_t i, j, t, y, k, left, W = p.w.size, OW = p.w.out
    cdef Rows r = rows[0]
    cdef real scale = p.scale
    cdef const real *cells_w = p.cells_w
    cdef vec v[9]
    cdef vec g, best
    cdef mask hit, nan = is_nan(splat(0))
    for i in range(r.count):
        for j from 0 <= j < ceil_div(W, phases) by LANES:
            left = OW - j
            g = fetch(grad_out + j, left, 0)
            if average:
                g = g * splat(scale) if scale != 0 else g * (fetch(cells_w + j, left, 1) * splat(factor))
                for k in range(n * phases):
                    v[k] = g
            else:
                for y in range(n):
                    if left >= LANES:
                        columns(FAST, 1, phases, &r, r.x + y * r.step_y + phases * j, phases * LANES, v + y * phases, &nan)
                    else:
                        columns(FAST, 1, phases, &r, r.x + y * r.step_y + phases * j, phases * left, v + y * phases, &nan)
                best = v[0]
                for k in range(1, n * phases):
                    best = vmax(best, v[k]) if exact else larger(best, v[k])
                for k in range(n * phases):
                    hit = either(equal(v[k], best), is_nan(v[k])) if exact else equal(v[k], best)
                    v[k] = pick(hit, g, splat(0))
                    g = pick(hit, splat(0), g)
            left = W - phases * j
            for y in range(n):
                join(phases, v + y * phases)
                for t in range(phases):
                    if left >= phases * LANES:
                        store(grad_x + y * r.step_y + phases * j + t * LANES, v[y * phases + t])
                    else:
                        put(grad_x + y * r.step_y + phases * j + t * LANES, v[y * phases + t], left - t * LANES, NULL)
        r.x += r.advance
        grad_x += r.advance
        grad_out += OW
    return any(nan)


cdef inline bint give_maxima(int n, int phases, const Pool *p, const Rows *r, const real *grad_out, real *grad_x) noexcept nogil:
    return give(False, False, n, phases, p, r, grad_out, grad_x, 1) and give(False, True, n, phases, p, r, grad_out, grad_x, 1)


cdef void give_directly(bint average, const Pool *p, const Rows *r, const real *grad_out, real *grad_x, real factor) noexcept nogil:
    """`give` with its numbers as constants."""
    if average and p.phases == 2:
        give(True, False, 2, 2, p, r, grad_out, grad_x, factor) if r.ny == 2 else give(True, False, 3, 2, p, r, grad_out, grad_x, factor)
    elif average:
        give(True, False, 2, 3, p, r, grad_out, grad_x, factor) if r.ny == 2 else \
            give(True, False, 3, 3, p, r, grad_out, grad_x, factor)
    elif p.phases == 2:
        give_maxima(2, 2, p, r, grad_out, grad_x) if r.ny == 2 else give_maxima(3, 2, p, r, grad_out, grad_x)
    else:
        give_maxima(2, 3, p, r, grad_out, grad_x) if r.ny == 2 else give_maxima(3, 3, p, r, grad_out, grad_x)


cdef void add_spans(const Pool *p, const Scratch *s, Py_ssize_t count) noexcept nogil:
    """route_averages without lines."""
    cdef Py_ssize_t i, o, k
    cdef real *target
    for i in range(count * s.rows):
        target = s.target[i]
        if s.given[i] != target:
            memcpy(target, s.given[i], p.w.size * sizeof(real))
        for o in range(p.w.out):
            for k in range(p.span_w[o].taps):
                target[p.span_w[o].begin + k * p.w.dilation] += s.grad[i // s.rows * p.outputs + o]


cdef void find_targets(const Pool *p, const Scratch *s, real *grad_p, Py_ssize_t od, Py_ssize_t oy, Py_ssize_t count,
                       Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Where rows of windows add what to. A row of the gradient of x is summed in a line, with room for whole vectors, until the
    last row of windows that reaches it; in place if windows overlap along d. What is not low ... high - 1 goes elsewhere."""
    cdef Py_ssize_t i, k, o, z, y, W = p.w.size, n = 0, line = whole_lines(p.w.size + 4 * LANES)
    cdef Span sz = p.span_d[od], sy
    cdef const Py_ssize_t *first_h = p.first_h
    cdef const Py_ssize_t *last_h = p.last_h
    cdef bint first, last
    cdef real *row
    cdef real *kept
    for o in range(oy, oy + count):
        sy = p.span_h[o]
        for i in range(sz.taps):
            z = (sz.begin + i * p.d.dilation) * p.h.size
            first = od == p.first_d[sz.begin + i * p.d.dilation]
            for k in range(sy.taps):
                y = sy.begin + k * p.h.dilation
                row = grad_p + (z + y) * W
                kept = s.kept + (y & (p.kept - 1)) * line if p.apart else row
                if z + y < low or z + y >= high:
                    row = kept = s.elsewhere
                last = o == last_h[y]
                s.target[n] = row if last else kept
                s.room[n] = W if last or not p.apart else line
                s.given[n] = s.zeros if first and o == first_h[y] else kept
                n += 1


cdef inline void weigh(bint average, const Pool *p, const real *grad_out, real factor, real *grad) noexcept nogil:
    """grad_out, or grad_out / cells, and zeros behind it."""
    cdef Py_ssize_t j
    cdef vec v
    for j from 0 <= j < p.w.out by LANES:
        v = fetch(grad_out + j, p.w.out - j, 0)
        if average:
            v = v * splat(p.scale) if p.scale != 0 else v * (load(p.cells_w + j) * splat(factor))
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
    cdef Py_ssize_t od, oy, i, n, row, last, y, W = p.w.size
    cdef Rows r
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
            if p.direct and p.d.size == 1 and p.h.stride >= (p.h.window - 1) * p.h.dilation + 1 and p.phases > 1:
                n = next_rows(p, w.x if w.x != NULL else w.out, row, row + min(<Py_ssize_t>GIVEN, last - oy), &r)
                y = p.span_h[oy].begin
                if 2 <= r.ny <= 3 and y >= low and y + (n - 1) * p.h.stride + (r.ny - 1) * p.h.dilation < high:
                    give_directly(average, p, &r, w.grad_out + row * p.w.out, grad_p + y * W, p.cells_d[od] * p.cells_h[oy] if average else 1)
                    oy += n
                    continue
            if average:
                n = next_rows(p, w.out, row, row + min(s.block, last - oy), &r)
                set_rows(p, s, p.span_d[od], p.span_h[oy])
            else:
                n = search_windows(p, s, w.x, row, row + last - oy)
            for i in range(n):
                weigh(average, p, w.grad_out + (row + i) * p.w.out, p.cells_d[od] * p.cells_h[oy + i] if average else 1, s.grad + i * p.outputs)
            find_targets(p, s, grad_p, od, oy, n, low, high)
            if not average:
                route_maxima(p, s, n)
            elif p.phases:
                route_averages(p, s, n)
            else:
                add_spans(p, s, n)
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
                share = w.grad_out[plane + i] * (p.scale if p.scale != 0 else p.cells_d[0] * p.cells_h[0] * p.cells_w[0])
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
