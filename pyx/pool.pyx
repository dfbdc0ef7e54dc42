"""Maximum and average pooling and their gradients over planes of D x H x W cells; 1-D and 2-D have D = 1 (H = 1).

    out[p, o] = max or sum / cells over the taps k of x[p, o*stride - before + k*dilation], along each axis

Taps outside the plane take no part. Arguments have been checked by cyconv/pool.py; arrays are flat views of C-contiguous
ones, the geometry is the packed Axis structs of window.pxi. A prange runs over parts of the output (of the gradient of x in
the backward passes); a part owns its rows, and the order in which an element is summed does not depend on the parts. Scratch
is a few lines for each thread. cyconv/_reference_pool.py is the plain version.
"""
from cython.parallel cimport prange, threadid

from cyconv._runtime cimport ready, useful_threads
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from simd cimport real, LANES, vec, load, store, splat, even, odd, zip_low, zip_high
from mask cimport mask, greater, equal, is_nan, either_nan, either, both, pick, any, larger, vmax, scalar_max, first_of, load_first, \
    store_first, split3, join3, prefetch
from scratch cimport take, address

include "window.pxi"
include "pool_lines.pxi"
include "pool_forward.pxi"
include "pool_backward.pxi"
include "pool_argmax.pxi"

cdef enum:
    ELEMENTS_PER_THREAD = 1 << 15   # of input and output for which another thread is worth its start
    PARTS_PER_THREAD = 4            # a thread that is held up leaves its parts to the others


# What a part of the work is.
cdef enum:
    FORWARD
    INDICES
    MAX_BACKWARD
    SCATTER
    AVERAGE_BACKWARD


cdef struct Work:
    int kind
    int op
    const real *x
    const real *grad_out
    const int64_t *indices
    real *out                       # the result: maxima, averages or the gradient of x
    int64_t *indices_out
    Py_ssize_t rows                 # of the result, which is what is divided among the parts
    Py_ssize_t elements             # of scratch for each thread
    Py_ssize_t parts_of_plane       # SCATTER
    Search search


cdef void run_part(const Work *w, const Pool *p, Py_ssize_t part, Py_ssize_t parts, real *memory) noexcept nogil:
    cdef Py_ssize_t task
    if w.kind == FORWARD:
        forward_part(w.op, p, w.x, w.out, part, parts, memory)
    elif w.kind == INDICES:
        indices_part(p, &w.search, w.x, w.out, w.indices_out, part, parts, memory)
    elif w.kind == MAX_BACKWARD:
        max_backward_part(p, &w.search, w.grad_out, w.x, w.out, part, parts, memory)
    elif w.kind == AVERAGE_BACKWARD:
        average_backward_part(p, w.grad_out, w.out, part, parts, memory)
    else:
        for task in range(w.rows * part // parts, w.rows * (part + 1) // parts):
            scatter_part(p, w.grad_out, w.indices, w.x, w.out, task // w.parts_of_plane, task % w.parts_of_plane, w.parts_of_plane)


cdef run(Work *w, Pool *p, int threads, list scratch):
    """Take the scratch, fill the tables and run all parts."""
    cdef Py_ssize_t part, parts = 1, tables = table_bytes(p)
    cdef bytearray block
    cdef char *arena
    threads = useful_threads(<double>p.planes * (p.in_plane + p.out_plane), ELEMENTS_PER_THREAD, threads, threads)
    w.rows = p.planes * p.d.out * p.h.out if w.kind <= INDICES else p.planes * p.d.size * p.h.size
    if w.kind == SCATTER:
        w.parts_of_plane = 1 if p.planes >= threads else min(p.d.size * p.h.size, ceil_div(threads, p.planes))
        w.rows = p.planes * w.parts_of_plane
    if threads > 1:
        parts = min(w.rows, threads * PARTS_PER_THREAD)
    w.elements = whole_lines(w.elements)
    block = take(scratch, tables + <double>threads * w.elements * sizeof(real))
    arena = <char *>address(block)
    with nogil:
        fill_tables(p, arena)
        if w.op == SUM:
            fill_cells(p)
        if w.kind == AVERAGE_BACKWARD:
            invert_cells(p)
        if parts == 1:
            run_part(w, p, 0, 1, <real *>(arena + tables))
        else:
            for part in prange(parts, num_threads=ready(threads), schedule="dynamic"):
                run_part(w, p, part, parts, <real *>(arena + tables) + threadid() * w.elements)
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
    if indices is None:
        w.elements = forward_elements(&p)
    else:
        w.kind = INDICES
        w.indices_out = &indices[0]
        if plan_search(&p, &w.search, False):
            w.elements = search_elements(&p, &w.search)
        else:
            w.search.rows_kept = 0
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
    w.elements = forward_elements(&p)
    run(&w, &p, threads, scratch)


def max_backward(const real[::1] grad_out, const real[::1] x, const int64_t[::1] indices, real[::1] grad_x, bytes geometry,
                 Py_ssize_t planes, int threads, list scratch):
    """Gradient of x from x or, unless None, from the indices. Returns False if one of them is outside: nothing is done."""
    cdef Pool p
    cdef Work w
    plan(&p, geometry, planes)
    memset(&w, 0, sizeof(Work))
    w.kind = SCATTER
    w.grad_out = &grad_out[0]
    w.out = &grad_x[0]
    if indices is not None:
        w.indices = &indices[0]
        if outside(w.indices, planes * p.out_plane, p.in_plane, -1):
            return False
    else:
        w.x = &x[0]
        if plan_search(&p, &w.search, True):
            w.kind = MAX_BACKWARD
            w.elements = search_elements(&p, &w.search)
    run(&w, &p, threads, scratch)
    return True


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
    w.elements = average_elements(&p)
    run(&w, &p, threads, scratch)
