// Sixteen numbers at a time, of float32 or bfloat16, on any processor that the compiler knows.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAVE_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#define UNROLL _Pragma("GCC unroll 16")

namespace {

typedef float f16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));
typedef float f16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t u16u __attribute__((vector_size(64), aligned(2), may_alias));
typedef uint16_t h16u __attribute__((vector_size(32), aligned(2), may_alias));
struct bfloat { uint16_t bits; };

inline f16 load(const float* p) { return *(const f16u*)p; }
inline f16 load(const bfloat* p) { return (f16)(__builtin_convertvector(*(const h16u*)p, u16) << 16); }
inline void store(float* p, f16 v) { *(f16u*)p = v; }
inline void store(bfloat* p, f16 v) {  // to the nearest, ties to even; NaN stays NaN
    u16 bits = (u16)v, sound = (u16)(v == v);
    u16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(h16u*)p = __builtin_convertvector((rounded & sound) | (~sound & 0x7fc0), h16);
}
inline float value(float v) { return v; }
inline float value(bfloat v) { uint32_t b = (uint32_t)v.bits << 16; float f; std::memcpy(&f, &b, 4); return f; }
inline void set(float* p, float v) { *p = v; }
inline void set(bfloat* p, float v) {
    uint32_t b;
    std::memcpy(&b, &v, 4);
    p->bits = v == v ? (uint16_t)((b + 0x7fff + ((b >> 16) & 1)) >> 16) : 0x7fc0;
}
inline float sum(f16 v) {  // halves onto halves: the same order everywhere
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
}
inline f16 pick(i16 where, f16 yes, f16 no) { return (f16)(((i16)yes & where) | ((i16)no & ~where)); }
// e^x to 2 ulp (Cephes' expf); below -87 it is 0, NaN stays NaN
inline f16 exponential(f16 x) {
    i16 tiny = x < -87.0f, large = x > 88.0f;
    f16 v = pick(tiny, f16{} - 87.0f, pick(large, f16{} + 88.0f, x));
    f16 turns = v * 1.44269504088896341f;
    i16 whole = __builtin_convertvector(turns + pick(turns < 0.0f, f16{} - 0.5f, f16{} + 0.5f), i16);
    turns = __builtin_convertvector(whole, f16);
    v = v - turns * 0.693359375f + turns * 2.12194440e-4f;
    f16 p = v * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * v + 8.3334519073e-3f;
    p = p * v + 4.1665795894e-2f;
    p = p * v + 1.6666665459e-1f;
    p = p * v + 5.0000001201e-1f;
    p = p * v * v + v + 1.0f;
    return pick(x == x, pick(tiny, f16{}, p * (f16)((whole + 127) << 23)), x);
}

}  // namespace
