# The gradient of a 3x3 weight, F(3x3, 4x4). The forward pass summed weight[f, c, ky, kx] * x[n, c, y + ky - ph, x + kx - pw] into
# out[n, f, y, x]; so now grad_out takes the place of the kernel, 4x4 pixels at a time, and
#
#     grad_weight[f, c] = A^T m A,   m[k][f][c] = sum over images and tiles of u[k][f][tile] * v[k][c][tile]
#
# with the tiles v of x transformed as in the forward pass and u as kernels of 4x4 taps. Rows of the register tile are input
# channels, steps are tiles, lanes are output channels. A task owns a block of both, with its m, and goes over all images; so it adds
# blocks of tiles, which follow from shapes, in order. The tiles of its x and grad_out it transforms for itself.


cdef void load_grads(const Winograd *p, const real *grad_out_nf, Py_ssize_t lanes, const Block *block, real *lines, real *u) noexcept nogil:
    """u[k][tile][lane]: the transformed tiles of `lanes` output channels, or of the first LANES."""
    cdef Py_ssize_t i, y, tile, x = 4 * block.x, n = min(4 * block.columns, p.out_width - x)
    for y in range(4 * block.y, 4 * (block.y + block.rows)):
        i = y % 4
        zero_run(lines + i * p.line, 4 * block.columns * LANES)
        if y < p.out_height:
            load_lines(grad_out_nf + y * p.out_width + x, p.out_height * p.out_width, lanes, n, lines + i * p.line)
        for tile in range(block.columns if i == 3 else 0):
            transform_kernels(6, 6, 4, lines + 4 * tile * LANES, p.line, False, u, p.u_plane)
            u += LANES


cdef void add_products(const Winograd *p, const real *u, const real *v, real *m, Py_ssize_t channels, Py_ssize_t vectors, Py_ssize_t tiles,
                       bint accumulate) noexcept nogil:
    """m[k][vector][c][lane] += sum over tiles of v[k][c][tile] * u[k][vector][tile][lane]."""
    cdef Py_ssize_t k, i, first, block, blocks = ceil_div(channels, MR)
    cdef Tile t
    t.step_a, t.step_b, t.steps = p.step_a, p.step_b, tiles
    t.bias, t.relu, t.accumulate, t.out_row, t.row_step = NULL, False, accumulate, LANES, p.pitch
    t.pixel[0], t.pixel[1], t.out_pixel[0], t.out_pixel[1] = 0, p.pitch * LANES, 0, channels * LANES
    for k in range(p.elements):
        for i from 0 <= i < vectors by 2:
            t.b = u + k * p.u_plane + i * p.pitch * LANES
            for block in range(blocks):
                first = block * channels // blocks
                t.a = v + k * p.v_plane + first * p.pitch
                t.out = m + k * p.m_plane + (i * channels + first) * LANES
                run_tile(<int>((block + 1) * channels // blocks - first), <int>min(<Py_ssize_t>2, vectors - i), &t)


cdef bint store_gradients(const Winograd *p, const real *m, Py_ssize_t channels, Py_ssize_t lanes, real *lines,
                          real *grad_weight_fc) noexcept nogil:
    """The gradients of some output channels; return whether one of them is not finite."""
    cdef vec columns[18]
    cdef vec part[6]
    cdef vec bad = splat(0)
    cdef Py_ssize_t c, n = 0
    cdef int i, j
    for c in range(channels):
        for j in range(6):
            for i in range(6):
                part[i] = load(m + (6 * i + j) * p.m_plane + c * LANES)
            output_axis(6, 4, part, columns + j, 6)
        for i in range(3):
            output_axis(6, 4, columns + 6 * i, part, 1)
            for j in range(3):
                store(lines + (n + 3 * i + j) * LANES, part[j])
                bad = bad + part[j] * splat(0)      # NaN if it is not finite
        n += 9
        if n == 9 * LANES or c + 1 == channels:
            transpose(grad_weight_fc, 9 * p.channels, lines, LANES, n, lanes)
            grad_weight_fc += n
            n = 0
    return any(is_nan(bad))


cdef bint run_weight_task(const Winograd *p, Py_ssize_t task, real *v) noexcept nogil:
    """One block of the gradient; return whether it has an element that is not finite."""
    cdef Py_ssize_t g = task // (p.shares * p.blocks), share = task // p.blocks % p.shares, b = task % p.blocks
    cdef Py_ssize_t c0 = share * p.channels // p.shares, c1 = (share + 1) * p.channels // p.shares
    cdef Py_ssize_t vectors = ceil_div(p.rows, LANES)
    cdef Py_ssize_t begin = b * vectors // p.blocks * LANES, end = min(p.rows, (b + 1) * vectors // p.blocks * LANES)
    cdef Py_ssize_t i, c, f, f0, f1, n, first, last, tiles, parts = p.parts_y * p.parts_x
    cdef real *u = v + p.elements * p.v_plane
    cdef real *m = u + p.elements * p.u_plane
    cdef real *memory = m + p.elements * p.m_plane
    cdef bint bad = False
    cdef Block block
    for f0 from begin <= f0 < end by p.block_rows:
        f1 = min(end, f0 + p.block_rows)
        for i in range(p.joins * parts):
            set_block(p, i, &block)
            tiles = block.rows * block.columns
            first, last = i // parts * p.images // p.joins, (i // parts + 1) * p.images // p.joins
            for c in range(c0, c1 if f0 == begin else c0):
                for n in range(first, last):
                    load_tiles(p, p.x + ((n * p.groups + g) * p.channels + c) * p.height * p.width, &block, memory,
                               v + (c - c0) * p.pitch + (n - first) * tiles)
            for f from f0 <= f < f1 by LANES:
                for n in range(first, last):
                    load_grads(p, p.weight + ((n * p.groups + g) * p.rows + f) * p.out_height * p.out_width, f1 - f, &block, memory,
                               u + (f - f0) * p.pitch + (n - first) * tiles * LANES)
            add_products(p, u, v, m, c1 - c0, ceil_div(f1 - f0, LANES), tiles * (last - first), i > 0)
        for f from f0 <= f < f1 by LANES:
            bad |= store_gradients(p, m + (f - f0) * (c1 - c0), c1 - c0, min(<Py_ssize_t>LANES, f1 - f), memory,
                                   p.out + ((g * p.rows + f) * p.channels + c0) * 9)
    return bad


cdef void run_weight_tasks(const Winograd *p, Py_ssize_t first, Py_ssize_t last, real *memory, char *bad) noexcept nogil:
    cdef Py_ssize_t task
    for task in range(first, last):
        bad[task] = run_weight_task(p, task, memory)


cdef void plan_weight(Winograd *p, int threads) noexcept nogil:
    """Cut input channels into `shares`, output channels into `blocks`: the wider ones for each factor of what threads need."""
    cdef Py_ssize_t channels, vectors = ceil_div(p.rows, LANES), factor = 2, left
    p.my, p.mx, p.ny, p.nx, p.elements = 4, 4, 6, 6, 36
    plan_blocks(p, min(p.channels, <Py_ssize_t>MOST_CHANNELS) + min(p.rows, <Py_ssize_t>MOST_CHANNELS), MOST_IMAGES)
    p.shares, p.blocks = ceil_div(p.channels, MOST_CHANNELS), ceil_div(p.rows, MOST_CHANNELS)
    left = least_shares(p.groups * p.shares * p.blocks, threads)
    while left > 1:
        if left % factor:
            factor += 1
            continue
        left //= factor
        if p.channels * p.blocks >= p.rows * p.shares:
            p.shares *= factor
        else:
            p.blocks *= factor
    p.shares, p.blocks = min(p.shares, p.channels), min(p.blocks, vectors)
    p.tasks = p.groups * p.shares * p.blocks
    channels, vectors = ceil_div(p.channels, p.shares), ceil_div(vectors, p.blocks)
    if p.joins * p.parts_y * p.parts_x == 1:    # m is complete after one block of tiles: two vectors of it at a time stay in L2
        vectors = min(vectors, <Py_ssize_t>2)
    p.block_rows = vectors * LANES
    p.line = (p.strip_pitch + LANES) * LANES
    p.v_plane = padded_plane(channels * p.pitch + LANES)
    p.u_plane = padded_plane(vectors * p.pitch * LANES)
    p.m_plane = padded_plane(vectors * channels * LANES)


def grad_weight(const real[:, :, :, ::1] x, const real[:, :, :, ::1] grad_out, real[:, :, :, ::1] grad_weight, Py_ssize_t ph, Py_ssize_t pw,
                Py_ssize_t groups, int threads, list scratch):
    """The gradient of a 3x3 weight. Return whether some of it is not finite: then it is to be summed directly, as in the forward pass."""
    cdef Winograd p
    cdef Py_ssize_t size, i
    cdef int part, parts
    cdef bytearray block
    cdef char *bad
    cdef real *memory
    p.x, p.weight, p.out = &x[0, 0, 0, 0], &grad_out[0, 0, 0, 0], &grad_weight[0, 0, 0, 0]
    p.images, p.groups, p.ph, p.pw = x.shape[0], groups, ph, pw
    p.rows, p.out_height, p.out_width = grad_out.shape[1] // groups, grad_out.shape[2], grad_out.shape[3]
    p.channels, p.height, p.width = grad_weight.shape[1], x.shape[2], x.shape[3]
    parts = useful_threads(<double>grad_out.size * p.channels * 9, WORK_PER_THREAD, threads, threads)
    plan_weight(&p, parts)
    parts = <int>min(<Py_ssize_t>parts, p.tasks)
    size = padded_plane(p.elements * (p.u_plane + p.v_plane + p.m_plane)
                        + max(p.strip + p.my * p.nx * p.cell_plane, 4 * p.line, 9 * LANES * LANES))
    block = take(scratch, <double>size * parts * sizeof(real) + 2. * p.lanes * sizeof(Py_ssize_t) + <double>p.tasks)
    memory = <real *>address(block)
    p.step_a = <Py_ssize_t *>(memory + size * parts)
    p.step_b = p.step_a + p.lanes
    bad = <char *>(p.step_b + p.lanes)
    for i in range(p.lanes):
        p.step_a[i] = i
        p.step_b[i] = i * LANES
    with nogil:
        if parts == 1:
            run_weight_tasks(&p, 0, p.tasks, memory, bad)
        else:
            for part in prange(parts, num_threads=ready(parts), schedule="static"):
                run_weight_tasks(&p, p.tasks * part // parts, p.tasks * (part + 1) // parts, memory + part * size, bad)
    found = 1 in <bytes>bad[:p.tasks]
    scratch.append(block)
    return found
