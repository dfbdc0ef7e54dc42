# Gradients of x. A task owns rows of it, or a part of one plane; its order of summation does not depend on the tasks.


# What a row of the gradient of x is the sum of: of a line of outputs (AVERAGE), or of the gradients of the columns where
# their code is that of the row (CODES).
cdef enum:
    AVERAGE
    CODES


cdef struct Spread:
    Py_ssize_t n
    const real **source     # AVERAGE: one line of outputs; CODES: n lines of codes, each followed by one of gradients
    real *weight            # CODES: what they are compared with
    real *flat


cdef inline vec spread_at(int kind, const Pool *p, const Spread *s, Py_ssize_t phase, Py_ssize_t m) noexcept nogil:
    """LANES neighbours of one phase."""
    cdef Py_ssize_t i
    cdef const real *at
    cdef vec acc = splat(0)
    if kind == AVERAGE:
        for i in range(p.phase_start[phase], p.phase_start[phase + 1]):
            acc = acc + load(s.source[0] + m - p.back[i])
    else:
        for i in range(s.n):
            at = s.source[i] + phase * p.pitch + m
            acc = acc + pick(equal(load(at), splat(s.weight[i])), load(at + p.line), splat(0))
    return acc


cdef inline void spread_phases(int kind, int phases, const Pool *p, const Spread *s, real *grad_row, const real *end) noexcept nogil:
    """In the forward pass output o read position o*stride + k*dilation; so now place m of a phase receives from the outputs
    m - k*dilation // stride of the taps k of that phase."""
    cdef Py_ssize_t j = 0, t, i, W = p.w.size
    cdef vec v[4]
    if phases:
        while j < W:
            for t in range(phases):
                v[t] = spread_at(kind, p, s, p.phase[t], (p.w.before + t) // phases + j // phases)
            join(phases, v)
            for t in range(phases):
                put(grad_row + j + t * LANES, v[t], W - j - t * LANES, end)
            j += phases * LANES
        return
    for t in range(p.phases):
        j = 0
        while j * p.phases < p.w.before + W:
            store(s.flat + t * p.pitch + j, spread_at(kind, p, s, t, j))
            j += LANES
    t = 0
    i = 0
    for j in range(W):
        grad_row[j] = s.flat[p.place[t] + i]
        t += 1
        if t == p.phases:
            t = 0
            i += 1


cdef inline void spread_row(int kind, const Pool *p, const Spread *s, real *grad_row, const real *end) noexcept nogil:
    cdef Py_ssize_t o, k
    if p.phases == 1:
        spread_phases(kind, 1, p, s, grad_row, end)
    elif p.phases == 2:
        spread_phases(kind, 2, p, s, grad_row, end)
    elif p.phases == 3:
        spread_phases(kind, 3, p, s, grad_row, end)
    elif p.phases:
        spread_phases(kind, 0, p, s, grad_row, end)
    else:
        memset(grad_row, 0, p.w.size * sizeof(real))
        for o in range(p.w.out):
            for k in range(p.span_w[o].taps):
                grad_row[p.span_w[o].begin + k * p.w.dilation] += s.source[0][o]


cdef inline Py_ssize_t zeros_before(const Pool *p) noexcept nogil:
    """Before the outputs of a line of outputs."""
    return (p.w.window - 1) * p.w.dilation // p.w.stride + LANES if p.phases else 0


cdef inline Py_ssize_t average_elements(const Pool *p) noexcept nogil:
    """Scratch of one thread: a pointer and a weight for each row of outputs over a row, a line of outputs, spread_row's."""
    return whole_lines(3 * p.most) + whole_lines(zeros_before(p) + p.w.out + p.pitch + 2 * LANES) + p.flat


cdef void average_backward_part(const Pool *p, const real *grad_out, real *grad_x, Py_ssize_t part, Py_ssize_t parts,
                                real *memory) noexcept nogil:
    """Every output that covers a position gives it grad_out / cells: rows of outputs first, then along w."""
    cdef Py_ssize_t rows = p.planes * p.d.size * p.h.size, row = rows * part // parts, last = rows * (part + 1) // parts
    cdef Py_ssize_t iy = row % p.h.size, iz = row // p.h.size % p.d.size, od, oy, i, j, n, known = -1
    cdef const real *grad_out_p = grad_out + row // (p.h.size * p.d.size) * p.out_plane
    cdef const real *end = grad_x + last * p.w.size
    cdef const real **source = <const real **>memory
    cdef real *weight = memory + 2 * p.most
    cdef real *line = memory + whole_lines(3 * p.most)
    cdef Spread spread
    cdef vec acc
    memset(line, 0, (average_elements(p) - whole_lines(3 * p.most)) * sizeof(real))
    spread.flat = memory + average_elements(p) - p.flat
    line += zeros_before(p)
    spread.source = <const real **>&line
    grad_x += row * p.w.size
    while row < last:
        if known >= 0 and p.h.dilation == 1 and p.cover_h[2 * iy] == p.cover_h[2 * known] and \
                p.cover_h[2 * iy + 1] == p.cover_h[2 * known + 1]:
            memcpy(grad_x, grad_x - p.w.size, p.w.size * sizeof(real))
        else:
            n = 0
            for od in range(first_covering(&p.d, iz), end_covering(&p.d, iz)):
                for oy in range(p.cover_h[2 * iy], p.cover_h[2 * iy + 1]):
                    if covers(&p.d, od, iz) and covers(&p.h, oy, iy):
                        source[n] = grad_out_p + (od * p.h.out + oy) * p.w.out
                        weight[n] = 1 / row_cells(p, od, oy)
                        n += 1
            j = 0
            while j < p.w.out:
                acc = splat(0)
                for i in range(n):
                    acc = acc + splat(weight[i]) * fetch(source[i] + j, p.w.out - j, 0)
                put(line + j, acc * load(p.cells_w + j), p.w.out - j, NULL)
                j += LANES
            spread_row(AVERAGE, p, &spread, grad_x, end)
        known = iy
        row += 1
        grad_x += p.w.size
        iy += 1
        if iy == p.h.size:
            iy = 0
            known = -1
            iz += 1
            if iz == p.d.size:
                iz = 0
                grad_out_p += p.out_plane


cdef void invert_cells(Pool *p) noexcept nogil:
    cdef Py_ssize_t o
    for o in range(p.w.out):
        p.cells_w[o] = 1 / p.cells_w[o]


cdef struct Target:
    real *grad_p                # gradient of one plane of x
    Py_ssize_t first            # the elements of the plane that the task owns
    Py_ssize_t last
    Py_ssize_t written          # those before are zero or more


cdef inline void reach(Target *t, Py_ssize_t end) noexcept nogil:
    """Zero the owned elements up to `end`."""
    end = min(end, t.last)
    if end > t.written:
        memset(t.grad_p + t.written, 0, (end - t.written) * sizeof(real))
        t.written = end


cdef void scatter_part(const Pool *p, const real *grad_out, const int64_t *indices, const real *x, real *grad_x,
                       Py_ssize_t plane, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """A part of one plane of the gradient of x, element by element: each goes to its index, -1 for none. The indices have
    been checked and may come in any order; without them (NULL) each window of x is searched."""
    cdef Target t
    cdef Py_ssize_t rows = p.d.size * p.h.size, i, at
    t.grad_p = grad_x + plane * p.in_plane
    t.first = rows * part // parts * p.w.size
    t.last = rows * (part + 1) // parts * p.w.size
    t.written = t.first
    grad_out += plane * p.out_plane
    for i in range(p.out_plane):
        at = indices[plane * p.out_plane + i] if indices != NULL else \
            search_window(p, x + plane * p.in_plane, span(&p.d, i // p.w.out // p.h.out), span(&p.h, i // p.w.out % p.h.out),
                          p.span_w[i % p.w.out])
        if t.first <= at < t.last:
            if at >= t.written:
                reach(&t, (at // p.w.size + 1) * p.w.size)
            t.grad_p[at] += grad_out[i]
    reach(&t, t.last)


cdef bint outside(const int64_t *indices, Py_ssize_t n, Py_ssize_t plane, Py_ssize_t lowest) noexcept nogil:
    """Whether an index lies outside lowest ... plane - 1."""
    cdef Py_ssize_t i
    cdef bint found = False
    for i in range(n):
        found = found | (indices[i] < lowest) | (indices[i] >= plane)
    return found
