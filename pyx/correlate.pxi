# One dense pass: forward, or one phase of the gradient of x. For every image and group
#
#     out[m, oy, ox] = sum over r, ky, kx of a[m * row_step + r * channel_step + tap] * source[r, y(oy, ky), x(ox, kx)]
#
# with y and x as the two axes say and zero outside the source. Tasks are (image, group, strip, block of rows m); every
# output element belongs to one task and is summed over (r, ky, kx) in that order, whatever the strips and threads are.
# Scratch of a thread: one strip. Reference: cyconv/_reference.py.


cdef struct Pass:
    const real *a
    const real *source
    real *out
    const real *bias            # or NULL
    bint relu
    Py_ssize_t images, groups
    Py_ssize_t rows             # output channels of a group
    Py_ssize_t channels         # source channels of a group
    Py_ssize_t a_group, row_step, channel_step
    Axis y, x
    # where output (m, oy, ox) of a group lies: m * out_plane + oy * out_y + ox * out_x
    Py_ssize_t out_plane, out_y, out_x
    # the plan
    bint in_place               # the source itself serves as strip
    bint exact                  # vectors cross from row to row
    Py_ssize_t strips, strip_rows, pitch, plane, row_blocks, tasks
    Py_ssize_t *step_a
    Py_ssize_t *step_b


cdef inline Py_ssize_t strip_elements(const Pass *p) noexcept nogil:
    """What a strip holds, with room for a vector that starts at the last element."""
    return p.channels * p.x.segments * (p.strip_rows if p.in_place else p.plane) + LANES


cdef inline void plan_strips(Pass *p, Py_ssize_t strips) noexcept nogil:
    p.strips = strips
    p.strip_rows = ceil_div(p.y.extent, strips)
    plan_segments(&p.y, p.strip_rows, True)
    p.plane = p.y.size if p.in_place else padded_plane(total_length(&p.y) * p.pitch)


cdef void plan_pass(Pass *p, Py_ssize_t *tables, int threads) noexcept nogil:
    """Choose strips and fill the offset tables; `tables` holds 2 * channels * taps of y * taps of x."""
    cdef Py_ssize_t taps = p.y.taps * p.x.taps
    cdef Py_ssize_t c, i, j, k, strips, most, blocks, fit
    cdef Py_ssize_t row_vectors = ceil_div(p.x.extent, LANES)
    p.in_place = (p.out_x == 1 and p.x.taps == 1 and p.x.step == 1 and p.x.start[0] == 0 and p.x.extent == p.x.size
                  and p.y.taps == 1 and p.y.step == 1 and p.y.start[0] == 0 and p.y.extent == p.y.size
                  and p.y.extent * p.x.extent >= LANES)
    if p.in_place:              # one column of pixels, so that a strip may begin anywhere
        p.y.extent = p.y.size = p.y.size * p.x.size
        p.x.extent = p.x.size = p.out_y = 1
        row_vectors = 1
    p.row_blocks = ceil_div(p.rows, MR)
    p.step_a = tables
    p.step_b = tables + p.channels * taps
    # Row by row costs the lanes past the row's end, exact columns cost a copy of the source for every tap along x.
    p.exact = p.x.extent < LANES or row_vectors * LANES * 16 > p.x.extent * 17
    plan_segments(&p.x, p.x.extent, not p.exact)
    p.pitch = p.x.extent if p.exact else longest_segment(&p.x)
    plan_strips(p, 1)
    most = p.y.extent // (4 * NV * LANES) if p.in_place else p.y.extent
    while p.strips < most and strip_elements(p) * <Py_ssize_t>sizeof(real) > STRIP_BYTES:
        fit = ceil_div(strip_elements(p) * <Py_ssize_t>sizeof(real), STRIP_BYTES)
        plan_strips(p, min(most, max(p.strips + 1, p.strips * fit // 2)))
    # Enough tasks for every thread, evenly.
    strips = p.strips
    blocks = p.images * p.groups * p.row_blocks
    while strips < most and blocks * strips < 16 * threads and blocks * strips % threads != 0:
        strips += 1
    if strips != p.strips:
        plan_strips(p, strips)
    p.tasks = p.images * p.groups * p.strips * p.row_blocks
    k = 0
    for c in range(p.channels):
        for i in range(p.y.taps):
            for j in range(p.x.taps):
                p.step_a[k] = c * p.channel_step + p.y.index[i] + p.x.index[j]
                p.step_b[k] = ((c * p.x.segments + p.x.segment[j]) * p.plane + p.x.offset[j] + p.pitch *
                               (p.y.offset[i] + segment_base(&p.y, p.y.segment[i])))
                k += 1


cdef void copy_part(const Pass *p, real *out, const real *buffer, Py_ssize_t rows, Py_ssize_t first,
                           Py_ssize_t n) noexcept nogil:
    """Write the outputs first.. first + n of the strip, whose rows lie LANES apart in buffer, to their places."""
    cdef Py_ssize_t i, l, y, x
    for l in range(n):
        y = (first + l) // p.x.extent
        x = (first + l) - y * p.x.extent
        for i in range(rows):
            out[i * p.out_plane + y * p.out_y + x * p.out_x] = buffer[i * NV * LANES + l]


cdef void run_block(const Pass *p, Tile *t, real *out, Py_ssize_t rows, Py_ssize_t strip_rows) noexcept nogil:
    """All output pixels of the strip for one block of rows."""
    cdef real buffer[MR * NV * LANES]
    cdef Py_ssize_t pixels = strip_rows * p.x.extent
    cdef Py_ssize_t row_vectors = ceil_div(p.x.extent, LANES)
    cdef Py_ssize_t vectors = ceil_div(pixels, LANES) if p.exact else strip_rows * row_vectors
    cdef bint scatter = p.out_x != 1 or p.exact and p.out_y != p.x.extent or pixels < LANES
    cdef Py_ssize_t first[NV]
    cdef Py_ssize_t v = 0, n, y, x
    cdef int j
    while v < vectors:
        n = min(<Py_ssize_t>NV, vectors - v)
        for j in range(n):
            if p.exact:
                t.pixel[j] = first[j] = max(0, min((v + j) * LANES, pixels - LANES))
                t.out_pixel[j] = t.pixel[j]
            else:
                y = (v + j) // row_vectors
                x = min((v + j - y * row_vectors) * LANES, p.x.extent - LANES)
                first[j] = y * p.x.extent + x
                t.pixel[j] = y * p.pitch + x
                t.out_pixel[j] = y * p.out_y + x
        if scatter:
            t.out = buffer
            t.out_row = NV * LANES
            for j in range(n):
                t.out_pixel[j] = j * LANES
            run_tile(<int>rows, <int>n, t)
            for j in range(n):
                copy_part(p, out, buffer + j * LANES, rows, first[j], min(<Py_ssize_t>LANES, pixels))
        else:
            t.out = out
            t.out_row = p.out_plane
            run_tile(<int>rows, <int>n, t)
        v += n


cdef void run_tasks(const Pass *p, Py_ssize_t first, Py_ssize_t last, real *strip) noexcept nogil:
    """The tasks first..last; a strip is copied once for all blocks of rows that follow each other."""
    cdef Py_ssize_t task, block, s, image_group, group, y0, y1, m0, m1, copied = -1
    cdef const real *source
    cdef Tile t
    cdef int i
    t.step_a = p.step_a
    t.step_b = p.step_b
    t.steps = p.channels * p.y.taps * p.x.taps
    t.accumulate = False
    t.relu = p.relu
    for i in range(MR):
        t.row[i] = i * p.row_step
    for task in range(first, last):
        block = task % p.row_blocks
        s = task // p.row_blocks % p.strips
        image_group = task // p.row_blocks // p.strips
        group = image_group % p.groups
        y0 = s * p.y.extent // p.strips
        y1 = (s + 1) * p.y.extent // p.strips
        m0 = block * p.rows // p.row_blocks
        m1 = (block + 1) * p.rows // p.row_blocks
        source = p.source + image_group * p.channels * p.y.size * p.x.size
        if p.in_place:
            t.b = source + y0 * p.pitch
        else:
            if copied != task // p.row_blocks:
                copied = task // p.row_blocks
                copy_strip(strip, source, p.channels, p.y.size * p.x.size, &p.y, &p.x, y0, p.plane, p.pitch)
            t.b = strip
        t.a = p.a + group * p.a_group + m0 * p.row_step
        t.bias = p.bias + group * p.rows + m0 if p.bias != NULL else NULL
        run_block(p, &t, p.out + (image_group * p.rows + m0) * p.out_plane + y0 * p.out_y, m1 - m0, y1 - y0)
