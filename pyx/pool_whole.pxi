# Windows that are whole planes: global pooling, and what comes down to it. A plane is one contiguous run.

cdef enum:
    RESTART = 64        # vectors that are summed one after the other; longer sums are sums of such sums


cdef inline vec reduce_run(int op, const real *x, Py_ssize_t n, mask *nan) noexcept nogil:
    """Combine n contiguous elements to LANES."""
    cdef Py_ssize_t j = 0, stop
    cdef vec v, part, acc = splat(identity(op))
    while j < n:
        stop = min(n - LANES + 1, j + RESTART * LANES) if op == SUM else n - LANES + 1
        part = splat(identity(op))
        while j < stop:
            v = load(x + j)
            if op == FAST:
                nan[0] = either(nan[0], is_nan(v))
            part = combine(op, part, v)
            j += LANES
        if j > n - LANES and j < n:
            v = load_first(x + j, <int>(n - j), splat(identity(op)))
            if op == FAST:
                nan[0] = either(nan[0], is_nan(v))
            part = combine(op, part, v)
            j = n
        acc = combine(op, acc, part)
    return acc


cdef inline bint reduce_planes(int op, const Pool *p, const real *x, real *out, Py_ssize_t n) noexcept nogil:
    """n <= LANES planes: their vectors are put together as the rows of a square, which is folded along its other side."""
    cdef vec v[LANES]
    cdef Py_ssize_t i, half = LANES // 2
    cdef mask nan = is_nan(splat(0))
    for i in range(LANES):
        v[i] = reduce_run(op, x + i * p.in_plane, p.in_plane, &nan) if i < n else splat(identity(op))
    while half:
        for i in range(half):
            v[i] = combine(op, zip_low(v[i], v[i + half]), zip_high(v[i], v[i + half]))
        half //= 2
    put(out, finish_sum(op, p, v[0]), n, NULL)
    return any(nan)


cdef inline vec finish_sum(int op, const Pool *p, vec sums) noexcept nogil:
    if op != SUM:
        return sums
    return sums * splat(p.scale) if p.scale != 0 else sums / splat(p.cells_w[0] * row_cells(p, 0, 0))


cdef inline void whole_planes(int op, const Pool *p, const real *x, real *out, Py_ssize_t n) noexcept nogil:
    if op == SUM:
        reduce_planes(SUM, p, x, out, n)
    elif reduce_planes(FAST, p, x, out, n):
        reduce_planes(MAX, p, x, out, n)


cdef inline Py_ssize_t find(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """The first of n elements that is `value`, which is among them; or the first NaN."""
    cdef Py_ssize_t j = 0
    cdef vec v
    cdef mask hit
    while True:
        v = fetch(x + j, n - j, 0)
        hit = equal(v, splat(value)) if value == value else is_nan(v)
        if any(hit):
            return j + first_lane(hit)
        j += LANES


cdef void whole_part(int op, const Pool *p, const real *x, real *out, int64_t *indices, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """One result for each plane and, unless that is NULL, its index."""
    cdef Py_ssize_t plane = p.planes * part // parts, last = p.planes * (part + 1) // parts, i
    while plane < last:
        whole_planes(op, p, x + plane * p.in_plane, out + plane, min(<Py_ssize_t>LANES, last - plane))
        plane += LANES
    if indices != NULL:
        for i in range(p.planes * part // parts, last):
            indices[i] = find(x + i * p.in_plane, p.in_plane, out[i])


cdef void whole_max_part(const Pool *p, const real *grad_out, const real *x, real *grad_x, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """The gradient of a maximum over whole planes."""
    cdef Py_ssize_t plane = p.planes * part // parts, last = p.planes * (part + 1) // parts, i, j
    cdef const real *end = grad_x + last * p.in_plane
    cdef real best[LANES]
    while plane < last:
        whole_planes(FAST, p, x + plane * p.in_plane, best, min(<Py_ssize_t>LANES, last - plane))
        for i in range(plane, min(plane + LANES, last)):
            j = 0
            while j < p.in_plane:
                put(grad_x + i * p.in_plane + j, splat(0), p.in_plane - j, end)
                j += LANES
            grad_x[i * p.in_plane + find(x + i * p.in_plane, p.in_plane, best[i - plane])] = grad_out[i]
        plane += LANES


cdef Py_ssize_t search_run(const real *x, Py_ssize_t n) noexcept nogil:
    """The first place of n contiguous elements that has their maximum; the first NaN, if there is one."""
    cdef Py_ssize_t i
    cdef mask nan = is_nan(splat(0))
    cdef real lanes[LANES]
    store(lanes, reduce_run(FAST, x, n, &nan))
    for i in range(1, LANES):
        lanes[0] = max(lanes[0], lanes[i])
    return find(x, n, NAN if any(nan) else lanes[0])


cdef void whole_average_part(const Pool *p, const real *grad_out, real *grad_x, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """The gradient of an average over whole planes: every cell gets the same."""
    cdef Py_ssize_t plane, j, last = p.planes * (part + 1) // parts
    cdef const real *end = grad_x + last * p.in_plane
    cdef real share = p.cells_w[0] / row_cells(p, 0, 0)
    for plane in range(p.planes * part // parts, last):
        j = 0
        while j < p.in_plane:
            put(grad_x + plane * p.in_plane + j, splat(grad_out[plane] * share), p.in_plane - j, end)
            j += LANES
