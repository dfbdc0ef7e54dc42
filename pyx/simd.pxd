# The declarations of simd.h. To Cython a vec is a plain float: it writes `acc + a * b`, the C compiler makes vectors of it.
cdef extern from "simd.h" nogil:
    ctypedef float real
    ctypedef float vec
    enum: LANES
    enum: MR
    enum: REGISTERS
    vec load(const real *p) noexcept
    void store(real *p, vec v) noexcept
    vec splat(real s) noexcept
    vec vrelu(vec v) noexcept
    vec zip_low(vec a, vec b) noexcept
    vec zip_high(vec a, vec b) noexcept
    vec even(vec a, vec b) noexcept
    vec odd(vec a, vec b) noexcept
    vec slide(vec a, vec b) noexcept
    real lane_sum(vec v) noexcept
