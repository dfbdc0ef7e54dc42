# The gradient of the maximum, and where it lies: of equal values the first, and the first NaN before all of them.
#
# The search is separable. A row of windows gives for each column the maximum over its rows and the code of the row that has
# it (vertical search), then for each window the first of the columns that have the maximum, by code and then by column
# (horizontal search). The code of a row is its distance in the plane from the window's start, as a `real`, so that vectors
# select it like a value; columns in the padding have the code infinity. The gradient goes the same way back: from a window to
# its column, from there to its row.

cdef enum:
    MAX_CODE = 1 << 24          # reals below are exact
    MAX_KEPT_BYTES = 1 << 22
    RUN = 8                     # rows of windows, or of the gradient of x, that are worked on together


cdef struct Search:
    Py_ssize_t planes_kept      # rows of windows that are kept: od modulo planes_kept, oy modulo rows_kept
    Py_ssize_t rows_kept
    Py_ssize_t shift            # zeros before the outputs of a line of outputs
    Py_ssize_t outputs          # elements of a line of outputs
    real *values                # [RUN] lines: maxima of the columns
    real *best                  # [RUN] lines of outputs: maxima
    real *best_code             # [RUN] lines of outputs: the code of their row
    real *column                # [RUN] lines of outputs: the tap along w that has the maximum, -1 if there are no taps
    real *grad                  # line of outputs: gradient of the maxima
    real *flat                  # for fill_codes and spread_row
    real *kept                  # [planes_kept][rows_kept][2] lines: codes of the columns, and their gradients
    Py_ssize_t *tag             # [planes_kept * rows_kept] which row of windows is kept
    const real **source         # [p.most] for spread_row
    real *weight


cdef bint plan_search(const Pool *p, Search *s, bint backward) noexcept nogil:
    """Whether the search by lines is possible: lines, codes that are exact, not too much to keep."""
    cdef Py_ssize_t reach = ((p.d.window - 1) * p.d.dilation * p.h.size + (p.h.window - 1) * p.h.dilation) * p.w.size
    if p.phases == 0 or reach + p.w.window * p.w.dilation > MAX_CODE:
        return False
    s.shift = zeros_before(p) if backward else 0
    s.outputs = whole_lines(s.shift + p.pitch + p.w.out + 2 * LANES)
    s.planes_kept = covering(&p.d) if backward else 1
    s.rows_kept = RUN
    if backward:
        s.rows_kept = min(p.h.out, covering(&p.h) + ceil_div(RUN, p.h.stride) + 1) if s.planes_kept == 1 else p.h.out
    return 2. * s.planes_kept * s.rows_kept * p.line * sizeof(real) <= MAX_KEPT_BYTES


cdef Py_ssize_t search_elements(const Pool *p, const Search *s) noexcept nogil:
    cdef Py_ssize_t kept = s.planes_kept * s.rows_kept
    return RUN * p.line + (3 * RUN + 1) * s.outputs + p.flat + 2 * kept * p.line + whole_lines(2 * kept + 3 * p.most)


cdef void set_search(const Pool *p, Search *s, real *memory) noexcept nogil:
    cdef Py_ssize_t i, kept = s.planes_kept * s.rows_kept
    s.values = memory
    s.best = s.values + RUN * p.line
    s.best_code = s.best + RUN * s.outputs
    s.column = s.best_code + RUN * s.outputs
    s.grad = s.column + RUN * s.outputs
    s.flat = s.grad + s.outputs
    s.kept = s.flat + p.flat
    s.tag = <Py_ssize_t *>(s.kept + 2 * kept * p.line)
    s.source = <const real **>(s.tag + kept)
    s.weight = <real *>(s.source + p.most)
    for i in range(RUN * p.line):
        s.values[i] = -INFINITY
    for i in range(RUN * s.outputs):
        s.column[i] = -1
    for i in range(s.outputs):
        s.grad[i] = 0
    for i in range(2 * kept * p.line):
        s.kept[i] = INFINITY
    for i in range(kept):
        s.tag[i] = -1


cdef inline mask search_column(bint exact, int n, const Rows *r, const real *x, Py_ssize_t left, vec *value, vec *code) noexcept nogil:
    """Vertical search of LANES columns in n rows, if that is not 0. Without `exact` NaNs are only noticed."""
    cdef Py_ssize_t z, y
    cdef vec v, best = fetch(x, left, -INFINITY), found = splat(r.code)
    cdef mask better, nan = is_nan(best)
    prefetch(x + AHEAD // <Py_ssize_t>sizeof(real))
    if n > 1:
        prefetch(x + r.step_y + AHEAD // <Py_ssize_t>sizeof(real))
    for z in range(1 if n else r.nz):
        for y in range(z == 0, n if n else r.ny):
            v = fetch(x + z * r.step_z + y * r.step_y, left, -INFINITY)
            better = greater(v, best)
            if exact:
                better = either(better, both(is_nan(v), equal(best, best)))
                best = pick(better, v, best)
            else:
                nan = either(nan, is_nan(v))
                best = larger(best, v)
            found = pick(better, splat(r.code + <real>z * r.code_z + <real>y * r.code_y), found)
    value[0] = best
    code[0] = found if left >= LANES else first_of(found, <int>max(left, 0), splat(INFINITY))
    return nan


cdef inline bint fill_codes(bint exact, int n, int s, const Pool *p, const Search *search, const Rows *r,
                            real *codes) noexcept nogil:
    """Vertical search: lines of values and codes. Returns whether there was a NaN."""
    cdef Py_ssize_t i, j, t, W = p.w.size
    cdef const real *x = r.x
    cdef real *values = search.values
    cdef real *flat = search.flat
    cdef real *flat_codes = flat + whole_lines(W + 2 * LANES)
    cdef vec v[4]
    cdef vec c[4]
    cdef mask nan = is_nan(splat(0))
    for i in range(r.count):
        j = 0
        while j < W:
            for t in range(max(s, 1)):
                if j + max(s, 1) * LANES <= W:
                    nan = either(nan, search_column(exact, n, r, x + j + t * LANES, LANES, &v[t], &c[t]))
                else:
                    nan = either(nan, search_column(exact, n, r, x + j + t * LANES, W - j - t * LANES, &v[t], &c[t]))
            if s:
                split(s, v)
                split(s, c)
                for t in range(s):
                    store(values + p.place[t] + j // s, v[t])
                    store(codes + p.place[t] + j // s, c[t])
            else:
                store(flat + j, v[0])
                store(flat_codes + j, c[0])
            j += max(s, 1) * LANES
        if s == 0:
            split_flat(p, flat, values)
            split_flat(p, flat_codes, codes)
        x += r.advance
        values += p.line
        codes += 2 * p.line
    return any(nan)


cdef inline bint fill_codes_of(int n, const Pool *p, const Search *s, const Rows *r, real *codes) noexcept nogil:
    if p.phases == 1:
        return fill_codes(False, n, 1, p, s, r, codes)
    if p.phases == 2:
        return fill_codes(False, n, 2, p, s, r, codes)
    if p.phases == 3:
        return fill_codes(False, n, 3, p, s, r, codes)
    return fill_codes(False, n, 0, p, s, r, codes)


cdef bint vertical_search(const Pool *p, const Search *s, const Rows *r, real *codes) noexcept nogil:
    """Returns whether there was a NaN; the lines are right in any case."""
    cdef bint nan
    if r.nz == 1 and r.ny == 2:
        nan = fill_codes_of(2, p, s, r, codes)
    elif r.nz == 1 and r.ny == 3:
        nan = fill_codes_of(3, p, s, r, codes)
    else:
        nan = fill_codes_of(0, p, s, r, codes)
    if nan:
        fill_codes(True, 0, 0, p, s, r, codes)
    return nan


cdef inline void search_lines(bint exact, int taps, const Pool *p, const Search *s, Py_ssize_t count, const real *codes) noexcept nogil:
    """Horizontal search: s.best, s.best_code and s.column of `count` rows of windows."""
    cdef Py_ssize_t i, j, k, OW = p.w.out
    cdef const real *values = s.values
    cdef vec v, best, found, column, code
    cdef mask hit
    for i in range(count):
        j = 0
        while j < OW:
            best = load(values + j)
            for k in range(1, taps if taps else p.w.window):
                v = load(values + p.offset[k] + j)
                best = vmax(best, v) if exact else larger(best, v)
            found = splat(INFINITY)
            column = splat(-1)
            for k in range(taps if taps else p.w.window):
                v = load(values + p.offset[k] + j)
                hit = either(equal(v, best), is_nan(v)) if exact else equal(v, best)
                code = load(codes + p.offset[k] + j)
                hit = both(hit, greater(found, code))
                found = pick(hit, code, found)
                column = pick(hit, splat(<real>k), column)
            store(s.best + i * s.outputs + j, best)
            store(s.best_code + i * s.outputs + j, found)
            put(s.column + i * s.outputs + s.shift + j, column, OW - j, NULL)
            j += LANES
        values += p.line
        codes += 2 * p.line


cdef void search_windows(const Pool *p, const Search *s, const Rows *r, real *codes) noexcept nogil:
    """Search rows of windows."""
    cdef Py_ssize_t i
    if r.nz * r.ny == 0:
        for i in range(p.w.out):
            s.best[i] = -INFINITY
            s.column[s.shift + i] = -1
    elif vertical_search(p, s, r, codes):
        search_lines(True, 0, p, s, r.count, codes)
    elif p.w.window == 2:
        search_lines(False, 2, p, s, r.count, codes)
    elif p.w.window == 3:
        search_lines(False, 3, p, s, r.count, codes)
    else:
        search_lines(False, 0, p, s, r.count, codes)


cdef Py_ssize_t search_window(const Pool *p, const real *x_p, Span z, Span y, Span s) noexcept nogil:
    """The index in the plane of the maximum of one window, -1 if it has no taps."""
    cdef Py_ssize_t i, j, k, found = -1, at
    cdef real best = -INFINITY, v
    for i in range(z.taps):
        for j in range(y.taps):
            at = ((z.begin + i * p.d.dilation) * p.h.size + y.begin + j * p.h.dilation) * p.w.size + s.begin
            for k in range(s.taps):
                v = x_p[at]
                if v > best or (v != v and best == best) or found < 0:
                    best = v
                    found = at
                at += p.w.dilation
    return found


cdef void indices_part(const Pool *p, const Search *plan, const real *x, real *out, int64_t *indices, Py_ssize_t part,
                       Py_ssize_t parts, real *memory) noexcept nogil:
    """Maxima and their indices in the plane, by rows of the output counted over all planes."""
    cdef Py_ssize_t rows = p.planes * p.d.out * p.h.out, row = rows * part // parts, last = rows * (part + 1) // parts, n, i
    cdef Py_ssize_t od, oy
    cdef Search s = plan[0]
    cdef Rows r
    if s.rows_kept:
        set_search(p, &s, memory)
    while row < last:
        n = 1
        if s.rows_kept:
            n = next_rows(p, x, row, min(last, row + RUN), &r)
            search_windows(p, &s, &r, s.kept)
        for i in range(row, row + n):
            oy = i % p.h.out
            od = i // p.h.out % p.d.out
            if s.rows_kept:
                memcpy(out + i * p.w.out, s.best + (i - row) * s.outputs, p.w.out * sizeof(real))
                place_indices(p, ((od * p.d.stride - p.d.before) * p.h.size + oy * p.h.stride - p.h.before) * p.w.size - p.w.before,
                              s.best_code + (i - row) * s.outputs, s.column + (i - row) * s.outputs, indices + i * p.w.out)
            else:
                search_each(p, x + i // (p.h.out * p.d.out) * p.in_plane, span(&p.d, od), p.span_h[oy], out + i * p.w.out,
                            indices + i * p.w.out)
        row += n


cdef inline void search_each(const Pool *p, const real *x_p, Span z, Span y, real *out, int64_t *indices) noexcept nogil:
    cdef Py_ssize_t ox
    for ox in range(p.w.out):
        indices[ox] = search_window(p, x_p, z, y, p.span_w[ox])
        out[ox] = x_p[indices[ox]] if indices[ox] >= 0 else -INFINITY


cdef inline void place_indices(const Pool *p, Py_ssize_t start, const real *code, const real *column, int64_t *indices) noexcept nogil:
    """Indices of a row of windows of which the first starts at `start`."""
    cdef Py_ssize_t ox
    for ox in range(p.w.out):
        indices[ox] = start + ox * p.w.stride + <int64_t>(code[ox] + column[ox] * <real>p.w.dilation) if column[ox] >= 0 else -1


cdef inline void windows_to_columns(int phases, int taps, const Pool *p, const Search *s, const real *column,
                                    const real *grad_out, real *grads) noexcept nogil:
    """Add the gradients of a row of windows to their columns: a line. In the forward pass window o read position
    o*stride + k*dilation for its tap k; so now place m of a phase receives from the windows m - k*dilation // stride."""
    cdef Py_ssize_t r, m, i, k, ends
    cdef real *grad = s.grad + s.shift
    cdef vec acc
    i = 0
    while i < p.w.out:
        put(grad + i, fetch(grad_out + i, p.w.out - i, 0), p.w.out - i, NULL)
        i += LANES
    for r in range(phases if phases else p.phases):
        ends = (p.w.before + p.w.size + p.phases - 1 - r) // p.phases
        m = 0
        while m < ends:
            acc = splat(0)
            if phases:
                for k in range(taps):
                    if k % phases == r:
                        acc = acc + pick(equal(load(column + m - k // phases), splat(<real>k)), load(grad + m - k // phases), splat(0))
            else:
                for i in range(p.phase_start[r], p.phase_start[r + 1]):
                    k = p.back[i]
                    acc = acc + pick(equal(load(column + m - k), splat(<real>p.tap[i])), load(grad + m - k), splat(0))
            store(grads + r * p.pitch + m, acc)
            m += LANES


cdef inline void to_columns(const Pool *p, const Search *s, const real *column, const real *grad_out, real *grads) noexcept nogil:
    if p.w.dilation == 1 and p.phases == 1 and p.w.window == 3:
        windows_to_columns(1, 3, p, s, column, grad_out, grads)
    elif p.w.dilation == 1 and p.phases == 2 and p.w.window == 2:
        windows_to_columns(2, 2, p, s, column, grad_out, grads)
    elif p.w.dilation == 1 and p.phases == 2 and p.w.window == 3:
        windows_to_columns(2, 3, p, s, column, grad_out, grads)
    elif p.w.dilation == 1 and p.phases == 3 and p.w.window == 3:
        windows_to_columns(3, 3, p, s, column, grad_out, grads)
    else:
        windows_to_columns(0, 0, p, s, column, grad_out, grads)


cdef inline Py_ssize_t slot(const Search *s, Py_ssize_t od, Py_ssize_t oy) noexcept nogil:
    """Where a row of windows is kept."""
    return <unsigned int>od % <unsigned int>s.planes_kept * s.rows_kept + <unsigned int>oy % <unsigned int>s.rows_kept


cdef void keep_windows(const Pool *p, const Search *s, const real *x, const real *grad_out, Py_ssize_t plane, Py_ssize_t od,
                       Py_ssize_t oy, Py_ssize_t last) noexcept nogil:
    """Search the rows of windows oy ... last that are not kept yet and add their gradients to their columns."""
    cdef Py_ssize_t i, n, at, row
    cdef Rows r
    while oy < last:
        at = slot(s, od, oy)
        row = (plane * p.d.out + od) * p.h.out + oy
        n = 1
        if s.tag[at] != row:
            n = next_rows(p, x, row, row + min(min(last - oy, RUN), s.rows_kept - oy % s.rows_kept), &r)
            search_windows(p, s, &r, s.kept + at * 2 * p.line)
            for i in range(n):
                s.tag[at + i] = row + i
                to_columns(p, s, s.column + i * s.outputs + s.shift, grad_out + (row + i) * p.w.out,
                           s.kept + ((at + i) * 2 + 1) * p.line)
        oy += n


cdef void max_backward_part(const Pool *p, const Search *plan, const real *grad_out, const real *x, real *grad_x,
                            Py_ssize_t part, Py_ssize_t parts, real *memory) noexcept nogil:
    """Rows of the gradient of x, counted over all planes."""
    cdef Py_ssize_t rows = p.planes * p.d.size * p.h.size, row = rows * part // parts, last = rows * (part + 1) // parts
    cdef Py_ssize_t iy, iz, plane, od, oy, od_first, od_end, n, i
    cdef Search s = plan[0]
    cdef Spread spread
    cdef const real *end = grad_x + last * p.w.size
    set_search(p, &s, memory)
    spread.flat = s.flat
    spread.source = s.source
    spread.weight = s.weight
    while row < last:
        iy = row % p.h.size
        iz = row // p.h.size % p.d.size
        plane = row // (p.h.size * p.d.size)
        n = min(min(last - row, p.h.size - iy), RUN)
        od_first = first_covering(&p.d, iz)
        od_end = end_covering(&p.d, iz)
        for od in range(od_first, od_end):
            if covers(&p.d, od, iz):
                keep_windows(p, &s, x, grad_out, plane, od, p.cover_h[2 * iy], p.cover_h[2 * (iy + n - 1) + 1])
        for i in range(iy, iy + n):
            spread.n = 0
            for od in range(od_first, od_end):
                for oy in range(p.cover_h[2 * i], p.cover_h[2 * i + 1]):
                    if covers(&p.d, od, iz) and covers(&p.h, oy, i):
                        spread.source[spread.n] = s.kept + slot(&s, od, oy) * 2 * p.line
                        spread.weight[spread.n] = <real>((iz + p.d.before - od * p.d.stride) * p.h.size * p.w.size +
                                                         (i + p.h.before - oy * p.h.stride) * p.w.size)
                        spread.n += 1
            spread_row(CODES, p, &spread, grad_x + (row + i - iy) * p.w.size, end)
        row += n
