# Gradients of x for small windows. What lies under a vector of windows stays in registers on its way down a strip: of each row
# under a window the maxima along w and their taps, and what the row receives. A row that no more windows reach is collected along
# w from the lanes of the same vector: the next begins so many windows earlier that its columns, too, have all of them in one.


cdef inline vec given(bint average, int k, vec tap, vec sums) noexcept nogil:
    return sums if average else pick(equal(tap, splat(<real>k)), sums, splat(0))


cdef inline vec collected(bint average, int KW, int SW, int t, vec tap, vec sums) noexcept nogil:
    """Phase t of a row: from the lane itself what lies in the centre of its window, the rest from the lanes around."""
    cdef int q, reach = (KW - 1) // SW, centre = reach // 2
    cdef vec a, b
    a = b = splat(0)
    for q in range(reach, centre, -1):
        if q * SW + t < KW:
            a = slide_back(splat(0), given(average, q * SW + t, tap, sums) if q == reach else a + given(average, q * SW + t, tap, sums))
    for q in range(centre):
        b = slide(given(average, t, tap, sums) if q == 0 else b + given(average, q * SW + t, tap, sums), splat(0))
    a = a + b if centre else a
    return a + given(average, centre * SW + t, tap, sums) if centre * SW + t < KW else a


cdef inline bint gradient(bint average, int KH, int SH, int KW, int SW, const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t low,
                          Py_ssize_t high) noexcept nogil:
    """Rows low ... high - 1 of a plane. Returns whether it gave up, at a NaN or -inf."""
    cdef int k, q, t, i, reach = (KW - 1) // SW, centre = reach // 2
    cdef Py_ssize_t W = p.w.size, H = p.h.size, OH = p.h.out, OW = p.w.out, y, oy, column, begin, end, ahead = (high - low) * W
    # Rows of windows: the first that reaches `low`, the last that must have passed. The first output of a vector.
    cdef Py_ssize_t first = max(0, (low + p.h.before - KH + SH) // SH), last = (high - 1 + p.h.before) // SH + 1
    cdef Py_ssize_t o = -(max(0, centre * SW - p.w.before + SW - 1) // SW)
    cdef const real *x = w.x + plane * p.in_plane
    cdef const real *grad_out = w.grad_out + plane * OH * OW
    cdef const real *place
    cdef real *out
    cdef mask x_set[6]
    cdef mask out_set[3]
    cdef mask grad_set
    cdef vec v[3]
    cdef vec best[5]
    cdef vec tap[5]
    cdef vec sums[5]
    cdef vec most, g
    cdef mask hit[5]
    y = max(0, first * SH - p.h.before)
    if not average and not ordinary(x + y * W, (min(H, last * SH - p.h.before + KH - SH) - y) * W):
        return True
    column = end = -LANES * SW
    while column + end * SW < W:
        column = o * SW - p.w.before
        place = x + opaque(column)
        for i in range((reach + 1) * SW):
            x_set[i] = lanes_within(-column - i // SW * SW - i % SW * LANES, W - column - i // SW * SW - i % SW * LANES)
        grad_set = lanes_within(-o, OW - o)
        column += centre * SW
        out = w.out + plane * p.in_plane + opaque(column)
        begin, end = 0 if o <= 0 else reach - centre, LANES if o + LANES >= OW else LANES - centre
        for t in range(SW):
            out_set[t] = lanes_within(max(begin * SW, -column) - t * LANES, min(end * SW, W - column) - t * LANES)
        for oy in range(first - (KH - 1) // SH, last):
            for k in range(KH - SH):
                best[k] = best[k + SH]
                tap[k] = tap[k + SH]
                sums[k] = sums[k + SH]
            for k in range(KH - SH, KH):
                best[k] = splat(-INFINITY)
                tap[k] = sums[k] = splat(0)
                y = oy * SH - p.h.before + k
                if average or <size_t>y >= <size_t>H:
                    continue
                for t in range(SW):
                    prefetch(place + y * W + t * LANES + ahead)
                for q in range(reach + 1):
                    for t in range(SW):
                        v[t] = load_set_or(place + y * W + q * SW + t * LANES, x_set[q * SW + t], splat(-INFINITY))
                    split(SW, v)
                    for t in range(SW):
                        if 0 < q * SW + t < KW:
                            tap[k] = pick(greater(v[t], best[k]), splat(<real>(q * SW + t)), tap[k])
                        if q * SW + t < KW:
                            best[k] = larger(best[k], v[t]) if q + t else v[t]
            if first <= oy < OH:
                prefetch(grad_out + (oy + (high - low) // SH) * OW + o)
                g = load_set_or(grad_out + oy * OW + o, grad_set, splat(0))
                if average:
                    v[0] = load_set_or(p.cells_w + o, grad_set, splat(0)) * splat(p.cells_h[oy] * p.cells_d[0])
                    g = g * (splat(p.scale) if p.scale != 0 else v[0])
                most = best[0]
                for k in range(1, KH):
                    hit[k] = greater(best[k], most)
                    most = larger(most, best[k])
                for k in range(KH - 1, -1, -1):
                    sums[k] = sums[k] + (g if average or k == 0 else pick(hit[k], g, splat(0)))
                    g = g if average or k == 0 else pick(hit[k], splat(0), g)
            for k in range(SH):
                y = oy * SH - p.h.before + k
                if low <= y < high:
                    for t in range(SW):
                        v[t] = collected(average, KW, SW, t, tap[k], sums[k])
                        if reach:       # otherwise it only costs time
                            prefetch(out + y * W + t * LANES + ahead)
                    join(SW, v)
                    for t in range(SW):
                        store_set(out + y * W + t * LANES, v[t], out_set[t])
        o += LANES - reach
    return False


cdef bint small_windows(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Returns whether something is left to do: the windows are not of this kind, or there is a NaN or -inf."""
    cdef bint average = w.kind == AVERAGE_BACKWARD
    if p.small == 2222:
        return gradient(True, 2, 2, 2, 2, w, p, plane, low, high) if average else gradient(False, 2, 2, 2, 2, w, p, plane, low, high)
    if p.small == 2233:
        return gradient(True, 2, 2, 3, 3, w, p, plane, low, high) if average else gradient(False, 2, 2, 3, 3, w, p, plane, low, high)
    if p.small == 3333:
        return gradient(True, 3, 3, 3, 3, w, p, plane, low, high) if average else gradient(False, 3, 3, 3, 3, w, p, plane, low, high)
    if p.small == 3232 and LANES >= 8:      # with fewer lanes too few of them would be of use
        return gradient(True, 3, 2, 3, 2, w, p, plane, low, high) if average else gradient(False, 3, 2, 3, 2, w, p, plane, low, high)
    if p.small == 3131 and LANES >= 8:
        return gradient(True, 3, 1, 3, 1, w, p, plane, low, high) if average else gradient(False, 3, 1, 3, 1, w, p, plane, low, high)
    if p.small == 5151 and LANES >= 16:
        return gradient(True, 5, 1, 5, 1, w, p, plane, low, high) if average else gradient(False, 5, 1, 5, 1, w, p, plane, low, high)
    return True
