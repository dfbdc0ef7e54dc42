# Maxima and sums, separably: first over the rows of a window (vectors of columns) into a line, padded with the operation's
# identity and split by the stride along w, then over the line (vectors of outputs), where every tap is a contiguous run.

cdef enum:
    MAX = 0
    SUM = 1


cdef inline real identity(int op) noexcept nogil:
    return -INFINITY if op == MAX else 0


cdef inline vec combine(int op, vec a, vec b) noexcept nogil:
    if op == MAX:
        return vmax(a, b)
    return a + b


cdef inline vec fetch(int op, const real *x, Py_ssize_t n) noexcept nogil:
    if n >= LANES:
        return load(x)
    return load_first(x, <int>max(n, 0), splat(identity(op)))


cdef inline void put(real *out, vec v, Py_ssize_t n) noexcept nogil:
    if n >= LANES:
        store(out, v)
    elif n > 0:
        store_first(out, v, <int>n)


cdef inline vec column(int op, const real *x, Py_ssize_t n, Py_ssize_t nz, Py_ssize_t step_z, Py_ssize_t ny,
                       Py_ssize_t step_y) noexcept nogil:
    """LANES columns (n of them in the array) of nz * ny rows."""
    cdef Py_ssize_t y, z
    cdef vec acc = fetch(op, x, n)
    for y in range(1, ny):
        acc = combine(op, acc, fetch(op, x + y * step_y, n))
    for z in range(1, nz):
        for y in range(ny):
            acc = combine(op, acc, fetch(op, x + z * step_z + y * step_y, n))
    return acc


cdef inline void put_line(const Pool *p, real *line, Py_ssize_t j, vec a, vec b) noexcept nogil:
    """Positions j ... j + 2 * LANES, j even, of a line with stride 2 or none."""
    cdef Py_ssize_t odd_before
    if p.phases == 2:
        odd_before = p.w.before & 1
        store(line + odd_before * p.pitch + (j + p.w.before) // 2, even(a, b))
        store(line + (1 - odd_before) * p.pitch + (j + p.w.before + 1) // 2, odd(a, b))
    else:
        store(line + j, a)
        store(line + j + LANES, b)


cdef inline void fill_line(int op, const Pool *p, const real *x, Py_ssize_t nz, Py_ssize_t step_z, Py_ssize_t ny,
                           Py_ssize_t step_y, real *line, real *flat) noexcept nogil:
    """Combine nz * ny rows of the input into a line, whose padding holds the identity already.

    With stride 3 or more the rows are first combined in `flat`, then split one by one.
    """
    cdef Py_ssize_t j = 0, W = p.w.size, i, phase
    cdef vec a, b
    if p.phases <= 2:
        flat = line + p.w.before if p.phases == 1 else line
    while j + 2 * LANES <= W:
        a = column(op, x + j, LANES, nz, step_z, ny, step_y)
        b = column(op, x + j + LANES, LANES, nz, step_z, ny, step_y)
        put_line(p, flat, j, a, b)
        j += 2 * LANES
    if j < W:
        a = column(op, x + j, W - j, nz, step_z, ny, step_y)
        b = splat(identity(op))
        if j + LANES < W:
            b = column(op, x + j + LANES, W - j - LANES, nz, step_z, ny, step_y)
        put_line(p, flat, j, a, b)
    if p.phases > 2:
        phase = p.w.before % p.phases
        i = p.w.before // p.phases
        for j in range(W):
            line[phase * p.pitch + i] = flat[j]
            phase += 1
            if phase == p.phases:
                phase = 0
                i += 1


cdef inline void reduce_rows(int op, const Pool *p, const real *x, Py_ssize_t nz, Py_ssize_t step_z, Py_ssize_t ny,
                             Py_ssize_t step_y, real *line) noexcept nogil:
    """fill_line with the usual numbers of rows as constants."""
    cdef Py_ssize_t i
    cdef real *flat = line + p.line
    if nz * ny == 0:
        for i in range(line_elements(p)):
            line[i] = identity(op)
    elif nz == 1 and ny == 1:
        fill_line(op, p, x, 1, 0, 1, 0, line, flat)
    elif nz == 1 and ny == 2:
        fill_line(op, p, x, 1, 0, 2, step_y, line, flat)
    elif nz == 1 and ny == 3:
        fill_line(op, p, x, 1, 0, 3, step_y, line, flat)
    else:
        fill_line(op, p, x, nz, step_z, ny, step_y, line, flat)


cdef inline Py_ssize_t line_elements(const Pool *p) noexcept nogil:
    """Elements of a line and of what fill_line needs behind it."""
    return p.line + (p.w.size + 2 * LANES if p.phases != 1 else 0)


cdef inline vec finish(int op, const Pool *p, vec acc, Py_ssize_t ox, real factor) noexcept nogil:
    if op == MAX:
        return acc
    if p.scale != 0:
        return acc * splat(p.scale)
    return acc / (load(p.weight_w + ox) * splat(factor))


cdef inline void combine_taps(int op, const Pool *p, Py_ssize_t taps, const real *line, real *out,
                              real factor) noexcept nogil:
    """One row of outputs from a line."""
    cdef Py_ssize_t j = 0, k, OW = p.w.out
    cdef vec acc
    while j < OW:
        if j + LANES > OW and OW >= LANES:
            j = OW - LANES      # the last vector overlaps the one before it
        acc = load(line + j)
        for k in range(1, taps):
            acc = combine(op, acc, load(line + p.offset[k] + j))
        put(out + j, finish(op, p, acc, j, factor), OW - j)
        j += LANES


cdef inline void reduce_line(int op, const Pool *p, const real *line, real *out, real factor) noexcept nogil:
    cdef Py_ssize_t ox, k
    cdef real acc
    cdef Span s
    if p.phases == 0:
        for ox in range(p.w.out):
            s = p.span_w[ox]
            acc = identity(op)
            for k in range(s.taps):
                acc = scalar_max(acc, line[s.begin + k * p.w.dilation]) if op == MAX else \
                    acc + line[s.begin + k * p.w.dilation]
            out[ox] = acc if op == MAX else acc / (p.weight_w[ox] * factor)
    elif p.w.window == 2:
        combine_taps(op, p, 2, line, out, factor)
    elif p.w.window == 3:
        combine_taps(op, p, 3, line, out, factor)
    else:
        combine_taps(op, p, p.w.window, line, out, factor)


cdef inline void pair_rows(int op, const Pool *p, const real *x, real *out, real factor) noexcept nogil:
    """One row of outputs of 2x2 windows with stride 2 along w and no padding, straight from the rows x and x + W."""
    cdef Py_ssize_t j = 0, n, OW = p.w.out, step = p.h.dilation * p.w.size
    cdef vec a, b
    while j < OW:
        if j + LANES > OW and OW >= LANES:
            j = OW - LANES
        if j + LANES <= OW:
            a = combine(op, load(x + 2 * j), load(x + 2 * j + step))
            b = combine(op, load(x + 2 * j + LANES), load(x + 2 * j + LANES + step))
        else:
            n = 2 * (OW - j)
            a = combine(op, fetch(op, x + 2 * j, n), fetch(op, x + 2 * j + step, n))
            b = splat(identity(op))
            if n > LANES:
                b = combine(op, fetch(op, x + 2 * j + LANES, n - LANES), fetch(op, x + 2 * j + LANES + step, n - LANES))
        put(out + j, finish(op, p, combine(op, even(a, b), odd(a, b)), j, factor), OW - j)
        j += LANES


cdef inline void forward_rows(int op, const Pool *p, const real *x, real *out, Py_ssize_t first, Py_ssize_t last,
                              real *line) noexcept nogil:
    """Rows first ... last of the output, counted over all planes."""
    cdef Py_ssize_t row, oy = first % p.h.out, od = first // p.h.out % p.d.out, i
    cdef const real *x_p = x + first // (p.h.out * p.d.out) * p.in_plane
    cdef const real *corner
    cdef real *out_row = out + first * p.w.out
    cdef Span z = span(&p.d, od), y
    cdef real factor = 1
    cdef bint pairs = p.phases == 2 and p.w.window == 2 and p.w.dilation == 1 and p.w.before == 0 and \
        2 * p.w.out <= p.w.size
    for i in range(line_elements(p)):
        line[i] = identity(op)
    for row in range(first, last):
        y = span(&p.h, oy)
        if op == SUM and p.scale == 0:
            factor = row_cells(p, od, oy)
        corner = x_p + (z.begin * p.h.size + y.begin) * p.w.size
        if pairs and z.taps == 1 and y.taps == 2:
            pair_rows(op, p, corner, out_row, factor)
        else:
            reduce_rows(op, p, corner, z.taps, p.d.dilation * p.h.size * p.w.size, y.taps, p.h.dilation * p.w.size, line)
            reduce_line(op, p, line, out_row, factor)
            if z.taps * y.taps == 0:
                for i in range(line_elements(p)):
                    line[i] = identity(op)
        out_row += p.w.out
        oy += 1
        if oy == p.h.out:
            oy = 0
            od += 1
            if od == p.d.out:
                od = 0
                x_p += p.in_plane
            z = span(&p.d, od)


cdef void forward_part(int op, const Pool *p, const real *x, real *out, Py_ssize_t part, Py_ssize_t parts,
                       real *line) noexcept nogil:
    cdef Py_ssize_t rows = p.planes * p.d.out * p.h.out
    if op == MAX:
        forward_rows(MAX, p, x, out, rows * part // parts, rows * (part + 1) // parts, line)
    else:
        forward_rows(SUM, p, x, out, rows * part // parts, rows * (part + 1) // parts, line)
