"""Maximum and average pooling and their gradients over planes of D x H x W cells; 1-D and 2-D have D = 1 (H = 1).

    out[p, o] = max or sum / cells over the taps k of x[p, o*stride - before + k*dilation], along each axis

Taps outside the plane take no part. Arguments have been checked by cyconv/pool.py; arrays are flat views of C-contiguous
ones, the geometry is the packed Axis structs of window.pxi. A prange runs over parts of the output (of the gradient of x in
the backward passes); a part owns its rows, or planes, and the order in which an element is summed does not depend on the
parts. Scratch is a few lines for each thread. cyconv/_reference_pool.py is the plain version.
"""
from cython.parallel cimport prange, threadid

from cyconv._runtime cimport ready, useful_threads
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from simd cimport real, LANES, vec, load, store, splat, even, odd, zip_low, zip_high
from mask cimport mask, greater, equal, is_nan, either_nan, either, both, pick, any, larger, vmax, scalar_max, first_of, load_first, \
    store_first, split3, join3, prefetch, places, load_at
from scratch cimport take, address

cdef enum:
    ELEMENTS_PER_THREAD = 1 << 15   # of input and output for which another thread is worth its start
    PARTS_PER_THREAD = 4            # a thread that is held up leaves its parts to the others


include "window.pxi"


# What a part of the work is.
cdef enum:
    FORWARD
    INDICES
    MAX_BACKWARD
    AVERAGE_BACKWARD
    SCATTER


# The memory of a thread.
cdef struct Scratch:
    bint vectors            # search by vectors
    Py_ssize_t block        # rows of windows that are searched together
    real *lines
    real *flat              # a row, or a line, element by element; sums of double_taps
    real *values            # lines of outputs for the rows under windows: maxima along w
    real *taps              # their taps
    real *best              # [block] lines of outputs: maxima
    real *row               # [block] the distance of their row from the start of the window
    real *tap               # [block] their tap along w; -1 for none, and around the outputs
    real *grad              # [block] lines of outputs: gradients, 0 around them
    real *zeros             # a row
    int64_t *index          # [block] rows of outputs
    Span z                  # which windows `start` is for
    Span y
    Py_ssize_t rows         # under such a window
    real *start             # their distance from the start of the window
    Py_ssize_t *from_x      # where they are read
    real **target           # [block * rows] of rows of the gradient of x: where they are, and what is added to
    const real **given
    Py_ssize_t *room        # elements that may be written to there
    real *kept              # [p.kept] rows
    real *elsewhere         # a row for what belongs to another part


cdef struct Work:
    int kind
    int op
    const real *x
    const real *grad_out
    const int64_t *indices
    real *out                       # the result: maxima, averages or the gradient of x
    int64_t *indices_out
    bint scattered                  # MAX_BACKWARD: by indices, not by vectors
    bint assign                     # SCATTER: elements are put, not added
    bint outside                    # SCATTER: an index lies outside its plane

include "pool_lines.pxi"
include "pool_forward.pxi"
include "pool_search.pxi"
include "pool_backward.pxi"


cdef Py_ssize_t divide(const Pool *p, const Work *w, Scratch *s, char *memory) noexcept nogil:
    """Divide the memory of a thread, and fill what does not change. Without memory it returns the bytes that are wanted."""
    cdef Py_ssize_t i, lines = 0, found = 0, rows = 0, outputs = 0, line = max(max(p.w.size, p.line), p.w.out)
    memset(s, 0, sizeof(Scratch))
    s.vectors = w.kind in (INDICES, MAX_BACKWARD) and searched(p)
    s.block = search_block(p) if s.vectors else SEARCHED if w.kind == AVERAGE_BACKWARD else 1
    s.z.taps = -1
    if w.kind == FORWARD:
        lines = block_lines(p)
    elif s.vectors:
        lines = lines_of(p, rows_of(&p.h), s.block)
        found = lines * rows_of(&p.d) * p.outputs
    if w.kind >= INDICES:
        rows = p.rows
        outputs = p.outputs
    s.lines = <real *>memory
    s.flat = s.lines + lines * p.line
    s.values = s.flat + whole_lines(line + 3 * LANES)
    s.taps = s.values + found
    s.best = s.taps + found
    s.row = s.best + s.block * outputs
    s.tap = s.row + s.block * outputs
    s.grad = s.tap + s.block * outputs
    s.zeros = s.grad + s.block * outputs
    s.elsewhere = s.zeros + whole_lines(p.w.size + 4 * LANES)
    s.kept = s.elsewhere + whole_lines(p.w.size + 4 * LANES)
    s.index = <int64_t *>(s.kept + (p.kept * whole_lines(p.w.size + 4 * LANES) if w.kind > INDICES else 0))
    s.from_x = <Py_ssize_t *>(s.index + (s.block * p.w.out if rows else 0))
    s.target = <real **>(s.from_x + rows)
    s.given = <const real **>(s.target + s.block * rows)
    s.room = <Py_ssize_t *>(s.given + s.block * rows)
    s.start = <real *>(s.room + s.block * rows)
    if memory == NULL:
        return (<Py_ssize_t>(s.start + rows) + 127) // 64 * 64
    for i in range(lines * p.line):
        s.lines[i] = -INFINITY if w.op != SUM else 0
    for i in range(s.block * outputs):
        s.tap[i] = -1
        s.row[i] = 0
        s.grad[i] = 0
    for i in range(whole_lines(p.w.size + 4 * LANES) if outputs else 0):
        s.zeros[i] = s.elsewhere[i] = 0
    if outputs:
        s.tap += p.outputs_base
        s.row += p.outputs_base
        s.grad += p.outputs_base
    return 0


cdef void run_part(Work *w, const Pool *p, Py_ssize_t first, Py_ssize_t last, char *memory) noexcept nogil:
    """Rows of the result, or planes, counted over all."""
    cdef Scratch s
    cdef Py_ssize_t plane, rows = p.d.size * p.h.size
    if p.whole and w.kind == FORWARD:
        whole_part(w.op, p, w.x, w.out, first, last)
    elif p.whole and w.kind != INDICES and w.kind != SCATTER:
        whole_backward(w, p, first, last)
    elif w.kind == SCATTER:
        if scatter_planes(w, p, first, last):
            w.outside = True        # by whichever thread: it is never set back
    else:
        divide(p, w, &s, memory)
        if w.kind == FORWARD:
            forward_part(w.op, p, &s, w.x, w.out, first, last)
        elif w.kind == INDICES:
            indices_part(p, &s, w.x, w.out, w.indices_out, first, last)
        else:
            while first < last:
                plane = first // rows
                backward_plane(w, p, &s, plane, first - plane * rows, min(last - plane * rows, rows))
                first = min(last, (plane + 1) * rows)


cdef run(Work *w, Pool *p, int threads, list scratch):
    """Take the scratch, fill the tables and run all parts."""
    cdef Scratch s
    cdef Py_ssize_t part, parts = 1, rows, bytes_, tables = fill_tables(p, NULL)
    cdef bytearray block
    cdef char *arena
    rows = p.planes
    if w.kind <= INDICES and not (p.whole and w.kind == FORWARD):
        rows *= p.d.out * p.h.out
    elif w.kind != SCATTER and not p.whole:
        rows *= p.d.size * p.h.size
    threads = useful_threads(<double>p.planes * (p.in_plane + p.out_plane), ELEMENTS_PER_THREAD, rows, threads)
    if threads > 1:
        parts = min(rows, threads * PARTS_PER_THREAD)
    w.scattered = w.kind == MAX_BACKWARD and (not searched(p) or p.rows * p.w.window > MAX_ROUTED)
    bytes_ = divide(p, w, &s, NULL)
    block = take(scratch, tables + <double>threads * bytes_)
    arena = <char *>address(block)
    with nogil:
        fill_tables(p, arena)
        if w.op == SUM:
            fill_cells(p, w.kind == AVERAGE_BACKWARD)
        if parts == 1:
            run_part(w, p, 0, rows, arena + tables)
        else:
            for part in prange(parts, num_threads=ready(threads), schedule="dynamic"):
                run_part(w, p, rows * part // parts, rows * (part + 1) // parts, arena + tables + threadid() * bytes_)
    scratch.append(block)


def max_forward(const real[::1] x, real[::1] out, int64_t[::1] indices, bytes geometry, Py_ssize_t planes, int threads,
                list scratch):
    """Maxima, and their indices in the plane unless `indices` is None."""
    cdef Pool p
    cdef Work w
    plan(&p, geometry, planes)
    memset(&w, 0, sizeof(Work))
    w.op = FAST
    w.x = &x[0]
    w.out = &out[0]
    if indices is not None:
        w.kind = INDICES
        w.indices_out = &indices[0]
    run(&w, &p, threads, scratch)


def average_forward(const real[::1] x, real[::1] out, bytes geometry, Py_ssize_t planes, bint include_pad, double divisor,
                    int threads, list scratch):
    """Averages; a divisor other than 0 replaces the number of cells."""
    cdef Pool p
    cdef Work w
    plan(&p, geometry, planes)
    p.include_pad = include_pad
    p.divisor = divisor
    memset(&w, 0, sizeof(Work))
    w.op = SUM
    w.x = &x[0]
    w.out = &out[0]
    run(&w, &p, threads, scratch)


def max_backward(const real[::1] grad_out, const real[::1] x, real[::1] grad_x, bytes geometry, Py_ssize_t planes, int threads,
                 list scratch):
    """Gradient of x from x."""
    cdef Pool p
    cdef Work w
    plan(&p, geometry, planes)
    memset(&w, 0, sizeof(Work))
    w.kind = MAX_BACKWARD
    w.op = FAST
    w.grad_out = &grad_out[0]
    w.out = &grad_x[0]
    w.x = &x[0]
    run(&w, &p, threads, scratch)


def average_backward(const real[::1] grad_out, real[::1] grad_x, bytes geometry, Py_ssize_t planes, bint include_pad,
                     double divisor, int threads, list scratch):
    """Gradient of x."""
    cdef Pool p
    cdef Work w
    plan(&p, geometry, planes)
    p.include_pad = include_pad
    p.divisor = divisor
    memset(&w, 0, sizeof(Work))
    w.kind = AVERAGE_BACKWARD
    w.op = SUM
    w.grad_out = &grad_out[0]
    w.out = &grad_x[0]
    run(&w, &p, threads, scratch)


def scatter(const real[::1] grad_out, const int64_t[::1] indices, real[::1] grad_x, bytes geometry, Py_ssize_t planes,
            bint assign, int threads, list scratch):
    """Elements to their indices in planes of zeros: added, -1 for nowhere, or put there. Returns False if one is outside."""
    cdef Pool p
    cdef Work w
    plan(&p, geometry, planes)
    memset(&w, 0, sizeof(Work))
    w.kind = SCATTER
    w.op = FAST
    w.assign = assign
    w.grad_out = &grad_out[0]
    w.indices = &indices[0]
    w.out = &grad_x[0]
    run(&w, &p, threads, scratch)
    return not w.outside
