# Gradients of x: each row of windows in turn gives to the rows under it. A part owns rows of the gradient of x and looks at all
# rows of windows that reach them; an element is summed in the order of its windows, whatever the parts.


cdef inline void spread(bint average, int phases, int each, const Pool *p, const Scratch *s, Py_ssize_t o) noexcept nogil:
    """What a row of windows gives to each column, s.sums, and in which row its maximum lies, s.places; both in phases, if they
    are constant, else column by column. In the forward pass output o read column o*stride - before + k*dilation for its tap k;
    so now column m*stride + t receives from output m - back of each tap of phase t (`each` for each phase if that is not 0);
    of maxima only where that is the tap. All maxima of a row of windows that lie in one column lie in one row: the first that
    has the column's maximum."""
    cdef Py_ssize_t k, t, j, m, low, W = p.w.size, pitch = p.pitch, S = phases if phases else p.phases
    cdef const Py_ssize_t *back = p.back
    cdef const real *which = p.tap
    cdef const real *grad = s.grad + o * p.outputs
    cdef const real *taps = s.tap + o * p.outputs
    cdef const real *rows = s.row + o * p.outputs
    cdef real *sums = s.sums if phases else s.flat
    cdef real *places = s.places if phases else s.values
    cdef Py_ssize_t known[15]    # what no store can change
    cdef real known_taps[15]
    cdef vec sum, row
    cdef mask hit
    cdef Span w
    for k in range(each * phases):
        known[k] = -back[k]
        known_taps[k] = which[k]
    for t in range(S):
        low = t * each if each else p.phase_start[t]
        for m from 0 <= m < (W + S - 1) // S by LANES:
            sum = row = splat(0)
            for k in range(low, low + each if each else p.phase_start[t + 1]):
                if average:
                    sum = sum + at(grad + m, known[k] if each else -back[k])
                else:
                    hit = equal(at(taps + m, known[k] if each else -back[k]), splat(known_taps[k] if each else which[k]))
                    sum = sum + pick(hit, at(grad + m, known[k] if each else -back[k]), splat(0))
                    row = pick(hit, at(rows + m, known[k] if each else -back[k]), row)
            store(sums + t * pitch + m, sum)
            if not average:
                store(places + t * pitch + m, row)
    if phases:
        return
    t = m = 0
    for j in range(W):
        s.sums[j] = sums[t * pitch + m] if S else 0
        if not average:
            s.places[j] = places[t * pitch + m]
        t += 1
        if t == S:
            t = 0
            m += 1
    for k in range(0 if S else p.w.out):    # averages without lines
        w = span_w(p, k)
        for j in range(w.taps):
            s.sums[w.begin + j * p.w.dilation] += grad[k]


cdef inline void add_rows(bint average, int phases, const Pool *p, const Scratch *s, real *grad_p, Py_ssize_t od, Py_ssize_t oy,
                          Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Add what `spread` has left to the rows under a row of windows that are among low ... high - 1. A row of the gradient of x
    is summed in a line, with room for whole vectors, until the last row of windows that reaches it; in place if windows overlap
    along d. The first that reaches it adds to zeros."""
    cdef Py_ssize_t i, k, t, j, z, y, W = p.w.size, step = (phases if phases else 1) * LANES, pitch = p.pitch
    cdef Py_ssize_t full = W // step * step, room
    cdef Span sz = p.span_d[od], sy = p.span_h[oy]
    cdef const real *sums = s.sums
    cdef const real *places = s.places
    cdef const real *given
    cdef real *target
    cdef real start
    cdef bint last
    cdef vec v[3]
    for i in range(sz.taps):
        for k in range(sy.taps):
            z = sz.begin + i * p.d.dilation
            y = sy.begin + k * p.h.dilation
            if z * p.h.size + y < low or z * p.h.size + y >= high:
                continue
            start = <real>(((sz.first + i) * p.d.dilation * p.h.size + (sy.first + k) * p.h.dilation) * W)
            target = s.kept + (y & (p.kept - 1)) * row_room(p) if p.apart else grad_p + (z * p.h.size + y) * W
            given = s.zeros if oy == p.first_h[y] and od == p.first_d[z] else target
            last = oy == p.last_h[y]
            if last:
                target = grad_p + (z * p.h.size + y) * W
            for j from 0 <= j < W by step:
                for t in range(step // LANES):
                    v[t] = load(sums + t * pitch + j // (step // LANES))
                    if not average:
                        v[t] = pick(equal(load(places + t * pitch + j // (step // LANES)), splat(start)), v[t], splat(0))
                join(phases, v)
                for t in range(step // LANES):
                    if j < full:
                        store(target + j + t * LANES, load(given + j + t * LANES) + v[t])
                    elif p.apart and not last:
                        store(target + j + t * LANES, load(given + j + t * LANES) + v[t])
                    else:
                        room = W - j - t * LANES
                        put(target + j + t * LANES, fetch(given + j + t * LANES, LANES if p.apart else room, 0) + v[t], room, NULL)


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


cdef inline void route(bint average, int phases, int each, const Pool *p, const Scratch *s, real *grad_p, Py_ssize_t od, Py_ssize_t oy,
                       Py_ssize_t count, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        spread(average, phases, each, p, s, i)
        add_rows(average, phases, p, s, grad_p, od, oy + i, low, high)


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
            if not average:
                n = search_windows(phases, p, s, w.x, row, row + n)
            for i in range(n):
                grad = s.grad + i * p.outputs
                for j from 0 <= j < OW by LANES:
                    v = fetch(grad_out + i * OW + j, OW - j, 0)
                    if average:
                        v = v * splat(p.scale) if p.scale != 0 else v * (load(p.cells_w + j) * splat(p.cells_d[od] * p.cells_h[oy + i]))
                    store(grad + j, v)
            if average and phases == 1 and p.w.window == 3:
                route(True, phases, 3, p, s, grad_p, od, oy, n, low, high)
            elif average:
                route(True, phases, 0, p, s, grad_p, od, oy, n, low, high)
            elif phases == 1 and p.w.window == 3:
                route(False, phases, 3, p, s, grad_p, od, oy, n, low, high)
            elif phases == 1 and p.w.window == 5:
                route(False, phases, 5, p, s, grad_p, od, oy, n, low, high)
            else:
                route(False, phases, 0, p, s, grad_p, od, oy, n, low, high)
            oy += n


cdef inline Py_ssize_t find(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """The first of n elements that is `value`, which is among them; or the first NaN."""
    cdef Py_ssize_t j
    cdef vec v
    cdef mask hit = is_nan(splat(0))
    for j from 0 <= j < n by LANES:
        v = fetch(x + j, n - j, 0)
        hit = equal(v, splat(value)) if value == value else is_nan(v)
        if any(hit):
            break
    return j + first_lane(hit)


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
