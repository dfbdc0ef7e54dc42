"""Maximum and average pooling and their gradients over planes of D x H x W cells; 1-D and 2-D have D = 1 (H = 1).

    out[p, o] = max or sum / cells over the taps k of x[p, o*stride - before + k*dilation], along each axis

Taps outside the plane take no part. cyconv/_pool*.py have checked the arguments; arrays are flat views of C-contiguous ones. A
prange runs over parts of the output (of the gradient of x in the backward passes); a part owns its strips of rows, or planes, and
what is computed of a strip does not depend on the parts. Scratch: some lines a thread. Reference: cyconv/_reference_pool.py.
"""
from cython.parallel cimport prange, threadid

from cyconv._runtime cimport ready, useful_threads
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from simd cimport real, LANES, HAS_MASKS, vec, load, store, splat, lane_sum, slide, slide_back
from mask cimport mask, greater, equal, is_nan, either, both, pick, any, not_all, larger, lane_max, first_of, split, join, fetch, at, put
from mask cimport lanes_within, load_set_or, store_set, add_where, quotient, opaque, prefetch, AHEAD, CAN_SLIDE, slide_by
from mask cimport find_first, find_nan
from scratch cimport take, address

cdef enum:
    ELEMENTS_PER_THREAD = 1 << 15   # of input and output for which another thread is worth its start
    ELEMENTS_UNDER_GIL = 1 << 12    # that take no longer than to let other Python threads run
    PARTS_PER_THREAD = 4            # a thread that is held up leaves its parts to the others
    RESTART = 16                    # rows after which sums restart
    SCATTER_AHEAD = 1 << 10         # indices that are prefetched: benchmarks/pool.py, AMD Zen 5
    PLANES = 64                     # that are reduced before their gradients are written


# What is computed, as cyconv/_pool.py numbers it.
cdef enum:
    MAX_FORWARD
    AVERAGE_FORWARD
    INDICES             # and maxima
    MAX_BACKWARD
    AVERAGE_BACKWARD
    SCATTER             # add elements to where their indices say
    ASSIGN              # put them there


cdef struct Work:
    int kind
    const real *x
    const real *grad_out
    const int64_t *indices
    int64_t *indices_out
    real *out           # the result: maxima, averages or the gradient of x
    Py_ssize_t rows     # of a plane of the result, and how many strips they are cut into: an element is computed in the same
    Py_ssize_t strips   # way whatever the parts are
    bint outside        # an index lies outside its plane

include "window.pxi"


# The memory of a thread. A strip is some rows of a plane, of some of its planes if it is 3-D.
cdef struct Scratch:
    real *lines             # [p.block]
    real *values            # [p.lines] lines of outputs, for the rows of a strip: maxima along w,
    real *taps              # their taps, and the gradients that go there, 0 around the outputs
    real *sums
    real *row               # lines of outputs: the distance of a maximum's row from the window's first, its tap along w
    real *tap
    real *distance          # [p.rows] under a window
    Py_ssize_t *from_first  # where in the strip they lie
    Py_ssize_t z, end_z     # the strip
    Py_ssize_t y, end_y
    bint exact              # a row of it was searched one by one

include "pool_lines.pxi"
include "pool_search.pxi"
include "pool_backward.pxi"
include "pool_forward.pxi"
include "pool_small.pxi"


cdef Py_ssize_t divide(const Pool *p, const Work *w, Scratch *s, char *memory) noexcept nogil:
    """Divide the memory of a thread, and fill what does not change; without memory only return how many bytes it needs."""
    cdef Py_ssize_t i, lines = p.block * p.line, strip = (p.lines + 1) * p.outputs + 3 * LANES
    cdef bint average = w.kind == AVERAGE_FORWARD or w.kind == AVERAGE_BACKWARD
    s.lines = <real *>memory
    s.values = s.lines + lines + p.ahead
    s.taps = s.values + strip * (not average)
    s.sums = s.taps + strip * (not average)
    s.row = s.sums + strip * (w.kind > INDICES)
    s.tap = s.row + strip * (w.kind <= INDICES and not average)
    s.distance = s.tap + strip * (w.kind <= INDICES and not average)
    s.from_first = <Py_ssize_t *>(s.distance + (p.rows + 15) // 16 * 16)
    for i in range(lines if memory != NULL else 0):
        s.lines[i] = 0 if w.kind == AVERAGE_FORWARD else -INFINITY
    for i in range(strip if memory != NULL and w.kind > INDICES else 0):
        s.sums[i - p.ahead] = 0
    return (<char *>(s.from_first + p.rows) - memory + 127) // 64 * 64


cdef void run_part(Work *w, const Pool *p, Py_ssize_t first, Py_ssize_t last, char *memory) noexcept nogil:
    """Strips of the result, counted over all planes; or planes."""
    cdef Scratch s
    cdef Py_ssize_t i, plane, row, low, high, end = last // w.strips * w.rows + last % w.strips * p.strip
    if w.kind >= SCATTER:
        if scatter_planes(w, p, first, last):
            w.outside = True        # by whichever thread: it is never set back
        return
    if p.whole:
        whole_planes(w, p, first, last)
        return
    divide(p, w, &s, memory)
    if w.kind < INDICES and (not p.small or p.direct and not HAS_MASKS):    # without masks rows that are tiled are faster so
        row = first // w.strips * w.rows + first % w.strips * p.strip
        if w.kind == MAX_FORWARD:
            combine_part(MAX, w, p, &s, row, end)
        else:
            combine_part(SUM, w, p, &s, row, end)
        return
    for i in range(first, last):
        plane = i // w.strips
        low = i % w.strips * p.strip
        high = min(low + p.strip, w.rows)
        if w.kind == INDICES or small_windows(w, p, plane, low, high):
            if w.kind > INDICES:
                backward_strip(w, p, &s, plane, low, high)
            else:
                find_indices(w, p, &s, plane * w.rows + low, plane * w.rows + high, w.indices_out)


def run(int kind, object[const real, ndim=1, mode="c"] x, object[const real, ndim=1, mode="c"] grad_out,
        object[const int64_t, ndim=1, mode="c"] indices, object[int64_t, ndim=1, mode="c"] indices_out,
        object[real, ndim=1, mode="c"] out not None, bytes tables not None, Py_ssize_t planes, object threads, list scratch):
    """One pass, of which `kind` needs some of the arrays. Returns whether an index lies outside its plane."""
    cdef Pool p
    cdef Work w
    cdef Scratch s
    cdef Py_ssize_t part, parts = 1, strips, size
    cdef int most
    cdef double elements
    cdef bytearray block
    cdef char *arena
    unpack(&p, tables)
    memset(&w, 0, sizeof(Work))
    w.kind = kind
    w.x = &x[0] if x is not None else NULL
    w.grad_out = &grad_out[0] if grad_out is not None else NULL
    w.indices = &indices[0] if indices is not None else NULL
    w.indices_out = &indices_out[0] if indices_out is not None else NULL
    w.out = &out[0]
    w.rows = w.strips = 1
    if kind < SCATTER and not p.whole:
        w.rows = p.d.out * p.h.out if kind <= INDICES else p.d.size * p.h.size
        w.strips = (w.rows + p.strip - 1) // p.strip
    strips = planes * w.strips
    elements = <double>planes * (p.in_plane + p.out_plane)
    most = 1 if elements < 2 * ELEMENTS_PER_THREAD else threads()
    most = useful_threads(elements, ELEMENTS_PER_THREAD, strips, most)
    if most > 1:
        parts = min(strips, most * PARTS_PER_THREAD)
    size = divide(&p, &w, &s, NULL)
    block = take(scratch, <double>most * size)
    arena = <char *>address(block)
    if elements < ELEMENTS_UNDER_GIL:
        run_part(&w, &p, 0, strips, arena)
    elif parts == 1:
        with nogil:
            run_part(&w, &p, 0, strips, arena)
    else:
        for part in prange(parts, num_threads=ready(most), schedule="dynamic", nogil=True):
            run_part(&w, &p, strips * part // parts, strips * (part + 1) // parts, arena + threadid() * size)
    scratch.append(block)
    return w.outside
