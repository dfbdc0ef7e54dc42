# Gradients of x: each row of windows in turn gives to the rows under it. A part owns rows of the gradient of x and looks at all
# rows of windows that reach them; an element is summed in the order of its windows, whatever the parts.


cdef inline void route(bint average, int n, int phases, int each, const Pool *p, const Scratch *s, Py_ssize_t begin,
                       Py_ssize_t count, Py_ssize_t first) noexcept nogil:
    """Add the gradients of `count` rows of windows, from `begin` on, to n rows under each, from `first` on. In the forward pass
    output o read column o*stride - before + k*dilation for its tap k; so now column m*stride + t receives from output m - back
    of each tap of phase t (`each` for each phase if that is not 0); of maxima only where that is the tap. All maxima of a row
    of windows that lie in one column lie in one row: the first that has the column's maximum."""
    cdef Py_ssize_t i, k, t, y, j, m, low, W = p.w.size, pitch = p.pitch, S = phases if phases else p.phases, outputs = p.outputs
    cdef Py_ssize_t given_room = row_room(p) if p.apart else W
    cdef const Py_ssize_t *back = p.back
    cdef const Py_ssize_t *phase_start = p.phase_start
    cdef const real *which = p.tap
    cdef const real *grad
    cdef const real *tap
    cdef const real *row_of
    cdef real *flat = s.flat
    cdef Py_ssize_t known[9]    # what no store can change
    cdef real known_taps[9]
    cdef real start[3]
    cdef Py_ssize_t room[3]
    cdef const real *given[3]
    cdef real *target[3]
    cdef vec acc, row, g
    cdef vec v[9]
    cdef mask hit
    for k in range(each * phases):
        known[k] = -back[k]
        known_taps[k] = which[k]
    for y in range(n):
        start[y] = s.start[first + y]
    for i in range(begin, begin + count):
        grad = s.grad + i * outputs
        tap = s.tap + i * outputs
        row_of = s.row + i * outputs
        for y in range(n):
            given[y] = s.given[i * s.rows + first + y]
            target[y] = s.target[i * s.rows + first + y]
            room[y] = s.room[i * s.rows + first + y]
        m = 0
        for j from 0 <= j < W by S * LANES:
            for t in range(S):
                acc = row = splat(0)
                low = t * each if each else phase_start[t]
                for k in range(low, low + each if each else phase_start[t + 1]):
                    g = at(grad + m, known[k] if each else -back[k])
                    if average:
                        acc = acc + g
                    else:
                        hit = equal(at(tap + m, known[k] if each else -back[k]), splat(known_taps[k] if each else which[k]))
                        acc = acc + pick(hit, g, splat(0))
                        row = pick(hit, at(row_of + m, known[k] if each else -back[k]), row)
                for y in range(n):
                    g = acc if average else pick(equal(row, splat(start[y])), acc, splat(0))
                    if phases:
                        v[y * phases + t] = g
                    else:
                        store(flat + t * pitch + m, g)
            for y in range(n if phases else 0):
                join(phases, v + y * phases)
                for t in range(phases):
                    if W - j >= phases * LANES:
                        store(target[y] + j + t * LANES, load(given[y] + j + t * LANES) + v[y * phases + t])
                    elif W - j > t * LANES:
                        put(target[y] + j + t * LANES, fetch(given[y] + j + t * LANES, given_room - j - t * LANES, 0) +
                            v[y * phases + t], room[y] - j - t * LANES, NULL)
            m += LANES
        t = m = 0
        for j in range(0 if phases else W):
            target[0][j] = given[0][j] + flat[t * pitch + m]
            t += 1
            if t == S:
                t = 0
                m += 1


cdef inline void route_rows(bint average, int phases, int each, const Pool *p, const Scratch *s, Py_ssize_t count) noexcept nogil:
    """Up to three rows at a time; then the next row of windows, so that the first to reach a row is the first here."""
    cdef Py_ssize_t i, y
    if s.rows == 3 and phases:
        route(average, 3, phases, each, p, s, 0, count, 0)
        return
    for i in range(count):
        y = 0
        while phases and y + 3 <= s.rows:
            route(average, 3, phases, each, p, s, i, 1, y)
            y += 3
        while y < s.rows:
            route(average, 1, phases, each, p, s, i, 1, y)
            y += 1


cdef inline bint give(bint average, int n, int phases, const Pool *p, const Rows *rows, const real *grad_out, real *grad_x,
                      real factor) noexcept nogil:
    """The gradient of windows that do not overlap and are n rows high, straight from the input: each writes its cells. Returns
    whether there was a NaN, which it does not heed."""
    cdef Py_ssize_t i, j, t, y, k, left, W = p.w.size, OW = p.w.out
    cdef Rows r = rows[0]
    cdef real scale = p.scale
    cdef const real *cells_w = p.cells_w
    cdef vec v[9]
    cdef vec g, best
    cdef mask hit, nan = is_nan(splat(0))
    for i in range(r.count):
        for j from 0 <= j < (W + phases - 1) // phases by LANES:
            left = OW - j
            g = fetch(grad_out + j, left, 0)
            if average:
                g = g * splat(scale) if scale != 0 else g * (fetch(cells_w + j, left, 1) * splat(factor))
            for y in range(0 if average else n):
                if left >= LANES:
                    columns(FAST, 1, phases, &r, r.x + y * r.step_y + phases * j, phases * LANES, v + y * phases, &nan)
                else:
                    columns(FAST, 1, phases, &r, r.x + y * r.step_y + phases * j, phases * left, v + y * phases, &nan)
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


cdef void add_spans(const Pool *p, const Scratch *s, Py_ssize_t count) noexcept nogil:
    """`route` for averages without lines."""
    cdef Py_ssize_t i, o, k
    cdef real *target
    cdef Span w
    for i in range(count * s.rows):
        target = s.target[i]
        if s.given[i] != target:
            memcpy(target, s.given[i], p.w.size * sizeof(real))
        for o in range(p.w.out):
            w = span_w(p, o)
            for k in range(w.taps):
                target[w.begin + k * p.w.dilation] += s.grad[i // s.rows * p.outputs + o]


cdef inline void find_targets(const Pool *p, const Scratch *s, real *grad_p, Py_ssize_t od, Py_ssize_t oy, Py_ssize_t count,
                              Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Where rows of windows add what to. A row of the gradient of x is summed in a line, with room for whole vectors, until the
    last row of windows that reaches it; in place if windows overlap along d. What is not low ... high - 1 goes elsewhere."""
    cdef Py_ssize_t i, k, o, z, y, W = p.w.size, n = 0, room = row_room(p), apart = p.apart, mask_y = p.kept - 1
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
                kept = s.kept + (y & mask_y) * room if apart else row
                if z + y < low or z + y >= high:
                    row = kept = s.elsewhere
                last = o == last_h[y]
                s.target[n] = row if last else kept
                s.room[n] = W if last or not apart else room
                s.given[n] = s.zeros if first and o == first_h[y] else kept
                n += 1


cdef inline void backward_plane(int phases, const Work *w, const Pool *p, Scratch *s, Py_ssize_t plane, Py_ssize_t low,
                                Py_ssize_t high) noexcept nogil:
    """Rows low ... high - 1 of one plane of the gradient of x."""
    cdef Py_ssize_t od, oy, i, j, n, row, last, y, W = p.w.size, OW = p.w.out
    cdef Py_ssize_t first_z = low // p.h.size, last_z = (high - 1) // p.h.size
    cdef Py_ssize_t first_y = low - first_z * p.h.size if first_z == last_z else 0
    cdef Py_ssize_t last_y = high - 1 - last_z * p.h.size if first_z == last_z else p.h.size - 1
    cdef real *grad_p = w.out + plane * p.in_plane
    cdef real *grad
    cdef const real *grad_out
    cdef const real *x = w.x
    cdef bint average = w.kind == AVERAGE_BACKWARD, scattered = not average and p.scattered, nan
    cdef Rows r
    cdef vec v
    if average:
        x = w.grad_out      # any: nothing is read there
    for i in range(low, high if scattered or p.gaps else low):
        if scattered or p.first_d[i // p.h.size] == p.d.out or p.first_h[i % p.h.size] == p.h.out:
            memset(grad_p + i * W, 0, W * sizeof(real))
    last = end_covering(&p.h, last_y)
    for od in range(first_covering(&p.d, first_z), end_covering(&p.d, last_z)):
        oy = first_covering(&p.h, first_y)
        while oy < last:
            row = (plane * p.d.out + od) * p.h.out + oy
            grad_out = w.grad_out + row * OW
            if scattered:
                n = find_indices(phases, p, s, w.x, row, row + last - oy, NULL, s.index)
                for i in range(n * OW):
                    if low * W <= s.index[i] < high * W:
                        grad_p[s.index[i]] += grad_out[i]
                oy += n
                continue
            n = next_rows(p, x, row, row + min(p.together, last - oy), &r)
            y = p.span_h[oy].begin
            nan = True
            if phases > 1 and p.direct and p.disjoint and y >= low and y + (n - 1) * p.h.stride + (r.ny - 1) * p.h.dilation < high:
                grad = grad_p + y * W
                if average and r.ny == 2:
                    nan = give(True, 2, phases, p, &r, grad_out, grad, p.cells_h[oy] * p.cells_d[0])
                elif average and r.ny == 3:
                    nan = give(True, 3, phases, p, &r, grad_out, grad, p.cells_h[oy] * p.cells_d[0])
                elif r.ny == 2:
                    nan = give(False, 2, phases, p, &r, grad_out, grad, 1)
                elif r.ny == 3:
                    nan = give(False, 3, phases, p, &r, grad_out, grad, 1)
            if not nan:
                oy += n
                continue
            if average:
                set_rows(p, s, p.span_d[od], p.span_h[oy])
            else:
                n = search_windows(phases, p, s, w.x, row, row + n)
            for i in range(n):
                grad = s.grad + i * p.outputs
                for j from 0 <= j < OW by LANES:
                    v = fetch(grad_out + i * OW + j, OW - j, 0)
                    if average:
                        v = v * splat(p.scale) if p.scale != 0 else v * (load(p.cells_w + j) * splat(p.cells_d[od] * p.cells_h[oy + i]))
                    store(grad + j, v)
            find_targets(p, s, grad_p, od, oy, n, low, high)
            if average and p.phases == 0:
                add_spans(p, s, n)
            elif average and phases == 1 and p.w.window == 3:
                route_rows(True, phases, 3, p, s, n)
            elif average:
                route_rows(True, phases, 0, p, s, n)
            elif phases == 1 and p.w.window == 3:
                route_rows(False, phases, 3, p, s, n)
            else:
                route_rows(False, phases, 0, p, s, n)
            oy += n


cdef Py_ssize_t find(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """The first of n elements that is `value`, which is among them; or the first NaN."""
    cdef Py_ssize_t j = 0
    while not any(equal(fetch(x + j, n - j, 0), splat(value)) if value == value else is_nan(fetch(x + j, n - j, 0))):
        j += LANES
    while x[j] != value and (value == value or x[j] == x[j]):
        j += 1
    return j


cdef void whole_backward(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """The gradient of one window, the whole plane."""
    cdef Py_ssize_t i, j, n
    cdef const real *end = w.out + last * p.in_plane
    cdef real *grad_p
    cdef real share = 0
    cdef real best[LANES]
    for plane from plane <= plane < last by LANES:
        n = min(<Py_ssize_t>LANES, last - plane)
        if w.kind == MAX_BACKWARD:
            reduce_to(MAX_FORWARD, p, w.x + plane * p.in_plane, best, n)
        for i in range(n):
            grad_p = w.out + (plane + i) * p.in_plane
            if w.kind == AVERAGE_BACKWARD:
                share = w.grad_out[plane + i] * (p.scale if p.scale != 0 else p.cells_d[0] * p.cells_h[0] * p.cells_w[0])
            for j from 0 <= j < p.in_plane by LANES:
                put(grad_p + j, splat(share), p.in_plane - j, end)
            if w.kind == MAX_BACKWARD:
                grad_p[find(w.x + (plane + i) * p.in_plane, p.in_plane, best[i])] = w.grad_out[plane + i]


cdef bint scatter_planes(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t last) noexcept nogil:
    """Elements to their indices, which may come in any order: added (-1: nowhere) or put there. Returns whether an index lies
    outside the plane; nothing is written there."""
    cdef Py_ssize_t i, n = p.out_plane
    cdef uint64_t where, size = p.in_plane
    cdef bint outside = False, assign = w.kind == ASSIGN
    cdef const int64_t *indices
    cdef const real *grad_out
    cdef real *grad_p
    for plane in range(plane, last):
        grad_p = w.out + plane * p.in_plane
        indices = w.indices + plane * n
        grad_out = w.grad_out + plane * n
        memset(grad_p, 0, p.in_plane * sizeof(real))
        for i in range(n):
            where = <uint64_t>indices[i]
            if where < size:
                grad_p[where] = grad_out[i] if assign else grad_p[where] + grad_out[i]
            else:
                outside = outside or assign or indices[i] != -1
    return outside
