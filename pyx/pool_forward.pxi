# Maxima and sums, separably: the rows of a window are combined to a line (vectors of columns), then the taps along the line
# (vectors of outputs). A block of lines is filled before the first is read, so that no load waits for a store.

cdef enum:
    BLOCK_BYTES = 1 << 14       # of lines that are filled at a time: they stay in L1
    MANY_TAPS = 12              # contiguous taps from which doubling pays


cdef inline vec finish(int op, const Pool *p, vec acc, Py_ssize_t ox, real factor) noexcept nogil:
    if op != SUM:
        return acc
    if p.scale != 0:
        return acc * splat(p.scale)
    return acc / (load(p.cells_w + ox) * splat(factor))


cdef inline void combine_taps(int op, int taps, const Pool *p, Py_ssize_t count, const real *line, real *out, real factor,
                              const real *end) noexcept nogil:
    """`taps` is their number if it is not 0."""
    cdef Py_ssize_t i, j, k, OW = p.w.out, pitch = p.line, n = p.w.window
    cdef const Py_ssize_t *offset = p.offset
    cdef Py_ssize_t second = offset[1] if taps > 1 else 0, third = offset[2] if taps > 2 else 0
    cdef vec acc
    for i in range(count):
        j = 0
        while j < OW:
            acc = load(line + j)
            if taps:
                acc = combine(op, acc, load(line + second + j))
                if taps == 3:
                    acc = combine(op, acc, load(line + third + j))
            else:
                for k in range(1, n):
                    acc = combine(op, acc, load(line + offset[k] + j))
            put(out + j, finish(op, p, acc, j, factor), OW - j, end)
            j += LANES
        line += pitch
        out += OW


cdef inline void double_taps(int op, const Pool *p, real *line, real *sums, real *out, real factor, const real *end) noexcept nogil:
    """The same for many taps without dilation: runs of 1, 2, 4, ... taps are combined in place, those that the binary digits
    of the number of taps name are put together in `sums`. An element passes through at most 2 log2(taps) + stride sums."""
    cdef Py_ssize_t r, j, done, run, taps, n = p.w.out
    cdef real *phase
    for r in range(p.phases):
        taps = (p.w.window - r + p.phases - 1) // p.phases
        phase = line + r * p.pitch
        done = 0
        run = 1
        while taps > 0:
            if taps & run:
                j = 0
                while j < n:
                    if r == 0 and done == 0:
                        store(sums + j, load(phase + j))
                    else:
                        store(sums + j, combine(op, load(sums + j), load(phase + done + j)))
                    j += LANES
                done += run
                taps -= run
            if taps > 0:
                j = 0
                while j < n + done + taps - run:
                    store(phase + j, combine(op, load(phase + j), load(phase + j + run)))
                    j += LANES
                run *= 2
    j = 0
    while j < n:
        put(out + j, finish(op, p, load(sums + j), j, factor), n - j, end)
        j += LANES


cdef inline void finish_block(int op, const Pool *p, Py_ssize_t count, real *lines, real *flat, real *out, real factor,
                              const real *end) noexcept nogil:
    """Rows of outputs from lines."""
    cdef Py_ssize_t ox, k
    cdef real acc
    cdef Span s
    if p.phases == 0:
        for ox in range(p.w.out):
            s = p.span_w[ox]
            acc = identity(op)
            for k in range(s.taps):
                acc = acc + flat[s.begin + k * p.w.dilation] if op == SUM else \
                    scalar_max(acc, flat[s.begin + k * p.w.dilation])
            out[ox] = acc if op != SUM else acc * p.scale if p.scale != 0 else acc / (p.cells_w[ox] * factor)
    elif op != MAX and p.w.window == 2:
        combine_taps(op, 2, p, count, lines, out, factor, end)
    elif op != MAX and p.w.window == 3:
        combine_taps(op, 3, p, count, lines, out, factor, end)
    elif p.w.window >= MANY_TAPS * p.phases and p.w.dilation == 1:
        for k in range(count):
            double_taps(op, p, lines + k * p.line, flat, out + k * p.w.out, factor, end)
        for k in range(count * p.line):
            lines[k] = identity(op)
    else:
        combine_taps(op, 0, p, count, lines, out, factor, end)


cdef bint pair_rows(int op, const Pool *p, const Rows *r, real *out, real factor, const real *end) noexcept nogil:
    if op == FAST:
        return pairs(FAST, p, r, out, factor, end)
    return pairs(SUM, p, r, out, factor, end)


cdef inline bint pairs(int op, const Pool *p, const Rows *rows, real *out, real factor, const real *end) noexcept nogil:
    """Outputs of 2x2 windows with stride 2 along w and no padding, straight from the input."""
    cdef Py_ssize_t i, j, left, OW = p.w.out
    cdef Rows r = rows[0]
    cdef vec v[2]
    cdef mask nan = is_nan(splat(0))
    for i in range(r.count):
        j = 0
        while j + LANES <= OW:
            v[0] = column(op, 2, &r, r.x + 2 * j, LANES, &nan)
            v[1] = column(op, 2, &r, r.x + 2 * j + LANES, LANES, &nan)
            split(2, v)
            store(out + j, finish(op, p, combine(op, v[0], v[1]), j, factor))
            j += LANES
        if j < OW:
            left = 2 * (OW - j)
            v[0] = column(op, 2, &r, r.x + 2 * j, left, &nan)
            v[1] = column(op, 2, &r, r.x + 2 * j + LANES, left - LANES, &nan)
            split(2, v)
            put(out + j, finish(op, p, combine(op, v[0], v[1]), j, factor), OW - j, end)
        r.x += r.advance
        out += OW
    return any(nan)


cdef inline Py_ssize_t block_lines(const Pool *p) noexcept nogil:
    return max(1, min(16, BLOCK_BYTES // (p.line * <Py_ssize_t>sizeof(real)))) if p.phases else 1


cdef inline Py_ssize_t forward_elements(const Pool *p) noexcept nogil:
    """Scratch of one thread: lines, and what fill or double_taps need."""
    return block_lines(p) * p.line + p.flat + whole_lines(p.w.out + LANES)


cdef void finish_lines(int op, const Pool *p, Py_ssize_t count, real *lines, real *flat, real *out, real factor,
                       const real *end) noexcept nogil:
    if op == FAST:
        finish_block(FAST, p, count, lines, flat, out, factor, end)
    elif op == MAX:
        finish_block(MAX, p, count, lines, flat, out, factor, end)
    else:
        finish_block(SUM, p, count, lines, flat, out, factor, end)


cdef void forward_part(int op, const Pool *p, const real *x, real *out, Py_ssize_t part, Py_ssize_t parts,
                       real *memory) noexcept nogil:
    """Rows of the output, counted over all planes. SUM, or FAST, with MAX for rows that have a NaN."""
    cdef Py_ssize_t rows = p.planes * p.d.out * p.h.out, block = block_lines(p), i, n
    cdef Py_ssize_t row = rows * part // parts, last = rows * (part + 1) // parts
    cdef real *flat = memory + block * p.line
    cdef const real *end = out + last * p.w.out
    cdef Rows r
    cdef real factor = 1
    cdef int held
    cdef bint paired = p.phases == 2 and p.w.window == 2 and p.w.dilation == 1 and p.w.before == 0 and 2 * p.w.out <= p.w.size
    for i in range(block * p.line):
        memory[i] = identity(op)
    while row < last:
        if op == SUM and p.scale == 0:
            factor = row_cells(p, row // p.h.out % p.d.out, row % p.h.out)
        n = next_rows(p, x, row, min(last, row + block), &r)
        if not (paired and r.nz == 1 and r.ny == 2 and not pair_rows(op, p, &r, out + row * p.w.out, factor, end)):
            held = op
            if fill(op, p, &r, memory, flat):
                fill(MAX, p, &r, memory, flat)
                held = MAX
            finish_lines(held, p, n, memory, flat, out + row * p.w.out, factor, end)
        row += n
