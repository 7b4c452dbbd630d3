// bgmv: what each token's own adapter adds (Punica, arXiv 2310.18547).
#pragma once
#include "vectors.h"
#include <vector>

namespace {

// What the adapter of a slot adds at one site: a [layers, parts * rank, in], b [layers, rank, wide], wide over its parts.
struct Slot { const void *a, *b; int64_t rank, parts, wide, part[3]; };
struct Site { const Slot* slots; int64_t in, parts, outs[3]; };

// `next` elements further lies what the token after this one reads: it is fetched while this one is computed.
template <int MANY> inline void dots(float* h, const float* a, const float* x, int64_t in, int64_t next) {
    f16 acc[MANY];
    UNROLL for (int u = 0; u < MANY; u++) acc[u] = f16{};
    for (int64_t i = 0; i < in; i += 16) {
        f16 v = load(x + i);
        UNROLL for (int u = 0; u < MANY; u++) {
            acc[u] += v * load(a + u * in + i);
            __builtin_prefetch(a + u * in + i + next);
        }
    }
    UNROLL for (int u = 0; u < MANY; u++) h[u] = sum(acc[u]);
}

template <int MANY> inline void dots(float* h, const bfloat* a, const bfloat* x, int64_t in, int64_t next) {
    f16 acc[MANY];
    UNROLL for (int u = 0; u < MANY; u++) acc[u] = f16{};
#if defined(__AVX512BF16__)
    int64_t i = 0;
    for (; in - i >= 32; i += 32) {
        __m512bh v = (__m512bh)_mm512_loadu_si512(x + i);
        UNROLL for (int u = 0; u < MANY; u++) {
            acc[u] = (f16)_mm512_dpbf16_ps((__m512)acc[u], v, (__m512bh)_mm512_loadu_si512(a + u * in + i));
            __builtin_prefetch(a + u * in + i + next);
        }
    }
    for (; i < in; i += 16)
#else
    for (int64_t i = 0; i < in; i += 16)
#endif
    {
        f16 v = load(x + i);
        UNROLL for (int u = 0; u < MANY; u++) acc[u] += v * load(a + u * in + i);
    }
    UNROLL for (int u = 0; u < MANY; u++) h[u] = sum(acc[u]);
}

template <int WIDE, class T> inline void expand(float* y, const T* b, const float* h, int64_t rank, int64_t ld) {
    f16 acc[WIDE];
    UNROLL for (int u = 0; u < WIDE; u++) acc[u] = load(y + 16 * u);
    for (int64_t r = 0; r < rank; r++) UNROLL for (int u = 0; u < WIDE; u++) acc[u] += load(b + r * ld + 16 * u) * h[r];
    UNROLL for (int u = 0; u < WIDE; u++) store(y + 16 * u, acc[u]);
}

template <class T> inline void expand_all(float* y, const T* b, const float* h, int64_t out, int64_t rank, int64_t ld, int64_t) {
    int64_t i = 0;
    for (; out - i >= 64; i += 64) expand<4>(y + i, b + i, h, rank, ld);
    for (; i < out; i += 16) expand<1>(y + i, b + i, h, rank, ld);
}

#if defined(__AVX512BF16__)
// Two ranks at once by dot products; h goes in as the sum of two bfloat16, so no bit of weight is lost.
inline void expand_all(float* y, const bfloat* b, const float* h, int64_t out, int64_t rank, int64_t ld, int64_t next) {
    alignas(64) uint32_t high[512], low[512];
    for (int64_t r = 0; r < rank; r += 2) {
        bfloat part[4];
        for (int64_t p = 0; p < 2; p++) {
            float v = r + p < rank ? h[r + p] : 0.0f;
            set(part + p, v);
            set(part + 2 + p, v - value(part[p]));
        }
        high[r / 2] = part[0].bits | (uint32_t)part[1].bits << 16;
        low[r / 2] = part[2].bits | (uint32_t)part[3].bits << 16;
    }
    int64_t i = 0;
    for (; out - i >= 64; i += 64) {
        __m512 acc[4];
        UNROLL for (int u = 0; u < 4; u++) acc[u] = _mm512_setzero_ps();
        for (int64_t r = 0; r < rank; r += 2) {
            __m512bh more = (__m512bh)_mm512_set1_epi32(high[r / 2]), less = (__m512bh)_mm512_set1_epi32(low[r / 2]);
            UNROLL for (int u = 0; u < 2; u++) {
                __m512i first = _mm512_loadu_si512(b + r * ld + i + 32 * u);
                __m512i second = r + 1 < rank ? _mm512_loadu_si512(b + (r + 1) * ld + i + 32 * u) : _mm512_setzero_si512();
                __builtin_prefetch(b + r * ld + i + 32 * u + next);
                __builtin_prefetch(b + (r + 1) * ld + i + 32 * u + next);
                __m512bh even = (__m512bh)_mm512_unpacklo_epi16(first, second), odd = (__m512bh)_mm512_unpackhi_epi16(first, second);
                acc[2 * u] = _mm512_dpbf16_ps(_mm512_dpbf16_ps(acc[2 * u], even, more), even, less);
                acc[2 * u + 1] = _mm512_dpbf16_ps(_mm512_dpbf16_ps(acc[2 * u + 1], odd, more), odd, less);
            }
        }
        UNROLL for (int u = 0; u < 2; u++) {  // the interleaving has put outputs 0-3, 8-11, .. and 4-7, 12-15, .. together
            f16 even = (f16)acc[2 * u], odd = (f16)acc[2 * u + 1];
            float* to = y + i + 32 * u;
            store(to, load(to) + __builtin_shufflevector(even, odd, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
            store(to + 16, load(to + 16) + __builtin_shufflevector(even, odd, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31));
        }
    }
    for (; i < out; i += 16) expand<1>(y + i, b + i, h, rank, ld);
}
#endif

template <class T> void bgmv(float* y, int64_t ldy, const T* x, int64_t ldx, int64_t n, const Site& site, const int32_t* slots, int64_t layer) {
    int64_t begin[4] = {};
    for (int64_t j = 0; j < site.parts; j++) begin[j + 1] = begin[j] + site.outs[j];
#pragma omp parallel
    {
        std::vector<float> h;
#pragma omp for schedule(static)
        for (int64_t m = 0; m < n; m++) {
            const Slot& s = site.slots[slots[m]];
            int64_t rows = s.parts * s.rank, r = 0;
            if (!slots[m] || !rows) continue;
            h.resize(rows);
            const T *a = (const T*)s.a + layer * rows * site.in, *b = (const T*)s.b + layer * s.rank * s.wide;
            const Slot& other = site.slots[m + 1 < n && slots[m + 1] ? slots[m + 1] : slots[m]];
            int64_t next_a = (const T*)other.a + layer * other.parts * other.rank * site.in - a;
            int64_t next_b = (const T*)other.b + layer * other.rank * other.wide - b;
            for (; rows - r >= 8; r += 8) dots<8>(&h[r], a + r * site.in, x + m * ldx, site.in, next_a);
            for (; r < rows; r++) dots<1>(&h[r], a + r * site.in, x + m * ldx, site.in, next_a);
            for (int64_t j = 0; j < s.parts; j++) {
                expand_all(y + m * ldy + begin[s.part[j]], b, &h[j * s.rank], site.outs[s.part[j]], s.rank, s.wide, next_b);
                b += site.outs[s.part[j]];
            }
        }
    }
}

}  // namespace
