# Gradients. A task owns a range of the gradient of x: a part of one plane (maximum), or rows (average).


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


cdef inline void add_to(Target *t, Py_ssize_t at, real g) noexcept nogil:
    if t.first <= at < t.last:
        t.grad_p[at] += g


cdef Target own(const Pool *p, real *grad_x, Py_ssize_t plane, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Rows of the plane (d and h together), split evenly."""
    cdef Target t
    cdef Py_ssize_t rows = p.d.size * p.h.size
    t.grad_p = grad_x + plane * p.in_plane
    t.first = rows * part // parts * p.w.size
    t.last = rows * (part + 1) // parts * p.w.size
    t.written = t.first
    return t


cdef void max_backward_part(const Pool *p, const real *grad_out, const real *x, real *grad_x, Py_ssize_t plane,
                            Py_ssize_t part, Py_ssize_t parts, real *memory) noexcept nogil:
    """In the forward pass the maximum of a window was read from one place; so now its gradient is added there."""
    cdef Target t = own(p, grad_x, plane, part, parts)
    cdef Ring ring
    cdef Py_ssize_t od, oy, ox, at, position, end
    cdef const real *x_p = x + plane * p.in_plane
    cdef const real *g = grad_out + plane * p.out_plane
    cdef Span z, y
    set_ring(p, &ring, memory)
    for od in range(p.d.out):
        z = span(&p.d, od)
        for oy in range(p.h.out):
            y = span(&p.h, oy)
            end = ((z.begin + (z.taps - 1) * p.d.dilation) * p.h.size + y.begin + (y.taps - 1) * p.h.dilation + 1) * p.w.size
            if z.taps * y.taps and (z.begin * p.h.size + y.begin) * p.w.size < t.last and end > t.first:
                reach(&t, end)
                if p.ring:
                    search_windows(p, &ring, x_p, od, oy)
                    at = row_start(p, od, oy)
                    for ox in range(p.w.out):
                        position = <Py_ssize_t>ring.positions[ox]
                        if position >= 0:
                            add_to(&t, at + p.jump[position], g[ox])
                        at += p.w.stride
                else:
                    for ox in range(p.w.out):
                        at = search_window(p, x_p, z, y, p.span_w[ox])
                        add_to(&t, at, g[ox])
            g += p.w.out
    reach(&t, t.last)


cdef void scatter_part(const Pool *p, const real *grad_out, const int64_t *indices, real *grad_x, Py_ssize_t plane,
                       Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """The same with the places given: indices that have been checked, -1 for none, in any order."""
    cdef Target t = own(p, grad_x, plane, part, parts)
    cdef Py_ssize_t i, at
    grad_out += plane * p.out_plane
    indices += plane * p.out_plane
    for i in range(p.out_plane):
        at = indices[i]
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


cdef void plan_average_backward(Pool *p) noexcept nogil:
    """Order the taps by phase and turn the cells along w into reciprocals; offsets now count outputs."""
    cdef Py_ssize_t k, r, n = 0
    for k in range(p.w.out):
        p.weight_w[k] = 1 / p.weight_w[k]
    if p.phases:
        for r in range(p.w.stride):
            p.phase_start[r] = n
            if p.w.dilation == 1:       # k = r, r + stride, ...
                k = r
                while k < p.w.window:
                    p.offset[n] = k // p.w.stride
                    n += 1
                    k += p.w.stride
            else:
                for k in range(p.w.window):
                    if k * p.w.dilation % p.w.stride == r:
                        p.offset[n] = k * p.w.dilation // p.w.stride
                        n += 1
        p.phase_start[p.w.stride] = n


cdef inline Py_ssize_t left_zeros(const Pool *p) noexcept nogil:
    return (p.w.window - 1) * p.w.dilation // p.w.stride + LANES if p.phases else 0


cdef inline Py_ssize_t spread_elements(const Pool *p) noexcept nogil:
    """A line of outputs, its zeros on both sides, and with stride 3 or more the phases of a row of the input."""
    cdef Py_ssize_t n = p.w.out
    if p.phases:
        n = left_zeros(p) + max(n, (p.w.before + p.w.size) // p.w.stride)
    return whole_lines(n + 4 * LANES) + whole_lines(p.line)


cdef inline Py_ssize_t average_elements(const Pool *p) noexcept nogil:
    """Scratch of one thread, in elements; a pointer and a weight for each row of outputs that covers a row."""
    return spread_elements(p) + whole_lines(3 * covering(&p.d) * covering(&p.h))


cdef inline vec taps_of_phase(const Pool *p, Py_ssize_t phase, const real *line) noexcept nogil:
    cdef Py_ssize_t k
    cdef vec acc = splat(0)
    for k in range(p.phase_start[phase], p.phase_start[phase + 1]):
        acc = acc + load(line - p.offset[k])
    return acc


cdef void spread_line(const Pool *p, const real *line, real *phases, real *grad_row) noexcept nogil:
    """One row of the gradient of x: in the forward pass output o read o*stride - before + k*dilation; so now position
    m*stride + phase - before receives from the outputs m - k*dilation // stride of the taps k of its phase."""
    cdef Py_ssize_t j = 0, i, k, r, W = p.w.size, before = p.w.before
    cdef vec a, b
    cdef Span s
    if p.phases == 1:
        while j < W:
            if j + LANES > W and W >= LANES:
                j = W - LANES
            put(grad_row + j, taps_of_phase(p, 0, line + before + j), W - j)
            j += LANES
    elif p.phases == 2:
        while j < W:
            a = taps_of_phase(p, before & 1, line + before // 2 + j // 2)
            b = taps_of_phase(p, 1 - (before & 1), line + (before + 1) // 2 + j // 2)
            put(grad_row + j, zip_low(a, b), W - j)
            put(grad_row + j + LANES, zip_high(a, b), W - j - LANES)
            j += 2 * LANES
    elif p.phases:
        for r in range(p.phases):
            j = 0
            while j * p.phases < W + before:
                store(phases + r * p.pitch + j, taps_of_phase(p, r, line + j))
                j += LANES
        r = before % p.phases
        i = before // p.phases
        for j in range(W):
            grad_row[j] = phases[r * p.pitch + i]
            r += 1
            if r == p.phases:
                r = 0
                i += 1
    else:
        memset(grad_row, 0, W * sizeof(real))
        for j in range(p.w.out):
            s = p.span_w[j]
            for k in range(s.taps):
                grad_row[s.begin + k * p.w.dilation] += line[j]


cdef void average_backward_part(const Pool *p, const real *grad_out, real *grad_x, Py_ssize_t part, Py_ssize_t parts,
                                real *memory) noexcept nogil:
    """Every output that covers a position gives it grad_out / cells: rows of outputs first, then along w."""
    cdef Py_ssize_t rows = p.planes * p.d.size * p.h.size, row, iy, iz, oy, od, n, i, j
    cdef Py_ssize_t od_first, od_end, oy_first, oy_end, last_first = -1, last_end = -1
    cdef Py_ssize_t most = covering(&p.d) * covering(&p.h)
    cdef const real *grad_out_p
    cdef real *line = memory + left_zeros(p)
    cdef real *phases = memory + spread_elements(p) - whole_lines(p.line)
    cdef const real **source = <const real **>(memory + spread_elements(p))
    cdef real *weight = <real *>(source + most)
    cdef vec acc
    memset(memory, 0, spread_elements(p) * sizeof(real))
    for row in range(rows * part // parts, rows * (part + 1) // parts):
        iy = row % p.h.size
        iz = row // p.h.size % p.d.size
        grad_out_p = grad_out + row // (p.h.size * p.d.size) * p.out_plane
        oy_first = first_covering(&p.h, iy)
        oy_end = end_covering(&p.h, iy)
        if iy and oy_first == last_first and oy_end == last_end and p.h.dilation == 1:
            memcpy(grad_x + row * p.w.size, grad_x + (row - 1) * p.w.size, p.w.size * sizeof(real))
            continue
        last_first = oy_first
        last_end = oy_end
        n = 0
        for od in range(first_covering(&p.d, iz), end_covering(&p.d, iz)):
            if covers(&p.d, od, iz):
                for oy in range(oy_first, oy_end):
                    if covers(&p.h, oy, iy):
                        source[n] = grad_out_p + (od * p.h.out + oy) * p.w.out
                        weight[n] = 1 / row_cells(p, od, oy)
                        n += 1
        j = 0
        while j < p.w.out:
            acc = splat(0)
            for i in range(n):
                acc = acc + splat(weight[i]) * fetch(SUM, source[i] + j, p.w.out - j)
            put(line + j, acc * load(p.weight_w + j), p.w.out - j)
            j += LANES
        spread_line(p, line, phases, grad_x + row * p.w.size)
