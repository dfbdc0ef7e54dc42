/* Comparison masks, selection and partial vectors for the vector type of simd.h. AVX-512 has mask registers; elsewhere a
 * mask is a vector of integers, all ones where true. */
#ifndef CYCONV_MASK_H
#define CYCONV_MASK_H
#include "simd.h"

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#if REAL_BYTES == 4
#define SUFFIX ps
#define INTEGERS epi32
#define MASK_BITS 16
#else
#define SUFFIX pd
#define INTEGERS epi64
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

/* first_lanes: those of a number less than n; load_set, store_set: those lanes of memory alone, the others are zero or of rest. */
#define NUMBERS ((integers){EACH(NEXT, 0)}) /* of the lanes */
#if VECTOR_BYTES == 64
typedef CAT(__mmask, MASK_BITS) mask;
static inline mask greater(vec a, vec b) { return CAT(MM(cmp_), _mask)(a, b, _CMP_GT_OQ); }
static inline mask equal(vec a, vec b) { return CAT(MM(cmp_), _mask)(a, b, _CMP_EQ_OQ); }
static inline mask is_nan(vec a) { return CAT(MM(cmp_), _mask)(a, a, _CMP_UNORD_Q); }
static inline vec pick(mask m, vec a, vec b) { return MM(mask_mov_)(b, m, a); }
static inline vec keep(vec v, mask m) { return MM(maskz_mov_)(m, v); }
static inline vec add_where(mask m, vec a, vec b) { return MM(mask_add_)(a, m, a, b); }
static inline mask either(mask m, mask n) { return CAT(_kor_mask, MASK_BITS)(m, n); } /* | would leave the mask registers */
static inline mask both(mask m, mask n) { return CAT(_kand_mask, MASK_BITS)(m, n); }
static inline unsigned long long bits_of(mask m) { return m; } /* one bit for each lane */
static inline mask first_lanes(int n) { return CAT(CAT(_mm512_cmplt_, INTEGERS), _mask)((__m512i)NUMBERS, (__m512i)(n - (integers){0})); }
static inline vec load_set(const real *p, mask set) { return MM(maskz_loadu_)(set, p); }
static inline vec load_set_or(const real *p, mask set, vec rest) { return MM(mask_loadu_)(rest, set, p); }
static inline void store_set(real *p, vec v, mask set) { MM(mask_storeu_)(p, set, v); }
#else
typedef integers mask;
static inline mask greater(vec a, vec b) { return a > b; }
static inline mask equal(vec a, vec b) { return a == b; }
static inline mask is_nan(vec a) { return a != a; }
static inline vec keep(vec v, mask m) { return (vec)((mask)v & m); }
static inline vec add_where(mask m, vec a, vec b) { return a + keep(b, m); }
static inline mask either(mask m, mask n) { return m | n; }
static inline mask both(mask m, mask n) { return m & n; }
static inline mask first_lanes(int n) { return NUMBERS < n; }
static inline unsigned long long bits_of(mask m) {
#ifdef MM
    return (unsigned)MM(movemask_)((vec)m);
#else
    unsigned long long bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (unsigned long long)(m[i] & 1) << i;
    return bits;
#endif
}
#if VECTOR_BYTES == 32
static inline vec pick(mask m, vec a, vec b) { return MM(blendv_)(b, a, (vec)m); }
static inline vec load_set(const real *p, mask set) { return MM(maskload_)(p, (__m256i)set); }
static inline void store_set(real *p, vec v, mask set) { MM(maskstore_)(p, (__m256i)set, v); }
#else
static inline vec pick(mask m, vec a, vec b) { return (vec)(((mask)a & m) | ((mask)b & ~m)); }
static __attribute__((noinline)) vec load_part(const real *p, mask set) { /* at edges only, from many places */
    vec v = {0};
    for (int i = 0; i < LANES; i++) v[i] = set[i] ? p[i] : 0;
    return v;
}
static inline vec load_set(const real *p, mask set) { return bits_of(~set) ? load_part(p, set) : load(p); }
static inline void store_set(real *p, vec v, mask set) {
    for (int i = 0; i < LANES; i++)
        if (set[i]) p[i] = v[i];
}
#endif
static inline vec load_set_or(const real *p, mask set, vec rest) { return pick(set, load_set(p, set), rest); }
#endif
static inline int any(mask m) { return bits_of(m) != 0; }
static inline int not_all(mask m) { return any(~m); }

/* b where b > a, else a. */
static inline vec larger(vec a, vec b) {
#ifdef MM
    return MM(max_)(b, a); /* the second operand of equals and where one is NaN */
#else
    return pick(greater(b, a), b, a);
#endif
}

/* The largest of the lanes. */
#define TURN(i, n) ((i) + (n)) % LANES
static inline real lane_max(vec v) {
    v = larger(v, SHUFFLE(v, v, EACH(TURN, LANES / 2)));
    v = larger(v, SHUFFLE(v, v, EACH(TURN, LANES / 4)));
    v = larger(v, SHUFFLE(v, v, EACH(TURN, LANES / 8)));
    return larger(v, SHUFFLE(v, v, EACH(TURN, LANES / 16)))[0];
}

/* a / c, of normal numbers rounded as by a division, which would take four times as long. */
static inline vec quotient(vec a, vec c, vec inverse) {
#if defined(MM) && defined(__FMA__)
    vec q = a * inverse, rest = MM(fnmadd_)(q, c, a);
    return pick(is_nan(rest), q, MM(fmadd_)(rest, inverse, q)); /* inf leaves no rest */
#else
    return a / c;
#endif
}

/* The first n <= LANES lanes of v, from or to n elements of memory; the other lanes are those of rest, or zero. */
static inline vec first_of(vec v, int n, vec rest) { return pick(first_lanes(n), v, rest); }
static inline vec load_first_or_zero(const real *p, int n) { return load_set(p, first_lanes(n)); }
static inline void store_first(real *p, vec v, int n) { store_set(p, v, first_lanes(n)); }

/* The lanes first <= i < last, of which either may lie outside the vector. With AVX2 from a table, most often without a look into
 * it: with comparisons the gradient of the weight of 3x3 windows takes a third longer. */
static inline mask lanes_within(Py_ssize_t first, Py_ssize_t last) {
#if VECTOR_BYTES == 32
    static const int ones_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    int begin = first < 0 ? 0 : first > LANES ? LANES : (int)first, end = last < 0 ? 0 : last > LANES ? LANES : (int)last;
    const int *before = ones_zeros + 8 - begin * (REAL_BYTES / 4), *within = ones_zeros + 8 - end * (REAL_BYTES / 4);
    return (mask)_mm256_andnot_si256(_mm256_loadu_si256((const __m256i *)before), _mm256_loadu_si256((const __m256i *)within));
#else
    return first_lanes((int)(last < LANES ? last : LANES)) & ~first_lanes((int)(first > 0 ? first : 0));
#endif
}

/* The vector at p + n, 0 <= n < LANES, where p is a multiple of a vector's size. A load of 64 bytes that crosses a cache line
 * takes about three cycles (Zen 5), longer than two that do not and a permutation. */
static inline vec load_at(const real *p, Py_ssize_t n) {
#if VECTOR_BYTES == 64
    return MM(permutex2var_)(load(p), (__m512i)(NUMBERS + (int)n), load(p + LANES));
#else
    return load(p + n);
#endif
}

/* The n-th to the last lane of a and the first n of b; n is at most 6 where that is faster than to load them, otherwise 2. */
enum { CAN_SLIDE = VECTOR_BYTES == 64 };
static inline vec slide_by(int n, vec a, vec b) {
#if VECTOR_BYTES == 64
#define SLIDE(n) (vec)CAT(_mm512_alignr_, INTEGERS)((__m512i)b, (__m512i)a, n)
    if (n > 2) return n == 3 ? SLIDE(3) : n == 4 ? SLIDE(4) : n == 5 ? SLIDE(5) : SLIDE(6);
#else
#define SLIDE(n) (vec)SHUFFLE(a, b, EACH(NEXT, n))
#endif
    return n == 0 ? a : n == 1 ? SLIDE(1) : SLIDE(2);
}

/* The compiler forgets what it knows of n. Sums that live longer than one pass of a loop stay in registers only with it. */
static inline Py_ssize_t opaque(Py_ssize_t n) {
    __asm__("" : "+r"(n));
    return n;
}

/* A vector in a register. Of one that is used a few times the compiler might otherwise make as many loads, or keep it in memory. */
static inline vec held(vec v) {
#if defined(__SSE2__)
    __asm__("" : "+v"(v));
#endif
    return v;
}

/* n <= 3 vectors of consecutive elements to those of index 0, 1, 2 modulo n, and back. Of three, what is in the first two
 * comes first, then what is in the last. */
#define SPLIT_AB(i, r) (3 * (i) + (r) < 2 * LANES ? 3 * (i) + (r) : 0)
#define SPLIT_C(i, r) (3 * (i) + (r) < 2 * LANES ? (i) : 3 * (i) + (r) - LANES)
#define SPLIT(r) SHUFFLE(SHUFFLE(a, b, EACH(SPLIT_AB, r)), c, EACH(SPLIT_C, r))
#define JOIN_AB(i, r) (((i) + (r)) % 3 < 2 ? ((i) + (r)) / 3 + ((i) + (r)) % 3 * LANES : 0)
#define JOIN_C(i, r) (((i) + (r)) % 3 < 2 ? (i) : ((i) + (r)) / 3 + LANES)
#define JOIN(r) SHUFFLE(SHUFFLE(a, b, EACH(JOIN_AB, r)), c, EACH(JOIN_C, r))
static inline __attribute__((always_inline)) void split_by(int n, vec *v) {
    vec a = v[0], b = v[n > 1], c = v[n > 2 ? 2 : 0];
    if (n == 2) v[0] = even(a, b), v[1] = odd(a, b);
    if (n == 3) v[0] = SPLIT(0), v[1] = SPLIT(1), v[2] = SPLIT(2);
}
static inline __attribute__((always_inline)) void join_by(int n, vec *v) {
    vec a = v[0], b = v[n > 1], c = v[n > 2 ? 2 : 0];
    if (n == 2) v[0] = zip_low(a, b), v[1] = zip_high(a, b);
    if (n == 3) v[0] = JOIN(0), v[1] = JOIN(LANES), v[2] = JOIN(2 * LANES);
}

#endif
