# Small windows, forward and backward. What lies under a vector of windows stays in registers on its way down a strip: of each row
# under a window its maxima (sums) along w, and for gradients their taps and what the row receives. A row that no more windows reach
# is collected along w from the lanes of the same vector: the next begins so many windows earlier that its columns, too, have all of
# them in one. Forward with a stride along w the rows are combined before the taps, which leaves fewer vectors to split.

cdef enum:
    BLOCK = 512         # elements that a strip of windows that do not overlap has


cdef inline vec elements(int op, bint inner, const real *x, mask inside, bint every, vec *seen) noexcept nogil:
    cdef vec v = load(x) if inner else load_set_or(x, inside, splat(identity(op)))
    if op == MAX:
        seen[0] = seen[0] + v if inner or every else add_where(inside, seen[0], v)
    return v


cdef inline vec along(int kind, bint inner, bint slides, int KW, int SW, const real *x, const mask *x_set, vec *v, vec more, vec *tap,
                      vec *seen) noexcept nogil:
    """Combine the taps along w, of which v are the first SW and x where they lie, unless `more` has what follows."""
    cdef int op = SUM if kind == AVERAGE_FORWARD else MAX
    cdef int q, t
    cdef vec u, best = v[0]
    tap[0] = splat(0)
    for q in range((KW - 1) // SW + 1):
        if q and not slides:
            for t in range(SW):
                v[t] = elements(op, inner, x + q * SW + t * LANES, x_set[q * SW + t], kind < INDICES, seen + t)
            split(SW, v)
        for t in range(SW):
            if 0 < q * SW + t < KW:
                u = slide_by(q, v[t], more) if slides else v[t]
                if kind == MAX_BACKWARD:
                    tap[0] = pick(greater(u, best), splat(<real>(q * SW + t)), tap[0])
                best = combine(op, best, u)
    return best


cdef inline vec received(bint average, int k, vec tap, vec onto, vec sums) noexcept nogil:
    return onto + sums if average else add_where(equal(tap, splat(<real>k)), onto, sums)


cdef inline vec collected(bint average, int KW, int SW, int reach, int centre, int t, vec tap, vec sums) noexcept nogil:
    """Phase t of a row: from the lane itself what lies in the centre of its window, the rest from the lanes around."""
    cdef int q
    cdef vec a, b
    a = b = splat(0)
    for q in range(reach, centre, -1):
        if q * SW + t < KW:
            a = slide_back(splat(0), received(average, q * SW + t, tap, a, sums))
    for q in range(centre):
        b = slide(received(average, q * SW + t, tap, b, sums), splat(0))
    a = a + b if 0 < centre < reach else b if centre else a
    return received(average, centre * SW + t, tap, a, sums) if centre * SW + t < KW else a


cdef inline vec walk(int kind, bint inner, int KH, int SH, int KW, int SW, int reach, int centre, int windows, bint slides, bint two_loads,
                     const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t low, Py_ssize_t high, Py_ssize_t o,
                     Py_ssize_t ahead) noexcept nogil:
    """Rows low ... high - 1 of a plane of the result, from a vector of windows from o on; `inner` if all lanes are inside. Returns
    a sum of all elements that were read, of maxima only."""
    cdef int op = SUM if kind == AVERAGE_FORWARD or kind == AVERAGE_BACKWARD else MAX
    cdef int k, t, i
    cdef bint average = op == SUM, forward = kind < INDICES
    cdef int n = SW if forward and (reach == 0 or slides) else 1     # vectors that are kept of a row
    cdef Py_ssize_t W = p.w.size, H = p.h.size, OH = p.h.out, OW = p.w.out
    cdef Py_ssize_t y, oy, begin, end, before = p.h.before, column = o * SW - p.w.before
    # Rows of windows: the first that reaches `low`, the last that must have passed.
    cdef Py_ssize_t first_row = low if forward else max(0, (low + p.h.before - KH + SH) // SH)
    cdef Py_ssize_t last_row = high if forward else (high - 1 + p.h.before) // SH + 1
    cdef const real *place = w.x + plane * p.in_plane + opaque(column)
    cdef const real *grad_out = w.grad_out + plane * OH * OW + opaque(o)
    cdef real *out = w.out + plane * OH * OW + opaque(o)
    cdef const real *cells_h = p.cells_h
    cdef mask x_set[6]
    cdef mask out_set[3]
    cdef mask o_set
    cdef mask more_set = lanes_within(-column - LANES, W - column - LANES)
    cdef mask hit[5]
    cdef vec v[3]
    cdef vec best[9]
    cdef vec seen[3]
    cdef vec tap[5]
    cdef vec sums[5]
    cdef vec most, g, more, cells, inverse
    cdef real factor = -1, scale = p.scale
    cells = inverse = seen[0] = seen[1] = seen[2] = splat(0)
    for i in range((reach + 1) * SW):
        x_set[i] = lanes_within(-column - i // SW * SW - i % SW * LANES, W - column - i // SW * SW - i % SW * LANES)
    o_set = lanes_within(-o, min(OW - o, windows))
    column += centre * SW
    if not forward:
        out = w.out + plane * p.in_plane + opaque(column)
    begin, end = 0 if o <= 0 else reach - centre, windows if o + windows >= OW else windows - centre
    for t in range(SW):
        out_set[t] = lanes_within(max(begin * SW, -column) - t * LANES, min(end * SW, W - column) - t * LANES)
    for oy in range(first_row - (KH - 1) // SH, last_row):
        for k in range(KH - SH):
            for t in range(n):
                best[k * n + t] = best[(k + SH) * n + t]
            tap[k] = tap[k + SH]
            sums[k] = sums[k + SH]
        for k in range(KH - SH, KH):
            for t in range(n):
                best[k * n + t] = splat(identity(op))
            tap[k] = sums[k] = more = splat(0)
            y = oy * SH - before + k
            if kind == AVERAGE_BACKWARD or <size_t>y >= <size_t>H:
                continue
            for t in range(SW):
                prefetch(place + y * W + t * LANES + ahead)
                v[t] = elements(op, inner, place + y * W + t * LANES, x_set[t], forward, seen + t)
            if two_loads:
                more = elements(op, inner, place + y * W + LANES, more_set, forward, seen + 1)
            for t in range(n if n > 1 else 0):
                best[k * n + t] = v[t]
            if n == 1:
                split(SW, v)
                best[k] = along(kind, inner, slides, KW, SW, place + y * W, x_set, v, more, &tap[k], seen)
        if forward and first_row <= oy:
            prefetch(out + oy * OW + ahead // SH // SW)
            for t in range(n):
                v[t] = best[t]
                for k in range(1, KH):
                    v[t] = combine(op, v[t], best[k * n + t])
            split(n, v)
            most = along(kind, inner, slides, KW, SW, place, x_set, v, splat(0), &g, seen) if n > 1 else v[0]
            if average and scale != 0:
                most = most * splat(scale)
            elif average:
                if factor != cells_h[oy]:
                    factor = cells_h[oy]
                    cells = load(p.cells_w + o) * splat(factor)
                    inverse = splat(1) / cells
                most = quotient(most, cells, inverse)
            if inner:
                store(out + oy * OW, most)
            else:
                store_set(out + oy * OW, most, o_set)
        elif first_row <= oy < OH:
            prefetch(grad_out + oy * OW + ahead // SH // SW)
            g = load(grad_out + oy * OW) if inner else load_set_or(grad_out + oy * OW, o_set, splat(0))
            if average:
                v[0] = load_set_or(p.cells_w + o, o_set, splat(0)) * splat(cells_h[oy])
                g = g * (splat(scale) if scale != 0 else v[0])
            most = best[0]
            for k in range(1, KH):
                hit[k] = greater(best[k], most)
                most = larger(most, best[k])
            for k in range(KH - 1, -1, -1):
                sums[k] = sums[k] + g if average or k == 0 else add_where(hit[k], sums[k], g)
                g = g if average or k == 0 else pick(hit[k], splat(0), g)
        for k in range(0 if forward else SH):
            y = oy * SH - before + k
            if low <= y < high:
                for t in range(SW):
                    v[t] = collected(average, KW, SW, reach, centre, t, tap[k], sums[k])
                    prefetch(out + y * W + t * LANES + ahead)
                join(SW, v)
                for t in range(SW):
                    if inner and not HAS_MASKS:
                        store(out + y * W + t * LANES, v[t])
                    else:
                        store_set(out + y * W + t * LANES, v[t], out_set[t])
    return seen[0] + seen[1] + seen[2]


cdef inline bint rows_of(int kind, int KH, int SH, int KW, int SW, const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t low,
                         Py_ssize_t high) noexcept nogil:
    """Rows low ... high - 1 of a plane of the result. Returns whether there was a NaN, or, in the backward pass, -inf."""
    cdef bint forward = kind < INDICES
    cdef int reach = (KW - 1) // SW     # windows after its own that a position still lies in
    # Where in a vector the column is collected of which its first window is the first, or one in the middle: without masks lanes of no
    # use come last, and the next vector overwrites them.
    cdef int centre = reach // 2 if HAS_MASKS else reach
    # Taps come from the lanes of the first vector, and of a second if it is loaded; otherwise its last windows are left to the next.
    cdef bint slides = CAN_SLIDE or forward and SW > 1 and LANES > 2, two_loads = slides and SW == 1 and (not forward or KW > 3)
    cdef int windows = LANES - reach if slides and not two_loads else LANES
    cdef Py_ssize_t W = p.w.size, OW = p.w.out, y, end, o, column, done, block = high - low
    cdef Py_ssize_t ahead = (high - low) * W * (SH if forward else 1)
    cdef vec seen = splat(0)
    if KH == SH:    # nothing is kept from row to row: more along them, for the prefetchers of the processor
        block = max(1, BLOCK // (W * SH)) * (1 if forward else SH)
        ahead = AHEAD // <Py_ssize_t>sizeof(real)
    for y from low <= y < high by block:
        end = min(high, y + block)
        o = 0 if forward else -(max(0, centre * SW - p.w.before + SW - 1) // SW)
        done = 0
        while done < (OW if forward else W):
            column = o * SW - p.w.before
            if not HAS_MASKS and column >= 0 and o >= 0 and o + LANES <= OW and column + (reach + LANES) * SW <= W:
                seen = seen + walk(kind, True, KH, SH, KW, SW, reach, centre, windows, slides, two_loads, w, p, plane, y, end, o, ahead)
            else:
                seen = seen + walk(kind, False, KH, SH, KW, SW, reach, centre, windows, slides, two_loads, w, p, plane, y, end, o, ahead)
            o += windows
            done = o if forward else column + (centre + windows - (centre if o < OW else 0)) * SW
            o -= 0 if forward else reach
    return any(is_nan(seen)) if forward else not_all(greater(seen, splat(-INFINITY)))


cdef inline bint small_of(int kind, const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    if p.small == 2222: return rows_of(kind, 2, 2, 2, 2, w, p, plane, low, high)
    if p.small == 2233: return rows_of(kind, 2, 2, 3, 3, w, p, plane, low, high)
    if p.small == 3333: return rows_of(kind, 3, 3, 3, 3, w, p, plane, low, high)
    # With fewer lanes too few of them would be of use.
    if p.small == 3232 and (kind < INDICES or LANES >= 4): return rows_of(kind, 3, 2, 3, 2, w, p, plane, low, high)
    if p.small == 3131 and (kind < INDICES or LANES >= 4): return rows_of(kind, 3, 1, 3, 1, w, p, plane, low, high)
    if p.small == 5151 and (kind < INDICES or LANES >= 16): return rows_of(kind, 5, 1, 5, 1, w, p, plane, low, high)
    return True


cdef bint small_windows(const Work *w, const Pool *p, Py_ssize_t plane, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Returns whether something is left to do: the windows are not of this kind, or there is a NaN or -inf."""
    if w.kind == MAX_FORWARD: return small_of(MAX_FORWARD, w, p, plane, low, high)
    if w.kind == AVERAGE_FORWARD: return small_of(AVERAGE_FORWARD, w, p, plane, low, high)
    if w.kind == MAX_BACKWARD: return small_of(MAX_BACKWARD, w, p, plane, low, high)
    return small_of(AVERAGE_BACKWARD, w, p, plane, low, high)
