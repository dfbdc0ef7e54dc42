"""Winograd's F(4x4, 3x3): cross-correlation with 3x3 kernels, stride 1 and dilation 1, in a quarter of the products.

    out[n, f, 4*ty + i, 4*tx + j] = (A^T m A)[i][j],   m[k] = sum over c of u[k][f][c] * v[k][c][n, ty, tx],  k < 36

where u is the transformed weight and v the transformed tile of 6x6 inputs (winograd.pxi). A task takes the tiles of some
rows of one image, or of some whole small images, and some of the output channels: it transforms the tiles of all input
channels, multiplies through the register tile, rows being output channels and lanes being tiles, and transforms back.
It owns its output elements, whose sums over c run in order, so they do not depend on tasks, threads and batch.

Scratch of a thread: v of a task, m of some output channels, one channel of the padded input. Reference: cyconv/_reference.py.
"""
from cython.parallel cimport prange

from libc.string cimport memset
from simd cimport real, vec, LANES, MR, load, store, splat, vrelu, lane_sum, zip_low, zip_high, even, odd, slide
from mask cimport load_first_or_zero, store_first
from scratch cimport take, address
from strip cimport copy_run, ceil_div, padded_plane
from tile cimport Tile, tile_rows, most_vectors

include "winograd.pxi"


cdef enum:
    TASK_TILES = 112            # tiles that a task transforms at once
    PRODUCT_BYTES = 1 << 19     # products kept until they are transformed back
    WORK_PER_THREAD = 1 << 18   # multiply-adds of the direct sum for which another thread is worth its start


cdef struct Panels:             # of a transformed weight: [group][block][36][input channel][output channel of the block]
    Py_ssize_t blocks           # of output channels of a group
    Py_ssize_t height           # most output channels of a block
    Py_ssize_t plane            # elements between the 36 products


cdef struct Winograd:
    const real *x
    const real *u
    const real *bias            # or NULL
    real *out
    bint relu
    Py_ssize_t images, groups, rows, channels       # rows, channels: output and input channels of a group
    Py_ssize_t height, width, out_height, out_width, ph, pw
    Panels panels
    Py_ssize_t tiles_y, tiles_x
    Py_ssize_t parts            # tasks along the rows of an image, or
    Py_ssize_t joins            # tasks along the images, if they are joined
    Py_ssize_t joined           # most images of a task
    Py_ssize_t task_rows        # most rows of tiles of a task
    Py_ssize_t image_tiles      # lanes between the images of a task
    Py_ssize_t pitch            # lanes of a row of v and m
    Py_ssize_t shares           # tasks along the output channels
    Py_ssize_t chunk            # blocks of output channels whose products are kept at once
    Py_ssize_t tasks
    Py_ssize_t v_plane, m_plane, strip_pitch, cell_plane, line      # elements
    Py_ssize_t strip            # of the padded input of one channel
    Py_ssize_t *step_a          # [channels]
    Py_ssize_t *step_b


cdef Panels panels_of(Py_ssize_t rows, Py_ssize_t channels) noexcept nogil:
    cdef Panels p
    p.blocks = ceil_div(rows, MR)
    p.height = ceil_div(rows, p.blocks)
    p.plane = padded_plane(channels * p.height)
    return p


cdef void transform_block(const real *weight, Py_ssize_t row_step, Py_ssize_t channel_step, Py_ssize_t rows, Py_ssize_t first,
                          Py_ssize_t last, bint rotated, real *to, const Panels *p) noexcept nogil:
    """The kernels of a block of rows and the channels first..last."""
    cdef Py_ssize_t c, f
    for c in range(first, last):
        f = 0
        while f < rows:
            transform_taps(weight + f * row_step + c * channel_step, row_step, <int>min(rows - f, <Py_ssize_t>LANES), rotated,
                           to + c * p.height + f, p.plane, (last - c) * p.height - f < LANES)
            f += LANES


def transform_weight(const real[:, :, :, ::1] weight, Py_ssize_t groups, bint rotated, int threads, list scratch):
    """Return the transformed weight (F, C/g, 3, 3) in a block from scratch; rotated: as the gradient of x needs it."""
    cdef Py_ssize_t rows = weight.shape[0] // groups, channels = weight.shape[1]
    cdef Py_ssize_t row_step = 9 * channels, channel_step = 9, group_step = 9 * rows * channels
    cdef Py_ssize_t task, b, c, slices
    cdef Panels p
    cdef bytearray block
    cdef real *u
    cdef const real *w = &weight[0, 0, 0, 0]
    if rotated:
        rows, channels = channels, rows
        row_step, channel_step = channel_step, row_step
    p = panels_of(rows, channels)
    block = take(scratch, 36. * p.plane * p.blocks * groups * sizeof(real))
    u = <real *>address(block)
    slices = ceil_div(channels, 64)
    for task in prange(groups * p.blocks * slices, num_threads=useful_threads(16. * rows * channels * groups, threads), schedule="static",
                       nogil=True):
        transform_task(w, group_step, row_step, channel_step, rows, channels, rotated, u, &p, slices, task)
    return block


cdef void transform_task(const real *w, Py_ssize_t group_step, Py_ssize_t row_step, Py_ssize_t channel_step, Py_ssize_t rows,
                         Py_ssize_t channels, bint rotated, real *u, const Panels *p, Py_ssize_t slices, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t b = task // slices % p.blocks
    cdef Py_ssize_t f = b * rows // p.blocks
    transform_block(w + task // slices // p.blocks * group_step + f * row_step, row_step, channel_step, (b + 1) * rows // p.blocks - f,
                    task % slices * channels // slices, (task % slices + 1) * channels // slices, rotated,
                    u + task // slices * 36 * p.plane, p)


cdef inline int useful_threads(double work, int threads) noexcept nogil:
    return <int>max(1., min(<double>threads, work / WORK_PER_THREAD))


cdef void pad_row(real *to, const real *row, Py_ssize_t start, Py_ssize_t size, Py_ssize_t n) noexcept nogil:
    """to[i] = row[start + i] for i < n, zero outside 0..size; writes up to LANES elements more."""
    cdef Py_ssize_t first = min(n, max(<Py_ssize_t>0, -start))
    cdef Py_ssize_t last = max(first, min(n, size - start))
    cdef Py_ssize_t i = 0
    while i < first:
        store(to + i, splat(0))
        i += LANES
    if first < last:
        copy_run(to + first, row + start + first, last - first)
    i = last
    while i < n:
        store(to + i, splat(0))
        i += LANES


cdef void split_row(const real *row, Py_ssize_t tiles, real *to, Py_ssize_t plane) noexcept nogil:
    """to[j * plane + t] = row[4 * t + j] for j < 6, t < tiles; reads and writes whole vectors."""
    cdef Py_ssize_t t = (ceil_div(tiles, LANES) - 1) * LANES
    cdef vec next0 = splat(row[4 * (t + LANES)])
    cdef vec next1 = splat(row[4 * (t + LANES) + 1])
    cdef vec even0, even1, odd0, odd1
    while t >= 0:
        even0 = even(load(row + 4 * t), load(row + 4 * t + LANES))
        odd0 = odd(load(row + 4 * t), load(row + 4 * t + LANES))
        even1 = even(load(row + 4 * t + 2 * LANES), load(row + 4 * t + 3 * LANES))
        odd1 = odd(load(row + 4 * t + 2 * LANES), load(row + 4 * t + 3 * LANES))
        store(to + 2 * plane + t, odd(even0, even1))
        store(to + 3 * plane + t, odd(odd0, odd1))
        even0 = even(even0, even1)
        odd0 = even(odd0, odd1)
        store(to + t, even0)
        store(to + plane + t, odd0)
        store(to + 4 * plane + t, slide(even0, next0))
        store(to + 5 * plane + t, slide(odd0, next1))
        next0 = even0
        next1 = odd0
        t -= LANES


cdef void load_tiles(const Winograd *p, const real *x_nc, Py_ssize_t y0, Py_ssize_t tile_rows, real *memory,
                     real *v) noexcept nogil:
    """The transformed tiles of one channel."""
    cdef Py_ssize_t r, y, t, tiles = tile_rows * p.tiles_x
    cdef real *cells = memory + p.strip
    for r in range(4 * tile_rows + 2):
        y = 4 * y0 + r - p.ph
        pad_row(memory + r * p.strip_pitch, x_nc + y * p.width, -p.pw, p.width if 0 <= y < p.height else 0, p.strip_pitch)
    for r in range(4 * tile_rows + 2):
        split_row(memory + r * p.strip_pitch, p.tiles_x, cells + r % 4 * 6 * p.cell_plane + r // 4 * p.tiles_x, p.cell_plane)
    t = 0
    while t < tiles:            # the last vector overlaps the one before it
        t = max(<Py_ssize_t>0, min(t, tiles - LANES))
        transform_input(cells + t, p.cell_plane, p.tiles_x, v + t, p.v_plane)
        t += LANES


cdef void multiply(const Winograd *p, const real *u, const real *v, real *m, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """m[k][f][tile] = sum over c of u[k][c][f] * v[k][c][tile] for the blocks first..last of output channels."""
    cdef Py_ssize_t vectors = p.pitch // LANES
    cdef Py_ssize_t f0 = first * p.rows // p.panels.blocks
    cdef Py_ssize_t k, b, f, rows, n, done
    cdef int j
    cdef Tile t
    t.step_a = p.step_a
    t.step_b = p.step_b
    t.steps = p.channels
    t.bias = NULL
    t.accumulate = t.relu = False
    t.out_row = p.pitch
    for j in range(MR):
        t.row[j] = j
    for k in range(36):
        t.b = v + k * p.v_plane
        for b in range(first, last):
            f = b * p.rows // p.panels.blocks
            rows = (b + 1) * p.rows // p.panels.blocks - f
            t.a = u + (b * 36 + k) * p.panels.plane
            t.out = m + k * p.m_plane + (f - f0) * p.pitch
            done = 0
            while done < vectors:
                n = most_vectors(rows)
                while n > vectors - done:
                    n //= 2
                for j in range(n):
                    t.pixel[j] = t.out_pixel[j] = (done + j) * LANES
                tile_rows(<int>rows, <int>n, &t)
                done += n


cdef vec finish_row(real *to, const real *row, Py_ssize_t n, vec bias, bint relu) noexcept nogil:
    """to[i] = row[i] + bias for i < n; NaN where one of them is not finite, else 0."""
    cdef vec y, bad = splat(0)
    cdef Py_ssize_t i = 0
    while i < n:
        if n >= LANES:
            i = min(i, n - LANES)
            y = load(row + i) + bias
            bad = bad + y * splat(0)
            store(to + i, vrelu(y) if relu else y)
        else:
            y = load_first_or_zero(row, <int>n) + bias
            bad = bad + y * splat(0)
            store_first(to, vrelu(y) if relu else y, <int>n)
        i += LANES
    return bad


cdef bint store_tiles(const Winograd *p, const real *m, real *lines, real *out_nf, Py_ssize_t y0, Py_ssize_t tile_rows, real bias) noexcept nogil:
    """The outputs of one channel from its products; whether one of them is not finite."""
    cdef Py_ssize_t i, y, t = 0, tiles = tile_rows * p.tiles_x
    cdef vec bad = splat(0)
    cdef real any_bad
    while t < tiles:
        t = max(<Py_ssize_t>0, min(t, tiles - LANES))
        transform_output(m + t, p.m_plane, lines + 4 * t, p.line)
        t += LANES
    for y in range(4 * y0, min(4 * (y0 + tile_rows), p.out_height)):
        bad = bad + finish_row(out_nf + y * p.out_width, lines + y % 4 * p.line + (y // 4 - y0) * 4 * p.tiles_x, p.out_width,
                               splat(bias), p.relu)
    any_bad = lane_sum(bad)
    return any_bad != any_bad


cdef void run_share(const Winograd *p, Py_ssize_t first, Py_ssize_t last, real *v, char *bad) noexcept nogil:
    cdef real *m = v + 36 * p.v_plane
    cdef real *memory = m + 36 * p.m_plane
    cdef const real *u
    cdef Py_ssize_t task, where, part, n0, images, y0, tile_rows, n, c, g, b, b0, b1, f, fg, loaded = -1
    for task in range(first, last):
        where = task // p.shares
        g = where % p.groups
        part = where // p.groups % p.parts
        n0 = where // p.groups // p.parts * p.images // p.joins
        images = (where // p.groups // p.parts + 1) * p.images // p.joins - n0
        y0 = part * p.tiles_y // p.parts
        tile_rows = (part + 1) * p.tiles_y // p.parts - y0
        if where != loaded:
            loaded = where
            for c in range(p.channels):
                for n in range(images):
                    load_tiles(p, p.x + (((n0 + n) * p.groups + g) * p.channels + c) * p.height * p.width, y0, tile_rows, memory,
                               v + c * p.pitch + n * p.image_tiles)
        u = p.u + g * p.panels.blocks * 36 * p.panels.plane
        b0 = task % p.shares * p.panels.blocks // p.shares
        b1 = (task % p.shares + 1) * p.panels.blocks // p.shares
        while b0 < b1:
            b = min(b0 + p.chunk, b1)
            multiply(p, u, v, m, b0, b)
            f = b0 * p.rows // p.panels.blocks
            for fg in range(f, b * p.rows // p.panels.blocks):
                for n in range(images):
                    bad[task * p.joined + n] |= store_tiles(
                        p, m + (fg - f) * p.pitch + n * p.image_tiles, memory,
                        p.out + (((n0 + n) * p.groups + g) * p.rows + fg) * p.out_height * p.out_width, y0, tile_rows,
                        p.bias[g * p.rows + fg] if p.bias != NULL else 0)
            b0 = b


cdef void plan(Winograd *p, int threads) noexcept nogil:
    cdef Py_ssize_t tiles, tasks, a, b
    p.tiles_y = ceil_div(p.out_height, 4)
    p.tiles_x = ceil_div(p.out_width, 4)
    tiles = p.tiles_y * p.tiles_x
    p.parts = min(p.tiles_y, ceil_div(tiles, TASK_TILES))
    p.task_rows = ceil_div(p.tiles_y, p.parts)
    p.image_tiles = p.task_rows * p.tiles_x
    p.joins = ceil_div(p.images, max(<Py_ssize_t>1, TASK_TILES // p.image_tiles)) if p.parts == 1 else p.images
    p.joined = ceil_div(p.images, p.joins)
    p.pitch = ceil_div(p.joined * p.image_tiles, LANES) * LANES
    tasks = p.joins * p.parts * p.groups
    p.shares = 1
    if tasks < 16 * threads:    # as many that every thread gets equally many
        a = threads
        b = tasks
        while b:
            a, b = b, a % b
        p.shares = min(p.panels.blocks, threads // a)
    p.tasks = tasks * p.shares
    p.chunk = max(<Py_ssize_t>1, PRODUCT_BYTES // (36 * p.panels.height * p.pitch * <Py_ssize_t>sizeof(real)))
    p.chunk = min(p.chunk, ceil_div(p.panels.blocks, p.shares))
    p.v_plane = padded_plane(p.channels * p.pitch + LANES)
    p.m_plane = padded_plane(p.chunk * p.panels.height * p.pitch + LANES)
    p.strip_pitch = 4 * p.tiles_x + 2
    p.strip = (4 * p.task_rows + 2) * p.strip_pitch + 5 * LANES
    p.cell_plane = padded_plane((p.task_rows + 1) * p.tiles_x + LANES)
    p.line = 4 * (p.image_tiles + LANES)


def forward(const real[:, :, :, ::1] x, bytearray u, const real[::1] bias, real[:, :, :, ::1] out, Py_ssize_t ph, Py_ssize_t pw,
            Py_ssize_t groups, bint relu, int threads, list scratch):
    """out = cross-correlation of x and the weight that was transformed to u, plus bias; relu clips it at zero.

    Return the images that have a result that is not finite, before relu.
    """
    cdef Winograd p
    cdef Py_ssize_t size, i
    cdef int part, parts
    cdef bytearray block
    cdef char *bad
    cdef real *memory
    cdef char *start
    p.x = &x[0, 0, 0, 0]
    p.u = <const real *>address(u)
    p.bias = &bias[0] if bias is not None else NULL
    p.out = &out[0, 0, 0, 0]
    p.relu = relu
    p.images = x.shape[0]
    p.groups = groups
    p.channels = x.shape[1] // groups
    p.rows = out.shape[1] // groups
    p.height = x.shape[2]
    p.width = x.shape[3]
    p.out_height = out.shape[2]
    p.out_width = out.shape[3]
    p.ph = ph
    p.pw = pw
    p.panels = panels_of(p.rows, p.channels)
    parts = useful_threads(9. * p.images * p.groups * p.rows * p.channels * p.out_height * p.out_width, threads)
    plan(&p, parts)
    parts = <int>min(<Py_ssize_t>parts, p.tasks)
    size = padded_plane(36 * (p.v_plane + p.m_plane) + max(p.strip + 24 * p.cell_plane, 4 * p.line))
    block = take(scratch, <double>size * parts * sizeof(real) + 2. * p.channels * sizeof(Py_ssize_t) + <double>p.tasks * p.joined)
    memory = <real *>address(block)
    p.step_a = <Py_ssize_t *>(memory + size * parts)
    p.step_b = p.step_a + p.channels
    bad = <char *>(p.step_b + p.channels)
    for i in range(p.channels):
        p.step_a[i] = i * p.panels.height
        p.step_b[i] = i * p.pitch
    memset(bad, 0, p.tasks * p.joined)
    with nogil:
        if parts == 1:
            run_share(&p, 0, p.tasks, memory, bad)
        else:
            for part in prange(parts, num_threads=parts, schedule="static"):
                run_share(&p, p.tasks * part // parts, p.tasks * (part + 1) // parts, memory + part * size, bad)
    found = set()
    for i in range(p.tasks * p.joined):
        if bad[i]:
            found.add(i // p.joined // p.shares // p.groups // p.parts * p.images // p.joins + i % p.joined)
    scratch.append(block)
    return sorted(found)
