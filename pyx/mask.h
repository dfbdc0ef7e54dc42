/* Comparison masks, selection and partial vectors for the vector type of simd.h. AVX-512 has mask registers; elsewhere a
 * mask is a vector of integers, all ones where true. */
#ifndef CYCONV_MASK_H
#define CYCONV_MASK_H
#include "simd.h"

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#if REAL_BYTES == 4
#define SUFFIX ps
#define MASK_BITS 16
#else
#define SUFFIX pd
#define MASK_BITS 8
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#if VECTOR_BYTES == 64
#define MM(op) CAT(_mm512_##op, SUFFIX)
#elif VECTOR_BYTES == 32
#define MM(op) CAT(_mm256_##op, SUFFIX)
#else
#define MM(op) CAT(_mm_##op, SUFFIX)
#endif
#endif

#if VECTOR_BYTES == 64
typedef CAT(__mmask, MASK_BITS) mask;
static inline mask greater(vec a, vec b) { return CAT(MM(cmp_), _mask)(a, b, _CMP_GT_OQ); }
static inline mask equal(vec a, vec b) { return CAT(MM(cmp_), _mask)(a, b, _CMP_EQ_OQ); }
static inline mask is_nan(vec a) { return CAT(MM(cmp_), _mask)(a, a, _CMP_UNORD_Q); }
static inline vec pick(mask m, vec a, vec b) { return MM(mask_mov_)(b, m, a); }
static inline int any(mask m) { return m != 0; }
static inline mask first_lanes(int n) { return (mask)((1u << n) - 1); }
#else
typedef __typeof__((vec){0} < (vec){0}) mask;
static inline mask greater(vec a, vec b) { return a > b; }
static inline mask equal(vec a, vec b) { return a == b; }
static inline mask is_nan(vec a) { return a != a; }
#if VECTOR_BYTES == 32
static inline vec pick(mask m, vec a, vec b) { return MM(blendv_)(b, a, (vec)m); }
#else
static inline vec pick(mask m, vec a, vec b) { return (vec)(((mask)a & m) | ((mask)b & ~m)); }
#endif
#if defined(__SSE2__)
static inline int any(mask m) { return MM(movemask_)((vec)m) != 0; }
#else
static inline int any(mask m) {
    int found = 0;
    for (int i = 0; i < LANES; i++) found |= m[i] != 0;
    return found;
}
#endif
#endif

/* b where b > a, else a. */
static inline vec larger(vec a, vec b) {
#ifdef MM
    return MM(max_)(b, a); /* the second operand of equals and where one is NaN */
#else
    return pick(greater(b, a), b, a);
#endif
}
/* The maximum; NaN wins, of equal values a. */
static inline vec vmax(vec a, vec b) { return pick(is_nan(b), b, larger(a, b)); }
static inline real scalar_max(real a, real b) { return b > a || b != b ? b : a; }

/* The first n <= LANES lanes, from or to n elements of memory; the other lanes are those of rest, or zero. */
#if VECTOR_BYTES == 64
static inline vec load_first(const real *p, int n, vec rest) { return MM(mask_loadu_)(rest, first_lanes(n), p); }
static inline vec load_first_or_zero(const real *p, int n) { return CAT(_mm512_maskz_loadu_, SUFFIX)(first_lanes(n), p); }
static inline void store_first(real *p, vec v, int n) { MM(mask_storeu_)(p, first_lanes(n), v); }
#else
#if VECTOR_BYTES == 32
static inline __m256i first_lanes(int n) {
    static const int ones_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones_zeros + 8 - n * (REAL_BYTES / 4)));
}
static inline vec load_first_or_zero(const real *p, int n) { return MM(maskload_)(p, first_lanes(n)); }
static inline void store_first(real *p, vec v, int n) { MM(maskstore_)(p, first_lanes(n), v); }
#else
static inline vec load_first_or_zero(const real *p, int n) {
    real lanes[LANES] = {0};
    for (int i = 0; i < n; i++) lanes[i] = p[i];
    return load(lanes);
}
static inline void store_first(real *p, vec v, int n) {
    real lanes[LANES];
    store(lanes, v);
    for (int i = 0; i < n; i++) p[i] = lanes[i];
}
#endif
static inline vec load_first(const real *p, int n, vec rest) {
    real lanes[LANES];
    store(lanes, rest);
    for (int i = 0; i < n; i++) lanes[i] = p[i];
    return load(lanes);
}
#endif

#endif
