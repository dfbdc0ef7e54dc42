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
static inline mask either(mask m, mask n) { return CAT(_kor_mask, MASK_BITS)(m, n); }
static inline mask both(mask m, mask n) { return CAT(_kand_mask, MASK_BITS)(m, n); }
static inline int any(mask m) { return m != 0; }
static inline int not_all(mask m) { return (mask)~m != 0; }
static inline unsigned long long bits_of(mask m) { return m; } /* one bit for each lane */
static inline mask first_lanes(int n) { return (mask)((1u << n) - 1); }
#else
typedef __typeof__((vec){0} < (vec){0}) mask;
static inline mask greater(vec a, vec b) { return a > b; }
static inline mask equal(vec a, vec b) { return a == b; }
static inline mask is_nan(vec a) { return a != a; }
static inline mask either(mask m, mask n) { return m | n; }
static inline mask both(mask m, mask n) { return m & n; }
#if VECTOR_BYTES == 32
static inline vec pick(mask m, vec a, vec b) { return MM(blendv_)(b, a, (vec)m); }
#else
static inline vec pick(mask m, vec a, vec b) { return (vec)(((mask)a & m) | ((mask)b & ~m)); }
#endif
static inline unsigned long long bits_of(mask m) {
#ifdef MM
    return (unsigned)MM(movemask_)((vec)m);
#else
    unsigned long long bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (unsigned long long)(m[i] & 1) << i;
    return bits;
#endif
}
static inline int any(mask m) { return bits_of(m) != 0; }
static inline int not_all(mask m) { return any(~m); }
#endif
static inline int first_bit(unsigned long long bits) { return __builtin_ctzll(bits); }

/* b where b > a, else a. */
static inline vec larger(vec a, vec b) {
#ifdef MM
    return MM(max_)(b, a); /* the second operand of equals and where one is NaN */
#else
    return pick(greater(b, a), b, a);
#endif
}

/* EACH(F): F(0), F(1), ... for all lanes. */
#if LANE_COUNT == 16
#define EACH(F) F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7), F(8), F(9), F(10), F(11), F(12), F(13), F(14), F(15)
#elif LANE_COUNT == 8
#define EACH(F) F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7)
#elif LANE_COUNT == 4
#define EACH(F) F(0), F(1), F(2), F(3)
#else
#define EACH(F) F(0), F(1)
#endif

#define LANE(i) i

/* The first n <= LANES lanes of v, from or to n elements of memory; the other lanes are those of rest, or zero. */
#if VECTOR_BYTES == 64
static inline vec first_of(vec v, int n, vec rest) { return pick(first_lanes(n), v, rest); }
static inline vec load_first(const real *p, int n, vec rest) { return MM(mask_loadu_)(rest, first_lanes(n), p); }
static inline vec load_first_or_zero(const real *p, int n) { return CAT(_mm512_maskz_loadu_, SUFFIX)(first_lanes(n), p); }
static inline void store_first(real *p, vec v, int n) { MM(mask_storeu_)(p, first_lanes(n), v); }
#else
static inline vec first_of(vec v, int n, vec rest) { return pick((vec){EACH(LANE)} < splat((real)n), v, rest); }
#if VECTOR_BYTES == 32
static inline __m256i first_lanes(int n) {
    static const int ones_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones_zeros + 8 - n * (REAL_BYTES / 4)));
}
static inline vec load_first_or_zero(const real *p, int n) { return MM(maskload_)(p, first_lanes(n)); }
static inline vec load_first(const real *p, int n, vec rest) { return first_of(load_first_or_zero(p, n), n, rest); }
static inline void store_first(real *p, vec v, int n) { MM(maskstore_)(p, first_lanes(n), v); }
#else
static inline vec load_first(const real *p, int n, vec rest) {
    real lanes[LANES];
    store(lanes, rest);
    for (int i = 0; i < n; i++) lanes[i] = p[i];
    return load(lanes);
}
static inline vec load_first_or_zero(const real *p, int n) { return load_first(p, n, splat(0)); }
static inline void store_first(real *p, vec v, int n) {
    real lanes[LANES];
    store(lanes, v);
    for (int i = 0; i < n; i++) p[i] = lanes[i];
}
#endif
#endif

/* The vector at p + n, 0 <= n < LANES, where p is a multiple of a vector's size and n = places(n). A load of 64 bytes that
 * crosses a cache line takes about three cycles (Zen 5), longer than two that do not and a permutation. */
#if VECTOR_BYTES == 64
#if REAL_BYTES == 4
#define PERMUTE _mm512_permutex2var_ps
#define PLACES(n) _mm512_add_epi32(_mm512_set1_epi32((int)(n)), (__m512i){0x100000000, 0x300000002, 0x500000004, 0x700000006, 0x900000008, 0xb0000000a, 0xd0000000c, 0xf0000000e})
#else
#define PERMUTE _mm512_permutex2var_pd
#define PLACES(n) _mm512_add_epi64(_mm512_set1_epi64(n), (__m512i){0, 1, 2, 3, 4, 5, 6, 7})
#endif
typedef __m512i place;
static inline place places(Py_ssize_t n) { return PLACES(n); }
static inline vec load_at(const real *p, place n) { return PERMUTE(load(p), n, load(p + LANES)); }
#else
typedef Py_ssize_t place;
static inline place places(Py_ssize_t n) { return n; }
static inline vec load_at(const real *p, place n) { return load(p + n); }
#endif

/* The lanes first <= i < last, of which either may lie outside the vector; load_set reads only those, the others are zero. */
static inline int lane_bound(Py_ssize_t n) { return n < 0 ? 0 : n > LANES ? LANES : (int)n; }
#if VECTOR_BYTES == 64
typedef mask lane_set;
#if REAL_BYTES == 4
typedef int lane_index __attribute__((vector_size(VECTOR_BYTES)));
static inline mask lanes_below(Py_ssize_t n) { return _mm512_cmpgt_epi32_mask(_mm512_set1_epi32((int)n), (__m512i)(lane_index){EACH(LANE)}); }
#else
typedef long long lane_index __attribute__((vector_size(VECTOR_BYTES)));
static inline mask lanes_below(Py_ssize_t n) { return _mm512_cmpgt_epi64_mask(_mm512_set1_epi64(n), (__m512i)(lane_index){EACH(LANE)}); }
#endif
static inline lane_set lanes_within(Py_ssize_t first, Py_ssize_t last) {
    return lanes_below(last < LANES ? last : LANES) & (mask)~lanes_below(first > 0 ? first : 0);
}
static inline vec load_set(const real *p, lane_set set) { return CAT(_mm512_maskz_loadu_, SUFFIX)(set, p); }
static inline vec load_set_or(const real *p, lane_set set, vec rest) { return MM(mask_loadu_)(rest, set, p); }
static inline void store_set(real *p, vec v, lane_set set) { MM(mask_storeu_)(p, set, v); }
static inline vec keep(vec v, lane_set set) { return CAT(_mm512_maskz_mov_, SUFFIX)(set, v); }
#elif VECTOR_BYTES == 32
typedef __m256i lane_set;
static inline lane_set lanes_within(Py_ssize_t first, Py_ssize_t last) {
    return _mm256_andnot_si256(first_lanes(lane_bound(first)), first_lanes(lane_bound(last)));
}
static inline vec load_set(const real *p, lane_set set) { return MM(maskload_)(p, set); }
static inline vec load_set_or(const real *p, lane_set set, vec rest) { return pick((mask)set, load_set(p, set), rest); }
static inline void store_set(real *p, vec v, lane_set set) { MM(maskstore_)(p, set, v); }
#else
typedef struct { int first, last; } lane_set;
static inline lane_set lanes_within(Py_ssize_t first, Py_ssize_t last) { return (lane_set){lane_bound(first), lane_bound(last)}; }
static __attribute__((noinline)) vec load_set(const real *p, lane_set set) { /* called at edges only, from many places */
    real lanes[LANES] __attribute__((aligned(VECTOR_BYTES))) = {0};
    for (int i = set.first; i < set.last; i++) lanes[i] = p[i];
    return load(lanes);
}
static inline int all_lanes(lane_set set) { return set.first == 0 && set.last == LANES; }
static inline vec load_set_or(const real *p, lane_set set, vec rest) {
    real lanes[LANES];
    if (all_lanes(set)) return load(p);
    store(lanes, rest);
    for (int i = set.first; i < set.last; i++) lanes[i] = p[i];
    return load(lanes);
}
static inline void store_set(real *p, vec v, lane_set set) {
    if (all_lanes(set)) store(p, v);
    else for (int i = set.first; i < set.last; i++) p[i] = v[i];
}
#endif
/* The n-th to the last lane of a and the first n of b; n is a constant. */
enum { CAN_SLIDE = VECTOR_BYTES == 64 };
#if VECTOR_BYTES == 64
#if REAL_BYTES == 4
#define slide_by(n, a, b) ((n) ? (vec)_mm512_alignr_epi32((__m512i)(b), (__m512i)(a), n) : (a))
#else
#define slide_by(n, a, b) ((n) ? (vec)_mm512_alignr_epi64((__m512i)(b), (__m512i)(a), n) : (a))
#endif
#else
#define slide_by(n, a, b) (a)
#define keep(v, set) (v)
#endif

/* The compiler forgets what it knows of n pointers, or of n: it would otherwise keep, and advance, many pointers in
 * registers in place of one index. Sums that live longer than one pass of a loop stay in registers only with `opaque`. */
#define forget(pointers, n) __asm__ volatile("" : "+m"(*(const real *(*)[n])(pointers)))
static inline Py_ssize_t opaque(Py_ssize_t n) {
    __asm__("" : "+r"(n));
    return n;
}

/* Three vectors of consecutive elements to those of index 0, 1, 2 modulo 3, and back. */
#define THIRD(i, r) (3 * (i) + (r))
#define THIRD_AB(i, r) (THIRD(i, r) < 2 * LANES ? THIRD(i, r) : 0)
#define THIRD_C(i, r) (THIRD(i, r) < 2 * LANES ? (i) : THIRD(i, r) - LANES)
#define SPLIT3(r) SHUFFLE(SHUFFLE(a, b, EACH(AB##r)), c, EACH(C##r))
#define AB0(i) THIRD_AB(i, 0)
#define AB1(i) THIRD_AB(i, 1)
#define AB2(i) THIRD_AB(i, 2)
#define C0(i) THIRD_C(i, 0)
#define C1(i) THIRD_C(i, 1)
#define C2(i) THIRD_C(i, 2)
static inline void split3(vec *v) {
    vec a = v[0], b = v[1], c = v[2];
    v[0] = SPLIT3(0);
    v[1] = SPLIT3(1);
    v[2] = SPLIT3(2);
}
#define JOIN_AB(g) ((g) % 3 == 0 ? (g) / 3 : (g) % 3 == 1 ? LANES + (g) / 3 : 0)
#define JOIN_C(i, g) ((g) % 3 == 2 ? LANES + (g) / 3 : (i))
#define JOIN3(q) SHUFFLE(SHUFFLE(a, b, EACH(JAB##q)), c, EACH(JC##q))
#define JAB0(i) JOIN_AB(i)
#define JAB1(i) JOIN_AB(LANES + (i))
#define JAB2(i) JOIN_AB(2 * LANES + (i))
#define JC0(i) JOIN_C(i, i)
#define JC1(i) JOIN_C(i, LANES + (i))
#define JC2(i) JOIN_C(i, 2 * LANES + (i))
static inline void join3(vec *v) {
    vec a = v[0], b = v[1], c = v[2];
    v[0] = JOIN3(0);
    v[1] = JOIN3(1);
    v[2] = JOIN3(2);
}

/* The same for n <= 3 vectors. */
static inline __attribute__((always_inline)) void split(int n, vec *v) {
    vec a = v[0], b = v[n > 1];
    if (n == 2) v[0] = even(a, b), v[1] = odd(a, b);
    if (n == 3) split3(v);
}
static inline __attribute__((always_inline)) void join(int n, vec *v) {
    vec a = v[0], b = v[n > 1];
    if (n == 2) v[0] = zip_low(a, b), v[1] = zip_high(a, b);
    if (n == 3) join3(v);
}

static inline void prefetch(const real *p) { __builtin_prefetch(p); }

#endif
