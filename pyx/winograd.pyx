"""Winograd's F(4x4, 3x3): cross-correlation with 3x3 kernels, stride 1 and dilation 1, with a quarter of the products.

    out[n, f, 4*ty + i, 4*tx + j] = bias[f] + (A^T m A)[i][j],   m[k] = sum over c of u[k][f][c] * v[k][c][n, ty, tx]

for the 36 elements k of the transformed kernel u and of the transformed tile v of 6x6 inputs (winograd.pxi). A task takes
a rectangle of tiles of one image, or all tiles of some small images, and some blocks of output channels. It transforms
the tiles of all input channels; then, for each block, it transforms the kernels, multiplies with the register tile (rows
are output channels, lanes are tiles) and transforms back. It owns its output elements, whose sums over c run in order:
they do not depend on tasks, threads and batch. To transform a kernel again for each task costs less than to read it
from memory, where there is four times as much of it as of the weight.

Scratch of a thread: v of a task, m of a block of output channels, u of a block and some input channels, one channel of
the padded input. Reference: cyconv/_reference.py.
"""
from cython.parallel cimport prange

from cyconv._runtime cimport ready, useful_threads
from libc.string cimport memset
from simd cimport real, vec, LANES, MR, load, store, splat, vrelu, lane_sum, zip_low, zip_high, even, odd, slide, transpose_vectors
from mask cimport load_first_or_zero, store_first, prefetch
from scratch cimport take, address
from strip cimport copy_run, zero_run, ceil_div, padded_plane
from tile cimport Tile, tile_rows

include "winograd.pxi"


cdef enum:
    TASK_TILES = 112            # tiles that a task transforms at once
    TASK_BYTES = 1 << 23        # most bytes of v
    BLOCK_BYTES = 1 << 18       # of u
    WORK_PER_THREAD = 1 << 18   # multiply-adds of the direct sum for which another thread is worth its start


cdef struct Winograd:
    const real *x
    const real *weight
    const real *bias            # or NULL
    real *out
    bint relu, rotated
    Py_ssize_t images, groups, rows, channels       # rows, channels: output and input channels of a group
    Py_ssize_t height, width, out_height, out_width, ph, pw
    Py_ssize_t row_step, channel_step               # of the weight
    Py_ssize_t tiles_y, tiles_x
    Py_ssize_t joins, parts_y, parts_x, shares      # tasks along images, rows, columns and output channels
    Py_ssize_t tasks                                # their product and that with the groups
    Py_ssize_t joined, image_tiles                  # most images of a task, lanes between them
    Py_ssize_t pitch            # lanes of a task
    Py_ssize_t blocks, block_rows, block_channels   # blocks of output channels, most rows of one, channels of u at once
    Py_ssize_t *step_a          # [channels]
    Py_ssize_t *step_b
    Py_ssize_t u_plane, v_plane, m_plane, cell_plane, strip_pitch, strip, line      # elements


cdef struct Block:              # of tiles
    Py_ssize_t y, x, rows, columns


cdef void transform_block(const Winograd *p, Py_ssize_t g, Py_ssize_t b, Py_ssize_t first, Py_ssize_t channels,
                          real *u) noexcept nogil:
    """The kernels of block b of output channels and some input channels: u[k][c][f]."""
    cdef Py_ssize_t row = b * p.rows // p.blocks, rows = (b + 1) * p.rows // p.blocks - row
    cdef Py_ssize_t c, f
    cdef const real *weight = p.weight + g * p.rows * p.channels * 9 + row * p.row_step + first * p.channel_step
    for c in range(channels):
        for f in range(rows):
            prefetch(weight + f * p.row_step + (c + 8) * p.channel_step)
        f = 0
        while f < rows:
            transform_kernels(weight + f * p.row_step + c * p.channel_step, p.row_step, <int>min(rows - f, <Py_ssize_t>LANES),
                              p.rotated, u + c * p.block_rows + f, p.u_plane)
            f += LANES


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


cdef void load_tiles(const Winograd *p, const real *x_nc, const Block *block, real *strip, real *v) noexcept nogil:
    """The transformed tiles of one channel."""
    cdef Py_ssize_t r, y, t = 0, tiles = block.rows * block.columns, n = 4 * block.columns + 2, x = 4 * block.x - p.pw
    cdef Py_ssize_t first = min(n, max(<Py_ssize_t>0, -x)), last = max(first, min(n, p.width - x))
    cdef real *cells = strip + p.strip
    for r in range(4 * block.rows + 2):
        y = 4 * block.y + r - p.ph
        zero_run(strip + r * p.strip_pitch, n)
        if 0 <= y < p.height:
            copy_run(strip + r * p.strip_pitch + first, x_nc + y * p.width + x + first, last - first)
    for r in range(4 * block.rows + 2):
        split_row(strip + r * p.strip_pitch, block.columns, cells + r % 4 * 6 * p.cell_plane + r // 4 * block.columns, p.cell_plane)
    while t < tiles:            # the last vector overlaps the one before it
        t = max(<Py_ssize_t>0, min(t, tiles - LANES))
        transform_input(cells + t, p.cell_plane, block.columns, v + t, p.v_plane)
        t += LANES


cdef void multiply(const Winograd *p, const real *u, const real *v, real *m, Py_ssize_t rows, Py_ssize_t channels,
                   bint accumulate) noexcept nogil:
    """m[k][f][tile] = sum over c of u[k][c][f] * v[k][c][tile] for a block of output channels."""
    cdef Py_ssize_t k, done
    cdef Tile t
    cdef int j
    t.step_a = p.step_a
    t.step_b = p.step_b
    t.steps = channels
    t.bias = NULL
    t.relu = False
    t.accumulate = accumulate
    t.out_row = p.pitch
    for j in range(MR):
        t.row[j] = j
    for k in range(36):
        t.a = u + k * p.u_plane
        t.b = v + k * p.v_plane
        t.out = m + k * p.m_plane
        done = 0
        while done < p.pitch:
            t.pixel[0] = t.out_pixel[0] = done
            t.pixel[1] = t.out_pixel[1] = done + LANES
            tile_rows(<int>rows, 2 if done + LANES < p.pitch else 1, &t)
            done += 2 * LANES


cdef vec finish_row(real *to, const real *row, Py_ssize_t n, vec bias, bint relu) noexcept nogil:
    """to[i] = row[i] + bias for i < n; return lanes that are NaN if one of them is not finite, else 0."""
    cdef vec y, bad = splat(0)
    cdef Py_ssize_t i = 0
    while i < n:
        if n >= LANES:
            i = min(i, n - LANES)
            y = load(row + i) + bias
            store(to + i, vrelu(y) if relu else y)
        else:
            y = load_first_or_zero(row, <int>n) + bias
            store_first(to, vrelu(y) if relu else y, <int>n)
        bad = bad + y * splat(0)
        i += LANES
    return bad


cdef bint store_tiles(const Winograd *p, const real *m, const Block *block, real *lines, real *out_nf, real bias) noexcept nogil:
    """The outputs of one channel from its products; return whether one of them, before relu, is not finite."""
    cdef Py_ssize_t y, x = 4 * block.x, t = 0, tiles = block.rows * block.columns
    cdef vec bad = splat(0)
    cdef real total
    while t < tiles:
        t = max(<Py_ssize_t>0, min(t, tiles - LANES))
        transform_output(m + t, p.m_plane, lines + 4 * t, p.line)
        t += LANES
    for y in range(4 * block.y, min(4 * (block.y + block.rows), p.out_height)):
        bad = bad + finish_row(out_nf + y * p.out_width + x, lines + y % 4 * p.line + (y // 4 - block.y) * 4 * block.columns,
                               min(4 * block.columns, p.out_width - x), splat(bias), p.relu)
    total = lane_sum(bad)
    return total != total


cdef void run_tasks(const Winograd *p, Py_ssize_t first, Py_ssize_t last, real *v, char *bad) noexcept nogil:
    """The tasks first..last; tiles are transformed once for all shares of output channels that follow each other."""
    cdef real *m = v + 36 * p.v_plane
    cdef real *u = m + 36 * p.m_plane
    cdef real *memory = u + 36 * p.u_plane
    cdef Py_ssize_t task, i, g, n0, n1, n, c, b, f, f0, f1, loaded = -1
    cdef Block block
    for task in range(first, last):
        i = task // p.shares
        block.x = i % p.parts_x * p.tiles_x // p.parts_x
        block.columns = (i % p.parts_x + 1) * p.tiles_x // p.parts_x - block.x
        i //= p.parts_x
        block.y = i % p.parts_y * p.tiles_y // p.parts_y
        block.rows = (i % p.parts_y + 1) * p.tiles_y // p.parts_y - block.y
        i //= p.parts_y
        g = i % p.groups
        n0 = i // p.groups * p.images // p.joins
        n1 = (i // p.groups + 1) * p.images // p.joins
        if task // p.shares != loaded:
            loaded = task // p.shares
            for c in range(p.channels):
                for n in range(n0, n1):
                    load_tiles(p, p.x + ((n * p.groups + g) * p.channels + c) * p.height * p.width, &block, memory,
                               v + c * p.pitch + (n - n0) * p.image_tiles)
        for b in range(task % p.shares * p.blocks // p.shares, (task % p.shares + 1) * p.blocks // p.shares):
            f0 = b * p.rows // p.blocks
            f1 = (b + 1) * p.rows // p.blocks
            c = 0
            while c < p.channels:
                n = min(p.block_channels, p.channels - c)
                transform_block(p, g, b, c, n, u)
                multiply(p, u, v + c * p.pitch, m, f1 - f0, n, c > 0)
                c += n
            for f in range(f0, f1):
                for n in range(n0, n1):
                    if store_tiles(p, m + (f - f0) * p.pitch + (n - n0) * p.image_tiles, &block, memory,
                                   p.out + ((n * p.groups + g) * p.rows + f) * p.out_height * p.out_width,
                                   p.bias[g * p.rows + f] if p.bias != NULL else 0):
                        bad[task * p.joined + n - n0] = 1


cdef void plan(Winograd *p, int threads) noexcept nogil:
    cdef Py_ssize_t a = threads, b, rows, columns
    cdef Py_ssize_t tiles = max(1, min(TASK_TILES, TASK_BYTES // (36 * p.channels * <Py_ssize_t>sizeof(real))))
    p.tiles_y = ceil_div(p.out_height, 4)
    p.tiles_x = ceil_div(p.out_width, 4)
    p.parts_x = ceil_div(p.tiles_x, tiles)
    columns = ceil_div(p.tiles_x, p.parts_x)
    p.parts_y = ceil_div(p.tiles_y, max(1, tiles // columns))
    rows = ceil_div(p.tiles_y, p.parts_y)
    p.image_tiles = rows * columns
    p.joined = max(1, tiles // p.image_tiles) if p.parts_x * p.parts_y == 1 else 1
    p.joins = ceil_div(p.images, p.joined)
    p.joined = ceil_div(p.images, p.joins)
    p.pitch = ceil_div(p.joined * p.image_tiles, LANES) * LANES
    b = p.tasks = p.joins * p.groups * p.parts_y * p.parts_x
    while b:
        a, b = b, a % b         # in the end the greatest common divisor
    p.shares = min(p.rows, threads // a) if p.tasks < 16 * threads else 1       # as many tasks for every thread
    p.tasks *= p.shares
    p.blocks = ceil_div(ceil_div(p.rows, MR), p.shares) * p.shares
    p.block_rows = ceil_div(p.rows, p.blocks)
    p.block_channels = min(p.channels, ceil_div(BLOCK_BYTES, 36 * MR * <Py_ssize_t>sizeof(real)))
    p.u_plane = padded_plane(p.block_channels * p.block_rows + LANES)
    p.v_plane = padded_plane(p.channels * p.pitch + LANES)
    p.m_plane = padded_plane(p.block_rows * p.pitch + LANES)
    p.strip_pitch = 4 * columns + 2
    p.strip = (4 * rows + 2) * p.strip_pitch + 5 * LANES
    p.cell_plane = padded_plane((rows + 1) * columns + LANES)
    p.line = 4 * (p.image_tiles + LANES)


def forward(const real[:, :, :, ::1] x, const real[:, :, :, ::1] weight, bint rotated, const real[::1] bias,
            real[:, :, :, ::1] out, Py_ssize_t ph, Py_ssize_t pw, Py_ssize_t groups, bint relu, int threads, list scratch):
    """out = cross-correlation of x and weight, plus bias; relu clips it at zero.

    Rotated: the gradient of the x of a pass with that weight, x being its grad_out; the padding is 2 less its padding.
    Return the images that have a result that is not finite, before relu: they are to be summed directly, since a tile
    spreads what is not finite over its outputs and its sums may overflow where the direct one does not.
    """
    cdef Winograd p
    cdef Py_ssize_t size, i
    cdef int part, parts
    cdef bytearray block
    cdef char *bad
    cdef real *memory
    p.x = &x[0, 0, 0, 0]
    p.weight = &weight[0, 0, 0, 0]
    p.bias = &bias[0] if bias is not None else NULL
    p.out = &out[0, 0, 0, 0]
    p.relu = relu
    p.rotated = rotated
    p.images = x.shape[0]
    p.groups = groups
    p.rows = out.shape[1] // groups
    p.channels = x.shape[1] // groups
    p.height = x.shape[2]
    p.width = x.shape[3]
    p.out_height = out.shape[2]
    p.out_width = out.shape[3]
    p.ph = ph
    p.pw = pw
    p.row_step = 9 if rotated else 9 * p.channels
    p.channel_step = 9 * p.rows if rotated else 9
    parts = useful_threads(<double>out.size * p.channels * 9, WORK_PER_THREAD, threads, threads)
    plan(&p, parts)
    parts = <int>min(<Py_ssize_t>parts, p.tasks)
    size = padded_plane(36 * (p.u_plane + p.v_plane + p.m_plane) + max(p.strip + 24 * p.cell_plane, 4 * p.line))
    block = take(scratch, <double>size * parts * sizeof(real) + 2. * p.channels * sizeof(Py_ssize_t) + <double>p.tasks * p.joined)
    memory = <real *>address(block)
    p.step_a = <Py_ssize_t *>(memory + size * parts)
    p.step_b = p.step_a + p.channels
    bad = <char *>(p.step_b + p.channels)
    memset(bad, 0, p.tasks * p.joined)
    for i in range(p.channels):
        p.step_a[i] = i * p.block_rows
        p.step_b[i] = i * p.pitch
    with nogil:
        if parts == 1:
            run_tasks(&p, 0, p.tasks, memory, bad)
        else:
            for part in prange(parts, num_threads=ready(parts), schedule="static"):
                run_tasks(&p, p.tasks * part // parts, p.tasks * (part + 1) // parts, memory + part * size, bad)
    found = set()
    for i in range(p.tasks * p.joined):
        if bad[i]:
            found.add(i // p.joined // (p.tasks // p.joins) * p.images // p.joins + i % p.joined)
    scratch.append(block)
    return sorted(found)
