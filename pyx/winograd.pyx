"""Winograd's F(m, r): cross-correlation with stride and dilation 1 of 3x3, 5x5, 1x3 and 3x1 kernels, with fewer products.

    out[n, f, my*ty + i, mx*tx + j] = bias[f] + (A^T m A)[i][j],   m[k] = sum over c of u[k][f][c] * v[k][c][n, ty, tx]

for my x mx outputs of a tile and all elements k of the transformed kernel u and the transformed tile v of inputs
(winograd.pxi): F(4x4, 3x3) and F(2x2, 5x5) have 36 of them, F(2x2, 3x3) 16, F(4, 3) 6. A task takes a rectangle of tiles
of one image, or all tiles of some small images, and some blocks of output channels. It transforms the tiles of all input
channels; then, for each block, it transforms the kernels, multiplies with the register tile (rows are output channels, lanes are tiles)
and transforms back. It owns its output elements, whose sums over c run in order: they do not depend on tasks, threads
and batch. To transform a kernel again for each task costs less than to read it from memory, where there would be more.

winograd_weight.pxi has the gradient of the weight.

Scratch of a thread: v of a task, m of a block of output channels, u of a block and some input channels, one channel of
the padded input. Reference: cyconv/_reference.py.
"""
from cython.parallel cimport prange

from cyconv._runtime cimport ready, useful_threads
from libc.string cimport memset
from simd cimport real, vec, LANES, MR, load, store, splat, vrelu, even, odd, slide, interleave, transpose_vectors, transpose
from mask cimport load_first_or_zero, store_first, is_nan, any, split as split_by, prefetch
from scratch cimport take, address
from strip cimport copy_run, zero_run, ceil_div, padded_plane
from tile cimport Tile, tile_rows, STRIDED

include "winograd.pxi"


cdef enum:
    TASK_PRODUCTS = 112 * 36    # tiles that a task transforms at once, times the elements of one
    TASK_BYTES = 1 << 23        # most bytes of v
    BLOCK_BYTES = 1 << 18       # of u
    MOST_CHANNELS = 128         # in and out of a task of the gradient of the weight: with 256 its m leaves the caches in float64
    MOST_IMAGES = 8             # added up there before their sum goes to memory, for accuracy: docs/accuracy.md
    WORK_PER_THREAD = 1 << 18   # multiply-adds of the direct sum for which another thread is worth its start


cdef struct Winograd:
    const real *x
    const real *weight          # or grad_out
    const real *bias            # or NULL
    real *out                   # or grad_weight
    bint relu, rotated
    Py_ssize_t images, groups, rows, channels       # rows, channels: output and input channels of a group
    Py_ssize_t height, width, out_height, out_width, ph, pw
    Py_ssize_t kernel_step                          # between outputs of the weight
    Py_ssize_t taps, my, mx, ny, nx, elements       # of a kernel; outputs of a tile, its inputs along an axis and in all
    Py_ssize_t tiles_y, tiles_x, tasks
    Py_ssize_t joins, parts_y, parts_x, shares      # tasks along images, rows, columns and output channels
    Py_ssize_t joined, image_tiles, lanes, pitch    # images of a task, lanes of one, of all, between channels
    Py_ssize_t blocks, block_rows, block_channels   # blocks of output channels, most rows of one, channels of u at once
    Py_ssize_t *step_a          # [channels], or tiles
    Py_ssize_t *step_b
    Py_ssize_t u_pitch, u_plane, v_plane, m_plane, cell_plane, strip_pitch, strip, line      # elements


cdef struct Block:              # of tiles
    Py_ssize_t y, x, rows, columns


cdef inline void form_block(const int ny, const int nx, const int r, const Winograd *p, const real *weight, Py_ssize_t outputs,
                            Py_ssize_t inputs, real *u) noexcept nogil:
    """Some transformed kernels, u[k][f][c] for so many outputs f and inputs c of the weight, which the lanes are."""
    cdef Py_ssize_t f, c, n
    cdef int rx = r if nx > 1 else 1, taps = (r if ny > 1 else 1) * rx
    cdef real kernels[(25 + LANES) * LANES]
    cdef const real *weight_fc
    for f in range(outputs):
        c = 0
        while c < inputs:
            weight_fc = weight + f * p.kernel_step + c * taps
            n = min(inputs - c, <Py_ssize_t>LANES)
            if r == 3:
                load_kernels(taps, weight_fc, n, p.kernel_step * (8 if p.rotated else 1), kernels)
            else:
                load_lines(weight_fc, taps, n, taps, kernels)
            transform_kernels(ny, nx, r, kernels, rx * LANES, p.rotated, u + f * p.u_pitch + c, p.u_plane)
            c += LANES


cdef inline void load_form(const int ny, const int nx, const int r, const Winograd *p, const real *x_nc, const Block *block,
                           real *strip, real *v) noexcept nogil:
    """The transformed tiles of one channel."""
    cdef int my = outputs(ny, r), mx = outputs(nx, r)
    cdef Py_ssize_t j, y, i, t = 0, tiles = block.rows * block.columns, n = mx * block.columns + nx - mx, x = mx * block.x - p.pw
    cdef Py_ssize_t first = min(n, max(<Py_ssize_t>0, -x)), last = max(first, min(n, p.width - x))
    cdef real *cells = strip + p.strip
    cdef real *row
    for j in range(my * block.rows + ny - my):
        y = my * block.y + j - p.ph
        row = strip + j * p.strip_pitch if nx > 1 else cells + j % my * p.cell_plane + j // my * block.columns
        zero_run(row, n)
        if 0 <= y < p.height:
            i = first
            while i < last:     # the next channel's row, which begins elsewhere
                prefetch(x_nc + (p.height + y) * p.width + x + i)
                i += LANES
            copy_run(row + first, x_nc + y * p.width + x + first, last - first)
    for j in range(my * block.rows + ny - my if nx > 1 else 0):
        split_row(nx, r, strip + j * p.strip_pitch, block.columns, cells + j % my * nx * p.cell_plane + j // my * block.columns,
                  p.cell_plane)
    while t < tiles:            # the last vector overlaps the one before it
        t = max(<Py_ssize_t>0, min(t, tiles - LANES))
        transform_input(ny, nx, r, cells + t, p.cell_plane, block.columns, v + t, p.v_plane)
        t += LANES


cdef void run_tile(int rows, int vectors, const Tile *t) noexcept nogil:
    tile_rows(rows, vectors, STRIDED, t)


cdef void multiply(const Winograd *p, const real *u, const real *v, real *m, int rows, Py_ssize_t channels, bint accumulate) noexcept nogil:
    """m[k][f][tile] = sum over c of u[k][c][f] * v[k][c][tile] for a block of output channels."""
    cdef Py_ssize_t k, done
    cdef Tile t
    t.step_a, t.step_b, t.steps = p.step_a, p.step_b, channels
    t.bias, t.relu, t.accumulate, t.out_row = NULL, False, accumulate, p.pitch
    t.row_step = 1 if p.rotated else p.u_pitch
    for k in range(p.elements):
        t.a, t.b, t.out = u + k * p.u_plane, v + k * p.v_plane, m + k * p.m_plane
        done = 0
        while done < p.lanes:
            t.pixel[0] = t.out_pixel[0] = done
            t.pixel[1] = t.out_pixel[1] = done + LANES
            run_tile(rows, 2 if done + LANES < p.lanes else 1, &t)
            done += 2 * LANES


cdef inline bint store_form(const int ny, const int nx, const int r, const Winograd *p, const real *m, const Block *block,
                            real *lines, real *out_nf, real bias) noexcept nogil:
    """The outputs of one channel from its products; return whether one of them, before relu, is not finite."""
    cdef int my = outputs(ny, r), mx = outputs(nx, r)
    cdef Py_ssize_t i, y, x = mx * block.x, t = 0, tiles = block.rows * block.columns, n = min(mx * block.columns, p.out_width - x)
    cdef vec value, bad = splat(0)
    cdef const real *row
    cdef real *to
    while t < tiles:
        t = max(<Py_ssize_t>0, min(t, tiles - LANES))
        transform_output(ny, nx, r, m + t, p.m_plane, lines + mx * t, p.line)
        t += LANES
    for y in range(my * block.y, min(my * (block.y + block.rows), p.out_height)):
        row = lines + y % my * p.line + (y // my - block.y) * mx * block.columns
        to = out_nf + y * p.out_width + x
        i = 0
        while i < n:
            prefetch(to + p.out_height * p.out_width + i)       # the next channel's
            if n >= LANES:
                i = min(i, n - LANES)
                value = load(row + i) + splat(bias)
                store(to + i, vrelu(value) if p.relu else value)
            else:
                value = load_first_or_zero(row, <int>n) + splat(bias)
                store_first(to, vrelu(value) if p.relu else value, <int>n)
            bad = bad + value * splat(0)    # NaN if it is not finite
            i += LANES
    return any(is_nan(bad))


cdef void transform_block(const Winograd *p, Py_ssize_t g, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t channel, Py_ssize_t channels,
                          real *u) noexcept nogil:
    """The kernels of some output channels and input channels: rotated, they are inputs and outputs of the weight."""
    cdef Py_ssize_t f = channel if p.rotated else row, c = row if p.rotated else channel
    cdef Py_ssize_t outputs = channels if p.rotated else rows, inputs = rows if p.rotated else channels
    cdef const real *weight = p.weight + g * p.rows * p.channels * p.taps + f * p.kernel_step + c * p.taps
    if p.nx == 1: form_block(6, 1, 3, p, weight, outputs, inputs, u)
    elif p.ny == 1: form_block(1, 6, 3, p, weight, outputs, inputs, u)
    elif p.nx == 4: form_block(4, 4, 3, p, weight, outputs, inputs, u)
    elif p.mx == 2: form_block(6, 6, 5, p, weight, outputs, inputs, u)
    else: form_block(6, 6, 3, p, weight, outputs, inputs, u)


cdef void load_tiles(const Winograd *p, const real *x_nc, const Block *block, real *strip, real *v) noexcept nogil:
    if p.nx == 1: load_form(6, 1, 3, p, x_nc, block, strip, v)
    elif p.ny == 1: load_form(1, 6, 3, p, x_nc, block, strip, v)
    elif p.nx == 4: load_form(4, 4, 3, p, x_nc, block, strip, v)
    elif p.mx == 2: load_form(6, 6, 5, p, x_nc, block, strip, v)
    else: load_form(6, 6, 3, p, x_nc, block, strip, v)


cdef bint store_tiles(const Winograd *p, const real *m, const Block *block, real *lines, real *out_nf, real bias) noexcept nogil:
    if p.nx == 1: return store_form(6, 1, 3, p, m, block, lines, out_nf, bias)
    if p.ny == 1: return store_form(1, 6, 3, p, m, block, lines, out_nf, bias)
    if p.nx == 4: return store_form(4, 4, 3, p, m, block, lines, out_nf, bias)
    if p.mx == 2: return store_form(6, 6, 5, p, m, block, lines, out_nf, bias)
    return store_form(6, 6, 3, p, m, block, lines, out_nf, bias)


cdef void set_block(const Winograd *p, Py_ssize_t i, Block *block) noexcept nogil:
    """One of parts_y * parts_x blocks of an image's tiles; i counts those of other images too."""
    block.x = i % p.parts_x * p.tiles_x // p.parts_x
    block.columns = (i % p.parts_x + 1) * p.tiles_x // p.parts_x - block.x
    i //= p.parts_x
    block.y = i % p.parts_y * p.tiles_y // p.parts_y
    block.rows = (i % p.parts_y + 1) * p.tiles_y // p.parts_y - block.y


cdef void run_tasks(const Winograd *p, Py_ssize_t first, Py_ssize_t last, real *v, char *bad) noexcept nogil:
    """The tasks first..last; tiles are transformed once for all shares of output channels that follow each other."""
    cdef real *m = v + p.elements * p.v_plane
    cdef real *u = m + p.elements * p.m_plane
    cdef real *memory = u + p.elements * p.u_plane
    cdef Py_ssize_t task, i, g, n0, n1, n, c, b, f, f0, f1, loaded = -1
    cdef Block block
    for task in range(first, last):
        set_block(p, task // p.shares, &block)
        i = task // p.shares // (p.parts_y * p.parts_x)
        g = i % p.groups
        n0, n1 = i // p.groups * p.images // p.joins, (i // p.groups + 1) * p.images // p.joins
        if task // p.shares != loaded:
            loaded = task // p.shares
            for c in range(p.channels):
                for n in range(n0, n1):
                    load_tiles(p, p.x + ((n * p.groups + g) * p.channels + c) * p.height * p.width, &block, memory,
                               v + c * p.pitch + (n - n0) * p.image_tiles)
        for b in range(task % p.shares * p.blocks // p.shares, (task % p.shares + 1) * p.blocks // p.shares):
            f0, f1 = b * p.rows // p.blocks, (b + 1) * p.rows // p.blocks
            c = 0
            while c < p.channels:
                n = min(p.block_channels, p.channels - c)
                transform_block(p, g, f0, f1 - f0, c, n, u)
                multiply(p, u, v + c * p.pitch, m, <int>(f1 - f0), n, c > 0)
                c += n
            for f in range(f0, f1):
                for n in range(n0, n1):
                    if store_tiles(p, m + (f - f0) * p.pitch + (n - n0) * p.image_tiles, &block, memory,
                                   p.out + ((n * p.groups + g) * p.rows + f) * p.out_height * p.out_width,
                                   p.bias[g * p.rows + f] if p.bias != NULL else 0):
                        bad[task * p.joined + n - n0] = 1


cdef void plan_blocks(Winograd *p, Py_ssize_t channels, Py_ssize_t most_images) noexcept nogil:
    """Cut the tiles, of which so many channels are kept, into blocks, or join images of few."""
    cdef Py_ssize_t rows, columns, tiles = TASK_BYTES // (p.elements * channels * <Py_ssize_t>sizeof(real))
    tiles = max(1, min(tiles, TASK_PRODUCTS // p.elements))
    p.tiles_y, p.tiles_x = ceil_div(p.out_height, p.my), ceil_div(p.out_width, p.mx)
    p.parts_x = ceil_div(p.tiles_x, tiles)
    columns = ceil_div(p.tiles_x, p.parts_x)
    p.parts_y = ceil_div(p.tiles_y, max(1, tiles // columns))
    rows = ceil_div(p.tiles_y, p.parts_y)
    p.image_tiles = rows * columns
    p.joined = max(1, min(most_images, tiles // p.image_tiles)) if p.parts_x * p.parts_y == 1 else 1
    p.joins = ceil_div(p.images, p.joined)
    p.joined = ceil_div(p.images, p.joins)
    p.lanes = ceil_div(p.joined * p.image_tiles, LANES) * LANES
    p.pitch = padded_plane(p.lanes)
    p.strip_pitch = p.mx * columns + p.nx - p.mx
    p.strip = (p.my * rows + p.ny - p.my) * p.strip_pitch + 5 * LANES
    p.cell_plane = padded_plane((rows + (p.ny - 1) // p.my) * columns + LANES)


cdef Py_ssize_t least_shares(Py_ssize_t tasks, Py_ssize_t threads) noexcept nogil:
    """Into how many a task is to be cut for as many of them for every thread."""
    cdef Py_ssize_t a = threads, b = tasks
    while b:
        a, b = b, a % b         # in the end the greatest common divisor
    return threads // a if tasks < 16 * threads else 1


cdef void plan(Winograd *p, int threads) noexcept nogil:
    plan_blocks(p, p.channels, p.images)
    p.tasks = p.joins * p.groups * p.parts_y * p.parts_x
    p.shares = min(p.rows, least_shares(p.tasks, threads))
    p.tasks *= p.shares
    p.blocks = ceil_div(ceil_div(p.rows, MR), p.shares) * p.shares
    p.block_rows = ceil_div(p.rows, p.blocks)
    p.block_channels = min(p.channels, BLOCK_BYTES // (p.elements * MR * <Py_ssize_t>sizeof(real)) // LANES * LANES)
    p.u_pitch = ceil_div(p.block_rows if p.rotated else p.block_channels, LANES) * LANES
    p.u_plane = padded_plane((p.block_channels if p.rotated else p.block_rows) * p.u_pitch)
    p.v_plane = padded_plane(p.channels * p.pitch + LANES)
    p.m_plane = padded_plane(p.block_rows * p.pitch + LANES)
    p.line = p.mx * (p.image_tiles + LANES)


include "winograd_weight.pxi"


def forward(const real[:, :, :, ::1] x, const real[:, :, :, ::1] weight, bint rotated, Py_ssize_t outputs, const real[::1] bias,
            real[:, :, :, ::1] out, Py_ssize_t ph, Py_ssize_t pw, Py_ssize_t groups, bint relu, int threads, list scratch):
    """out = cross-correlation of x and weight, plus bias; relu clips it at zero.

    Rotated: the gradient of the x of a pass with that weight, x being its grad_out; the padding is a kernel's size - 1, less its padding.
    Return the images that have a result that is not finite, before relu: they are to be summed directly, since a tile
    spreads what is not finite over its outputs and its sums may overflow where the direct one does not.
    """
    cdef Winograd p
    cdef Py_ssize_t size, i
    cdef int part, parts
    cdef bytearray block
    cdef char *bad
    cdef real *memory
    p.x, p.weight, p.out = &x[0, 0, 0, 0], &weight[0, 0, 0, 0], &out[0, 0, 0, 0]
    p.bias = &bias[0] if bias is not None else NULL
    p.relu, p.rotated = relu, rotated
    p.images, p.groups, p.ph, p.pw = x.shape[0], groups, ph, pw
    p.rows, p.out_height, p.out_width = out.shape[1] // groups, out.shape[2], out.shape[3]
    p.channels, p.height, p.width = x.shape[1] // groups, x.shape[2], x.shape[3]
    p.taps = weight.shape[2] * weight.shape[3]
    p.kernel_step = p.taps * (p.rows if rotated else p.channels)
    p.my, p.mx = outputs if weight.shape[2] > 1 else 1, outputs if weight.shape[3] > 1 else 1
    p.ny, p.nx = p.my + weight.shape[2] - 1, p.mx + weight.shape[3] - 1
    p.elements = p.ny * p.nx
    parts = useful_threads(<double>out.size * p.channels * p.taps, WORK_PER_THREAD, threads, threads)
    plan(&p, parts)
    parts = <int>min(<Py_ssize_t>parts, p.tasks)
    size = padded_plane(p.elements * (p.u_plane + p.v_plane + p.m_plane) + max(p.strip + p.my * p.nx * p.cell_plane, p.my * p.line))
    block = take(scratch, <double>size * parts * sizeof(real) + 2. * p.channels * sizeof(Py_ssize_t) + <double>p.tasks * p.joined)
    memory = <real *>address(block)
    p.step_a = <Py_ssize_t *>(memory + size * parts)
    p.step_b = p.step_a + p.channels
    bad = <char *>(p.step_b + p.channels)
    memset(bad, 0, p.tasks * p.joined)
    for i in range(p.channels):
        p.step_a[i] = i * (p.u_pitch if rotated else 1)
        p.step_b[i] = i * p.pitch
    with nogil:
        if parts == 1:
            run_tasks(&p, 0, p.tasks, memory, bad)
        else:
            for part in prange(parts, num_threads=ready(parts), schedule="static"):
                run_tasks(&p, p.tasks * part // parts, p.tasks * (part + 1) // parts, memory + part * size, bad)
    found = {i // p.joined // (p.tasks // p.joins) * p.images // p.joins + i % p.joined for i in range(p.tasks * p.joined) if bad[i]}
    scratch.append(block)
    return sorted(found)
