# Gradients of x. A task owns rows of it, or a part of one plane; its order of summation does not depend on the tasks.


# What a row of the gradient of x is the sum of: of a line of outputs (AVERAGE), or of the gradients of the columns where
# their code is that of the row (CODES).
cdef enum:
    AVERAGE
    CODES


cdef struct Spread:
    Py_ssize_t iz           # which rows of a plane: `count` from iy on
    Py_ssize_t iy
    Py_ssize_t count
    const real *kept        # AVERAGE: their lines of outputs; CODES: lines of codes, each followed by one of gradients
    real *flat


ctypedef void (*spread_function)(const Pool *, const Spread *, real *, const real *) noexcept nogil


cdef inline vec spread_average(const Pool *p, const real *line, Py_ssize_t phase, Py_ssize_t m) noexcept nogil:
    """LANES neighbours of one phase."""
    cdef Py_ssize_t i
    cdef vec acc = splat(0)
    for i in range(p.phase_start[phase], p.phase_start[phase + 1]):
        acc = acc + load(line + m - p.back[i])
    return acc


cdef inline vec where_code(const real *at, Py_ssize_t line, vec code) noexcept nogil:
    return pick(equal(load(at), code), load(at + line), splat(0))


cdef inline void spread_codes(int n, const Pool *p, Py_ssize_t iz, Py_ssize_t iy, const real *kept, const Py_ssize_t *place,
                              vec *v) noexcept nogil:
    """LANES neighbours of n phases."""
    cdef Py_ssize_t a, b, line = p.line
    cdef const real *at
    cdef vec code
    v[0] = splat(0)
    if n > 1:
        v[1] = splat(0)
    if n > 2:
        v[2] = splat(0)
    for a in range(p.cover_d.start[iz], p.cover_d.start[iz + 1]):
        for b in range(p.cover_h.start[iy], p.cover_h.start[iy + 1]):
            at = kept + p.cover_d.offset[a] + p.cover_h.offset[b]
            code = splat(p.cover_d.code[a] + p.cover_h.code[b])
            v[0] = v[0] + where_code(at + place[0], line, code)
            if n > 1:
                v[1] = v[1] + where_code(at + place[1], line, code)
            if n > 2:
                v[2] = v[2] + where_code(at + place[2], line, code)


cdef inline void spread_rows(int kind, int phases, const Pool *plan, const Spread *s, real *grad_row, const real *end) noexcept nogil:
    """In the forward pass output o read position o*stride + k*dilation; so now place m of a phase receives from the outputs
    m - k*dilation // stride of the taps k of that phase."""
    cdef Pool p = plan[0]       # a copy that no store can change
    cdef Py_ssize_t iz = s.iz, iy, j, t, left, length = outputs_line(plan) if kind == AVERAGE else 0
    cdef Py_ssize_t place[3]
    cdef Py_ssize_t first[3]
    cdef const real *kept = s.kept
    cdef real *out
    cdef vec v[3]
    for t in range(phases):
        place[t] = p.place[t]
        first[t] = (p.w.before + t) // phases
    for iy in range(s.iy, s.iy + s.count):
        left = p.w.size
        out = grad_row
        j = 0
        while phases and left > 0:
            if kind == CODES:
                spread_codes(phases, &p, iz, iy, kept + j, place, v)
            else:
                v[0] = spread_average(&p, kept, p.phase[0], first[0] + j)
                if phases > 1:
                    v[1] = spread_average(&p, kept, p.phase[1], first[1] + j)
                if phases > 2:
                    v[2] = spread_average(&p, kept, p.phase[2], first[2] + j)
            join(phases, v)
            put(out, v[0], left, end)
            if phases > 1:
                put(out + LANES, v[1], left - LANES, end)
            if phases > 2:
                put(out + 2 * LANES, v[2], left - 2 * LANES, end)
            out += phases * LANES
            left -= phases * LANES
            j += LANES
        if phases == 0:
            for t in range(p.phases):
                j = 0
                while j * p.phases < p.w.before + left:
                    if kind == CODES:
                        place[0] = t * p.pitch + j
                        spread_codes(1, &p, iz, iy, kept, place, v)
                    else:
                        v[0] = spread_average(&p, kept, t, j)
                    store(s.flat + t * p.pitch + j, v[0])
                    j += LANES
            join_flat(plan, s.flat, grad_row)
        grad_row += p.w.size
        kept += length


cdef void average_1(const Pool *p, const Spread *s, real *row, const real *end) noexcept nogil: spread_rows(AVERAGE, 1, p, s, row, end)
cdef void average_2(const Pool *p, const Spread *s, real *row, const real *end) noexcept nogil: spread_rows(AVERAGE, 2, p, s, row, end)
cdef void average_3(const Pool *p, const Spread *s, real *row, const real *end) noexcept nogil: spread_rows(AVERAGE, 3, p, s, row, end)
cdef void average_n(const Pool *p, const Spread *s, real *row, const real *end) noexcept nogil: spread_rows(AVERAGE, 0, p, s, row, end)
cdef void codes_1(const Pool *p, const Spread *s, real *row, const real *end) noexcept nogil: spread_rows(CODES, 1, p, s, row, end)
cdef void codes_2(const Pool *p, const Spread *s, real *row, const real *end) noexcept nogil: spread_rows(CODES, 2, p, s, row, end)
cdef void codes_3(const Pool *p, const Spread *s, real *row, const real *end) noexcept nogil: spread_rows(CODES, 3, p, s, row, end)
cdef void codes_n(const Pool *p, const Spread *s, real *row, const real *end) noexcept nogil: spread_rows(CODES, 0, p, s, row, end)


cdef spread_function choose_spread(int kind, const Pool *p) noexcept nogil:
    """Called through a pointer, the function has all registers to itself."""
    if p.phases == 0:
        return spread_spans
    if p.phases == 1:
        return average_1 if kind == AVERAGE else codes_1
    if p.phases == 2:
        return average_2 if kind == AVERAGE else codes_2
    if p.phases == 3:
        return average_3 if kind == AVERAGE else codes_3
    return average_n if kind == AVERAGE else codes_n


cdef void spread_spans(const Pool *p, const Spread *s, real *grad_row, const real *end) noexcept nogil:
    """AVERAGE without lines."""
    cdef Py_ssize_t i, o, k
    for i in range(s.count):
        memset(grad_row, 0, p.w.size * sizeof(real))
        for o in range(p.w.out):
            for k in range(p.span_w[o].taps):
                grad_row[p.span_w[o].begin + k * p.w.dilation] += s.kept[i * outputs_line(p) + o]
        grad_row += p.w.size


cdef void join_flat(const Pool *p, const real *flat, real *grad_row) noexcept nogil:
    cdef Py_ssize_t j, t = 0, m = 0
    for j in range(p.w.size):
        grad_row[j] = flat[p.place[t] + m]
        t += 1
        if t == p.phases:
            t = 0
            m += 1


cdef inline Py_ssize_t zeros_before(const Pool *p) noexcept nogil:
    """Before the outputs of a line of outputs."""
    return (p.w.window - 1) * p.w.dilation // p.w.stride + LANES if p.phases else 0


cdef inline Py_ssize_t outputs_line(const Pool *p) noexcept nogil:
    return whole_lines(zeros_before(p) + p.w.out + p.pitch + 2 * LANES)


cdef inline Py_ssize_t average_elements(const Pool *p) noexcept nogil:
    return p.flat + p.run * outputs_line(p)


cdef void weigh_rows(const Pool *plan, const Spread *s, const real *grad_out_p, real *line) noexcept nogil:
    """Rows of outputs to lines: the sum of grad_out / cells."""
    cdef Pool p = plan[0]
    cdef Py_ssize_t iz = s.iz, iy, a, b, j, end, OW = p.w.out, length = outputs_line(plan)
    cdef vec acc
    for iy in range(s.iy, s.iy + s.count):
        end = p.cover_h.start[iy + 1]
        j = 0
        while j < OW:
            acc = splat(0)
            for a in range(p.cover_d.start[iz], p.cover_d.start[iz + 1]):
                for b in range(p.cover_h.start[iy], end):
                    acc = acc + splat(p.cover_d.share[a] * p.cover_h.share[b]) * \
                        fetch(grad_out_p + p.cover_d.offset[a] + p.cover_h.offset[b] + j, OW - j, 0)
            put(line + j, acc * load(p.cells_w + j), OW - j, NULL)
            j += LANES
        line += length


cdef void average_backward_part(const Pool *p, spread_function spread, const real *grad_out, real *grad_x, Py_ssize_t part,
                                Py_ssize_t parts, real *memory) noexcept nogil:
    """Every output that covers a position gives it grad_out / cells: rows of outputs first, then along w."""
    cdef Py_ssize_t rows = p.planes * p.d.size * p.h.size, row = rows * part // parts, last = rows * (part + 1) // parts
    cdef const real *end = grad_x + last * p.w.size
    cdef real *line = memory + p.flat + zeros_before(p)
    cdef Spread s
    memset(memory, 0, average_elements(p) * sizeof(real))
    s.flat = memory
    s.kept = line
    while row < last:
        s.iy = row % p.h.size
        s.iz = row // p.h.size % p.d.size
        s.count = min(min(last - row, p.h.size - s.iy), p.run)
        weigh_rows(p, &s, grad_out + row // p.h.size // p.d.size * p.out_plane, line)
        spread(p, &s, grad_x + row * p.w.size, end)
        row += s.count


cdef void invert_cells(Pool *p) noexcept nogil:
    cdef Py_ssize_t o
    for o in range(p.w.out):
        p.cells_w[o] = 1 / p.cells_w[o]


cdef inline void zero(real *to, Py_ssize_t n) noexcept nogil:
    if n > 64 * LANES:
        memset(to, 0, n * sizeof(real))
        return
    while n > 0:
        put(to, splat(0), n, NULL)
        to += LANES
        n -= LANES


cdef enum:
    SCATTERED = 1 << 10     # outputs that are handled together: their cells are zeroed just before


cdef bint scatter_part(const Pool *p, const real *grad_out, const int64_t *indices, const real *x, real *grad_x,
                       Py_ssize_t plane, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """A part of one plane of the gradient of x, element by element: each goes to its index, -1 for none; without indices
    (NULL) each window of x is searched. Returns whether an index lies outside the plane; nothing is written there."""
    cdef Py_ssize_t rows = p.d.size * p.h.size, first = rows * part // parts * p.w.size if part else 0, written = first
    cdef Py_ssize_t last = rows * (part + 1) // parts * p.w.size if part + 1 < parts else p.in_plane, start = 0, i, n
    cdef int64_t low, high, at
    cdef int64_t found[SCATTERED]
    grad_x += plane * p.in_plane
    grad_out += plane * p.out_plane
    if indices != NULL:
        indices += plane * p.out_plane
    while start < p.out_plane:
        n = min(<Py_ssize_t>SCATTERED, p.out_plane - start)
        if x != NULL:
            for i in range(n):
                found[i] = search_window(p, x + plane * p.in_plane, span(&p.d, (start + i) // p.w.out // p.h.out),
                                         p.span_h[(start + i) // p.w.out % p.h.out], p.span_w[(start + i) % p.w.out])
            indices = found
        low = high = indices[0]
        for i in range(n):
            low = min(low, indices[i])
            high = max(high, indices[i])
        if low < -1 or high >= p.in_plane:
            return True
        if high >= written and written < last:
            i = last if p.out_plane <= SCATTERED else min(last, (high // p.w.size + 1) * p.w.size)
            zero(grad_x + written, i - written)
            written = i
        if low >= first and high < last:
            for i in range(n):
                grad_x[indices[i]] += grad_out[i]
        else:
            for i in range(n):
                at = indices[i]
                if first <= at < last:
                    grad_x[at] += grad_out[i]
        grad_out += n
        indices += n
        start += n
    if last > written:
        zero(grad_x + written, last - written)
    return False
