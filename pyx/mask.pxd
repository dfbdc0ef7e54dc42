# The declarations of mask.h, and what follows from them.
from simd cimport real, vec, LANES, load, store, splat

cdef extern from "mask.h" nogil:
    ctypedef int mask
    mask greater(vec a, vec b) noexcept
    mask equal(vec a, vec b) noexcept
    mask is_nan(vec a) noexcept
    mask either(mask m, mask n) noexcept
    mask both(mask m, mask n) noexcept
    bint any(mask m) noexcept
    bint not_all(mask m) noexcept
    unsigned long long bits_of(mask m) noexcept
    int first_bit "__builtin_ctzll"(unsigned long long bits) noexcept
    mask first_lanes(int n) noexcept
    mask lanes_within(Py_ssize_t first, Py_ssize_t last) noexcept
    vec load_set(const real *p, mask set) noexcept
    vec load_set_or(const real *p, mask set, vec rest) noexcept
    void store_set(real *p, vec v, mask set) noexcept
    vec add_where(mask m, vec a, vec b) noexcept
    vec pick(mask m, vec a, vec b) noexcept
    vec larger(vec a, vec b) noexcept
    real lane_max(vec v) noexcept
    vec quotient(vec a, vec c, vec inverse) noexcept
    vec first_of(vec v, int n, vec rest) noexcept
    vec load_first_or_zero(const real *p, int n) noexcept
    void store_first(real *p, vec v, int n) noexcept
    vec load_at(const real *p, Py_ssize_t n) noexcept
    enum: CAN_SLIDE
    vec slide_by(int n, vec a, vec b) noexcept
    void split "split_by"(int n, vec *v) noexcept
    void join "join_by"(int n, vec *v) noexcept
    void prefetch "__builtin_prefetch"(const real *p) noexcept
    Py_ssize_t opaque(Py_ssize_t n) noexcept
    vec held(vec v) noexcept


cdef enum:
    AHEAD = 1 << 13     # bytes that are prefetched ahead of what is read: benchmarks/pool.py, AMD Zen 5


cdef inline vec fetch(const real *x, Py_ssize_t left, real rest) noexcept nogil:
    """LANES elements of an array that is read once, `rest` for those after the first `left`."""
    if left < LANES:
        return load_set_or(x, first_lanes(<int>max(left, 0)), splat(rest))
    prefetch(x + AHEAD // <Py_ssize_t>sizeof(real))
    return held(load(x))


cdef inline vec at(const real *line, Py_ssize_t n) noexcept nogil:
    """LANES elements from line + n, where line is a multiple of a vector's size."""
    return load(line + n) if n % LANES == 0 else load_at(line + (n & -<Py_ssize_t>LANES), n & (LANES - 1))


cdef inline void put(real *out, vec v, Py_ssize_t left, const real *end) noexcept nogil:
    """Store `left` lanes. All of them where what follows up to `end` is going to be written later."""
    if left >= LANES or out + LANES <= end:
        store(out, v)
    elif left > 0:
        store_first(out, v, <int>left)


cdef inline Py_ssize_t find_nan(const real *x, Py_ssize_t n) noexcept nogil:
    """The first NaN of n elements, n if there is none."""
    cdef Py_ssize_t j = 0
    while j < n and x[j] == x[j]:
        j += 1
    return j


cdef inline Py_ssize_t find_first(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """The first of n elements that is `value`, which is among them; or the first NaN."""
    cdef Py_ssize_t j = 0, t
    cdef unsigned long long hits = 0
    while value == value:
        for t from 0 <= t < 64 by LANES:
            if t + LANES <= n - j:
                hits |= bits_of(equal(load(x + j + t), splat(value))) << t
            elif t < n - j:
                hits |= bits_of(equal(load_set_or(x + j + t, first_lanes(<int>(n - j - t)), splat(0)), splat(value))) << t
        if hits:
            return j + first_bit(hits)
        j += 64
    return find_nan(x, n)
