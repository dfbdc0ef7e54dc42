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


ctypedef void (*columns_function)(const Pool *, Py_ssize_t, const real *, real *, const real *) noexcept nogil


cdef struct Search:
    Py_ssize_t planes_kept      # rows of windows that are kept: od modulo planes_kept, oy modulo rows_kept, powers of two
    Py_ssize_t rows_kept
    Py_ssize_t shift            # zeros before the outputs of a line of outputs
    Py_ssize_t outputs          # elements of a line of outputs
    real *values                # [run] lines: maxima of the columns
    real *best                  # [run] lines of outputs: maxima
    real *best_code             # [run] lines of outputs: the code of their row
    real *column                # [run] lines of outputs: the tap along w that has the maximum, -1 if there are no taps
    real *grad                  # line of outputs: gradient of the maxima
    real *flat                  # for fill_codes and spread
    real *kept                  # [planes_kept][rows_kept][2] lines: codes of the columns, and their gradients
    Py_ssize_t *tag             # [planes_kept * rows_kept] which row of windows is kept
    columns_function columns    # NULL: search_lines and windows_to_columns
    spread_function spread


cdef inline Py_ssize_t power_of_two(Py_ssize_t n) noexcept nogil:
    """The first that is not less than n."""
    cdef Py_ssize_t power = 1
    while power < n:
        power *= 2
    return power


cdef bint plan_search(const Pool *p, Search *s, bint backward) noexcept nogil:
    """Whether the search by lines is possible: lines, codes that are exact, not too much to keep."""
    cdef Py_ssize_t reach = ((p.d.window - 1) * p.d.dilation * p.h.size + (p.h.window - 1) * p.h.dilation) * p.w.size
    if p.phases == 0 or reach + p.w.window * p.w.dilation > MAX_CODE:
        return False
    s.shift = zeros_before(p) if backward else 0
    s.outputs = whole_lines(s.shift + p.pitch + p.w.out + 2 * LANES)
    s.planes_kept = power_of_two(covering(&p.d)) if backward else 1
    s.rows_kept = p.run
    if backward:
        s.rows_kept = power_of_two(p.h.out if s.planes_kept > 1 else min(p.h.out, covering(&p.h) + ceil_div(p.run, p.h.stride) + 1))
    s.columns = choose_columns(p)
    s.spread = choose_spread(CODES, p)
    return 2. * s.planes_kept * s.rows_kept * p.line * sizeof(real) <= MAX_KEPT_BYTES


cdef Py_ssize_t search_elements(const Pool *p, const Search *s) noexcept nogil:
    cdef Py_ssize_t kept = s.planes_kept * s.rows_kept
    return p.run * p.line + (3 * p.run + 1) * s.outputs + p.flat + 2 * kept * p.line + whole_lines(2 * kept)


cdef void set_search(const Pool *p, Search *s, real *memory) noexcept nogil:
    cdef Py_ssize_t i, kept = s.planes_kept * s.rows_kept
    s.values = memory
    s.best = s.values + p.run * p.line
    s.best_code = s.best + p.run * s.outputs
    s.column = s.best_code + p.run * s.outputs
    s.grad = s.column + p.run * s.outputs
    s.flat = s.grad + s.outputs
    s.kept = s.flat + p.flat
    s.tag = <Py_ssize_t *>(s.kept + 2 * kept * p.line)
    for i in range(p.run * p.line):
        s.values[i] = -INFINITY
    for i in range(p.run * s.outputs):
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


cdef inline mask search_vectors(bint exact, int n, int s, const Rows *r, const real *x, Py_ssize_t left, real **values,
                                real **codes, Py_ssize_t m) noexcept nogil:
    """The next LANES places of a line, or of a flat row if s is 0."""
    cdef vec v[3]
    cdef vec c[3]
    cdef mask nan = search_column(exact, n, r, x, left, &v[0], &c[0])
    if s > 1:
        nan = either(nan, search_column(exact, n, r, x + LANES, left - LANES if left < s * LANES else LANES, &v[1], &c[1]))
    if s > 2:
        nan = either(nan, search_column(exact, n, r, x + 2 * LANES, left - 2 * LANES if left < s * LANES else LANES, &v[2], &c[2]))
    split(s, v)
    split(s, c)
    store(values[0] + m, v[0])
    store(codes[0] + m, c[0])
    if s > 1:
        store(values[1] + m, v[1])
        store(codes[1] + m, c[1])
    if s > 2:
        store(values[2] + m, v[2])
        store(codes[2] + m, c[2])
    return nan


cdef inline bint fill_codes(bint exact, int n, int s, const Pool *p, const Search *search, const Rows *rows,
                            real *codes) noexcept nogil:
    """Vertical search: lines of values and codes. Returns whether there was a NaN."""
    cdef Py_ssize_t i, j, m, t, W = p.w.size, step = max(s, 1) * LANES, line = p.line
    cdef Rows r = rows[0]
    cdef real *to[3]
    cdef real *codes_to[3]
    cdef mask nan = is_nan(splat(0))
    for t in range(max(s, 1)):
        to[t] = search.values + p.place[t] if s else search.flat
        codes_to[t] = codes + p.place[t] if s else search.flat + whole_lines(W + 2 * LANES)
    for i in range(r.count):
        j = 0
        m = 0
        while j + step <= W:
            nan = either(nan, search_vectors(exact, n, s, &r, r.x + j, step, to, codes_to, m))
            j += step
            m += LANES
        if j < W:
            nan = either(nan, search_vectors(exact, n, s, &r, r.x + j, W - j, to, codes_to, m))
        if s == 0:
            split_flat(p, to[0], search.values + i * line)
            split_flat(p, codes_to[0], codes + i * 2 * line)
        for t in range(s):
            to[t] += line
            codes_to[t] += 2 * line
        r.x += r.advance
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
                if p.w.dilation == 1 and s.taps >= LANES:
                    at += search_run(x_p + at, s.taps)
                v = x_p[at]
                if v > best or (v != v and best == best) or found < 0:
                    best = v
                    found = at
                if p.w.dilation == 1 and s.taps >= LANES:
                    break
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
            n = next_rows(p, x, row, min(last, row + p.run), &r)
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


cdef inline void windows_to_columns(const Pool *p, const Search *s, const real *column, const real *grad_out,
                                    real *grads) noexcept nogil:
    """Add the gradients of a row of windows to their columns: a line. In the forward pass window o read position
    o*stride + k*dilation for its tap k; so now place m of a phase receives from the windows m - k*dilation // stride."""
    cdef Py_ssize_t r, m, i, k
    cdef vec acc
    memcpy(s.grad + s.shift, grad_out, p.w.out * sizeof(real))
    for r in range(p.phases):
        m = 0
        while m * p.phases < p.w.before + p.w.size:
            acc = splat(0)
            for i in range(p.phase_start[r], p.phase_start[r + 1]):
                k = s.shift + m - p.back[i]
                acc = acc + pick(equal(load(column + k), splat(<real>p.tap[i])), load(s.grad + k), splat(0))
            store(grads + r * p.pitch + m, acc)
            m += LANES


cdef inline vec taps_of(const real *line, Py_ssize_t pitch, int s, int k) noexcept nogil:
    """What tap k of windows without dilation reads."""
    return load(line + k % s * pitch + k // s)


cdef inline void search_columns(int s, int taps, const Pool *p, Py_ssize_t count, const real *values, real *codes,
                                const real *grad_out) noexcept nogil:
    """Horizontal search and windows_to_columns at once, with both as constants and without NaN or dilation."""
    cdef Py_ssize_t i, j, r, k, pitch = p.pitch, line = p.line, ends = (p.w.before + p.w.size + s - 1) // s, OW = p.w.out
    cdef vec best, grad, found, code, acc
    cdef vec given[5]
    cdef vec before[5]
    cdef mask hit[5]
    cdef mask seen, twice
    for i in range(count):
        for k in range(taps):
            before[k] = splat(0)
        j = 0
        while j < ends:
            best = taps_of(values + j, pitch, s, 0)
            for k in range(1, taps):
                best = larger(best, taps_of(values + j, pitch, s, k))
            grad = fetch(grad_out + j, OW - j, 0)
            hit[0] = equal(taps_of(values + j, pitch, s, 0), best)
            seen = hit[0]
            twice = is_nan(splat(0))
            for k in range(1, taps):
                hit[k] = equal(taps_of(values + j, pitch, s, k), best)
                twice = either(twice, both(seen, hit[k]))
                seen = either(seen, hit[k])
            if any(without(twice, equal(grad, splat(0)))):
                found = splat(INFINITY)
                for k in range(taps):
                    code = taps_of(codes + j, pitch, s, k)
                    hit[k] = both(hit[k], greater(found, code))
                    found = pick(hit[k], code, found)
                for k in range(taps):       # the last that was better is the one
                    for r in range(k + 1, taps):
                        hit[k] = without(hit[k], hit[r])
            for k in range(taps):
                given[k] = pick(hit[k], grad, splat(0))
            for r in range(s):
                acc = given[r]
                for k in range(s, taps):
                    if k % s == r:
                        acc = acc + behind(before[k], given[k], k // s)
                store(codes + line + r * pitch + j, acc)
            for k in range(taps):
                before[k] = given[k]
            j += LANES
        values += line
        codes += 2 * line
        grad_out += OW


cdef void columns_13(const Pool *p, Py_ssize_t n, const real *v, real *c, const real *g) noexcept nogil: search_columns(1, 3, p, n, v, c, g)
cdef void columns_15(const Pool *p, Py_ssize_t n, const real *v, real *c, const real *g) noexcept nogil: search_columns(1, 5, p, n, v, c, g)
cdef void columns_22(const Pool *p, Py_ssize_t n, const real *v, real *c, const real *g) noexcept nogil: search_columns(2, 2, p, n, v, c, g)
cdef void columns_23(const Pool *p, Py_ssize_t n, const real *v, real *c, const real *g) noexcept nogil: search_columns(2, 3, p, n, v, c, g)
cdef void columns_33(const Pool *p, Py_ssize_t n, const real *v, real *c, const real *g) noexcept nogil: search_columns(3, 3, p, n, v, c, g)


cdef columns_function choose_columns(const Pool *p) noexcept nogil:
    """NULL if there is none for this stride and window."""
    if p.w.dilation == 1:
        if p.phases == 1 and p.w.window == 3:
            return columns_13
        if p.phases == 1 and p.w.window == 5 and LANES > 2:
            return columns_15
        if p.phases == 2 and p.w.window == 2:
            return columns_22
        if p.phases == 2 and p.w.window == 3:
            return columns_23
        if p.phases == 3 and p.w.window == 3:
            return columns_33
    return NULL


cdef void search_for_gradient(const Pool *p, const Search *s, const Rows *r, const real *grad_out, real *codes) noexcept nogil:
    """Search rows of windows and add their gradients to their columns, which follow the codes."""
    cdef Py_ssize_t i
    if s.columns != NULL and r.nz * r.ny and not vertical_search(p, s, r, codes):
        s.columns(p, r.count, s.values, codes, grad_out)
    else:
        search_windows(p, s, r, codes)
        for i in range(r.count):
            windows_to_columns(p, s, s.column + i * s.outputs, grad_out + i * p.w.out, codes + (2 * i + 1) * p.line)


cdef void keep_windows(const Pool *p, const Search *s, const real *x, const real *grad_out, Py_ssize_t first_row, Py_ssize_t oy,
                       Py_ssize_t last, Py_ssize_t first_slot) noexcept nogil:
    """Search the rows of windows oy ... last that are not kept yet and add their gradients to their columns."""
    cdef Py_ssize_t i, n, slot, row
    cdef Rows r
    while oy < last:
        slot = oy & (s.rows_kept - 1)
        row = first_row + oy
        n = 1
        if s.tag[first_slot + slot] != row:
            n = next_rows(p, x, row, row + min(min(last - oy, p.run), s.rows_kept - slot), &r)
            slot += first_slot
            search_for_gradient(p, s, &r, grad_out + row * p.w.out, s.kept + slot * 2 * p.line)
            for i in range(n):
                s.tag[slot + i] = row + i
        oy += n


cdef void max_backward_part(const Pool *p, const Search *plan, const real *grad_out, const real *x, real *grad_x,
                            Py_ssize_t part, Py_ssize_t parts, real *memory) noexcept nogil:
    """Rows of the gradient of x, counted over all planes."""
    cdef Py_ssize_t rows = p.planes * p.d.size * p.h.size, row = rows * part // parts, last = rows * (part + 1) // parts
    cdef Py_ssize_t od
    cdef Search s = plan[0]
    cdef Spread spread
    cdef const real *end = grad_x + last * p.w.size
    set_search(p, &s, memory)
    spread.flat = s.flat
    spread.kept = s.kept
    while row < last:
        spread.iy = row % p.h.size
        spread.iz = row // p.h.size % p.d.size
        spread.count = min(min(last - row, p.h.size - spread.iy), p.run)
        for od in range(first_covering(&p.d, spread.iz), end_covering(&p.d, spread.iz)):
            if covers(&p.d, od, spread.iz):
                keep_windows(p, &s, x, grad_out, (row // p.h.size // p.d.size * p.d.out + od) * p.h.out,
                             first_covering(&p.h, spread.iy), end_covering(&p.h, spread.iy + spread.count - 1),
                             (od & (s.planes_kept - 1)) * s.rows_kept)
        s.spread(p, &spread, grad_x + row * p.w.size, end)
        row += spread.count


cdef inline void pair_gradients(const Pool *p, const real *x, const real *grad_out, real *grad_x, const real *end) noexcept nogil:
    """Two rows of the gradient of x for 2x2 windows with stride 2 and no padding. Columns without a window get zero."""
    cdef Py_ssize_t j = 0, W = p.w.size
    cdef vec a[2]
    cdef vec b[2]
    cdef vec best, grad
    cdef mask first, second, third, hit
    while j < W:
        a[0] = fetch(x + j, W - j, -INFINITY)
        a[1] = fetch(x + j + LANES, W - j - LANES, -INFINITY)
        b[0] = fetch(x + W + j, W - j, -INFINITY)
        b[1] = fetch(x + W + j + LANES, W - j - LANES, -INFINITY)
        prefetch(x + j + AHEAD // <Py_ssize_t>sizeof(real))
        prefetch(x + j + LANES + AHEAD // <Py_ssize_t>sizeof(real))
        prefetch(x + W + j + AHEAD // <Py_ssize_t>sizeof(real))
        prefetch(x + W + j + LANES + AHEAD // <Py_ssize_t>sizeof(real))
        split(2, a)
        split(2, b)
        grad = fetch(grad_out + j // 2, p.w.out - j // 2, 0)
        best = vmax(vmax(a[0], a[1]), vmax(b[0], b[1]))
        first = either(equal(a[0], best), is_nan(a[0]))
        second = without(either(equal(a[1], best), is_nan(a[1])), first)
        hit = either(first, second)
        third = without(either(equal(b[0], best), is_nan(b[0])), hit)
        hit = either(hit, third)
        a[0] = pick(first, grad, splat(0))
        a[1] = pick(second, grad, splat(0))
        b[0] = pick(third, grad, splat(0))
        b[1] = pick(hit, splat(0), grad)
        join(2, a)
        join(2, b)
        put(grad_x + j, a[0], W - j, NULL)
        put(grad_x + j + LANES, a[1], W - j - LANES, NULL)
        put(grad_x + W + j, b[0], W - j, end)
        put(grad_x + W + j + LANES, b[1], W - j - LANES, end)
        j += 2 * LANES


cdef inline bint paired(const Pool *p) noexcept nogil:
    """Whether pair_gradients applies. A row and a column may be left over."""
    return p.d.size == 1 and p.d.out == 1 and p.h.window == 2 and p.h.stride == 2 and p.h.dilation == 1 and p.h.before == 0 and \
        p.h.size // 2 == p.h.out and p.w.window == 2 and p.w.stride == 2 and p.w.dilation == 1 and p.w.before == 0 and \
        p.w.size // 2 == p.w.out


cdef void pair_part(const Pool *p, const real *grad_out, const real *x, real *grad_x, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Rows of windows, counted over all planes, with the rows of the gradient of x under them."""
    cdef Py_ssize_t rows = p.planes * p.h.out, row, at, last = rows * (part + 1) // parts
    cdef const real *end = grad_x + (last // p.h.out * p.h.size + last % p.h.out * 2) * p.w.size
    for row in range(rows * part // parts, last):
        at = (row // p.h.out * p.h.size + row % p.h.out * 2) * p.w.size
        pair_gradients(p, x + at, grad_out + row * p.w.out, grad_x + at, end)
        if row % p.h.out == p.h.out - 1 and p.h.size % 2:
            memset(grad_x + at + 2 * p.w.size, 0, p.w.size * sizeof(real))
