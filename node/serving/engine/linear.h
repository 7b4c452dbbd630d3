// linear: packed matrices times the inputs of any number of tokens.
#pragma once
#include "vectors.h"

namespace {

constexpr int64_t GROUP = 4;  // blocks of 16 outputs that are computed together: as many streams from memory
bool amx = false;

struct To { float* y; int64_t ld, out; const float* bias; bool add; };  // y (+)= sums (+ bias)

// sums [rows, blocks * 16], for outputs first ..
inline void finish(To to, const float* sums, int64_t blocks, int64_t row, int64_t rows, int64_t first) {
    for (int64_t m = 0; m < rows; m++)
        for (int64_t c = 0; c < blocks && first + 16 * c < to.out; c++) {
            float* y = to.y + (row + m) * to.ld + first + 16 * c;
            f16 v = load(sums + (m * blocks + c) * 16);
            int64_t wide = std::min<int64_t>(16, to.out - first - 16 * c);
            if (wide == 16) {
                if (to.bias) v += load(to.bias + first + 16 * c);
                store(y, to.add ? load(y) + v : v);
            } else
                for (int64_t i = 0; i < wide; i++) y[i] = (to.add ? y[i] : 0.0f) + v[i] + (to.bias ? to.bias[first + 16 * c + i] : 0.0f);
        }
}

template <int ROWS> inline void block(float* sums, const float* x, int64_t ldx, const float* w, int64_t in) {
    f16 acc[ROWS][GROUP];
    UNROLL for (int m = 0; m < ROWS; m++) UNROLL for (int c = 0; c < GROUP; c++) acc[m][c] = f16{};
    for (int64_t k = 0; k < in; k++)
        UNROLL for (int c = 0; c < GROUP; c++) {
            f16 v = load(w + (c * in + k) * 16);
            UNROLL for (int m = 0; m < ROWS; m++) acc[m][c] += v * x[m * ldx + k];
        }
    UNROLL for (int m = 0; m < ROWS; m++) UNROLL for (int c = 0; c < GROUP; c++) store(sums + (m * GROUP + c) * 16, acc[m][c]);
}

template <int ROWS> inline void block(float* sums, const bfloat* x, int64_t ldx, const bfloat* w, int64_t in) {
    f16 acc[ROWS][GROUP];
    UNROLL for (int m = 0; m < ROWS; m++) UNROLL for (int c = 0; c < GROUP; c++) acc[m][c] = f16{};
    for (int64_t k = 0; k < in; k += 2)
        UNROLL for (int c = 0; c < GROUP; c++) {
            u16 both = *(const u16u*)(w + (c * in + k) * 16);
#if defined(__AVX512BF16__)
            UNROLL for (int m = 0; m < ROWS; m++) {
                int32_t pair;
                std::memcpy(&pair, x + m * ldx + k, 4);
                acc[m][c] = (f16)_mm512_dpbf16_ps((__m512)acc[m][c], (__m512bh)both, (__m512bh)_mm512_set1_epi32(pair));
            }
#else
            f16 even = (f16)(both << 16), odd = (f16)(both & 0xffff0000u);
            UNROLL for (int m = 0; m < ROWS; m++) {
                acc[m][c] += even * value(x[m * ldx + k]);
                acc[m][c] += odd * value(x[m * ldx + k + 1]);
            }
#endif
        }
    UNROLL for (int m = 0; m < ROWS; m++) UNROLL for (int c = 0; c < GROUP; c++) store(sums + (m * GROUP + c) * 16, acc[m][c]);
}

// one group of outputs for all n tokens
template <class T> inline void group(To to, int64_t first, const T* x, int64_t ldx, int64_t n, const T* w, int64_t in) {
    alignas(64) float sums[6 * GROUP * 16];
    int64_t m = 0;
    for (; n - m >= 6; m += 6) { block<6>(sums, x + m * ldx, ldx, w, in); finish(to, sums, GROUP, m, 6, first); }
    for (; n - m >= 4; m += 4) { block<4>(sums, x + m * ldx, ldx, w, in); finish(to, sums, GROUP, m, 4, first); }
    for (; n - m >= 2; m += 2) { block<2>(sums, x + m * ldx, ldx, w, in); finish(to, sums, GROUP, m, 2, first); }
    for (; m < n; m++) { block<1>(sums, x + m * ldx, ldx, w, in); finish(to, sums, GROUP, m, 1, first); }
}

#if HAVE_AMX
struct alignas(64) Tiles {  // 0 to 3 sums, 4 and 5 tokens, 6 and 7 weights; the first 5 as tall as there are tokens
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t wide[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t tall[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    explicit Tiles(int64_t n) { for (int i = 0; i < 5; i++) tall[i] = (uint8_t)std::min<int64_t>(n, 16); }
};

// Tile loads do not wake the processor's own prefetching: without this, reading runs at half of the memory's speed.
inline void ahead(const bfloat* w) { UNROLL for (int i = 0; i < 16; i++) _mm_prefetch((const char*)(w + 2048 + 32 * i), _MM_HINT_T0); }

// The same with tiles of 16 tokens by 16 outputs: x has readable rows up to a multiple of 16, `in` is one of 32.
inline void group_amx(To to, int64_t first, const bfloat* x, int64_t ldx, int64_t n, const bfloat* w, int64_t in) {
    alignas(64) float sums[32 * GROUP * 16];
    int64_t m = 0;
    for (; n - m > 16; m += 32)  // two by two tiles: half the reads of w
        for (int64_t c = 0; c < GROUP; c += 2) {
            const bfloat *w0 = w + c * in * 16, *w1 = w0 + in * 16, *x0 = x + m * ldx, *x1 = x0 + 16 * ldx;
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            for (int64_t k = 0; k < in; k += 32) {
                if (m == 0) { ahead(w0 + k * 16); ahead(w1 + k * 16); }
                _tile_loadd(4, x0 + k, ldx * 2); _tile_loadd(6, w0 + k * 16, 64); _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, w1 + k * 16, 64); _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, x1 + k, ldx * 2); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, sums, 128); _tile_stored(1, sums + 16, 128);
            _tile_stored(2, sums + 512, 128); _tile_stored(3, sums + 528, 128);
            finish(to, sums, 2, m, std::min<int64_t>(32, n - m), first + 16 * c);
        }
    if (m < n) {
        const bfloat *x0 = x + m * ldx, *w1 = w + in * 16, *w2 = w + in * 32, *w3 = w + in * 48;
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        for (int64_t k = 0; k < in; k += 32) {
            _tile_loadd(4, x0 + k, ldx * 2);
            ahead(w + k * 16); _tile_loadd(6, w + k * 16, 64); _tile_dpbf16ps(0, 4, 6);
            ahead(w1 + k * 16); _tile_loadd(7, w1 + k * 16, 64); _tile_dpbf16ps(1, 4, 7);
            ahead(w2 + k * 16); _tile_loadd(6, w2 + k * 16, 64); _tile_dpbf16ps(2, 4, 6);
            ahead(w3 + k * 16); _tile_loadd(7, w3 + k * 16, 64); _tile_dpbf16ps(3, 4, 7);
        }
        _tile_stored(0, sums, 256); _tile_stored(1, sums + 16, 256); _tile_stored(2, sums + 32, 256); _tile_stored(3, sums + 48, 256);
        finish(to, sums, GROUP, m, n - m, first);
    }
}
#endif

template <class T> void linear(To to, const T* x, int64_t ldx, int64_t n, const T* w, int64_t in) {
    int64_t groups = (to.out + GROUP * 16 - 1) / (GROUP * 16);
#if HAVE_AMX
    if (amx && sizeof(T) == 2) {
#pragma omp parallel
        {
            Tiles shape(n);
            _tile_loadconfig(&shape);
#pragma omp for schedule(static)
            for (int64_t g = 0; g < groups; g++)
                group_amx(to, g * GROUP * 16, (const bfloat*)x, ldx, n, (const bfloat*)w + g * GROUP * 16 * in, in);
            _tile_release();
        }
        return;
    }
#endif
#pragma omp parallel for schedule(static)
    for (int64_t g = 0; g < groups; g++) group(to, g * GROUP * 16, x, ldx, n, w + g * GROUP * 16 * in, in);
}

template <class T> void pack(T* to, const T* w, int64_t out, int64_t in, int64_t wide) {
    constexpr int64_t pair = sizeof(T) == 2 ? 2 : 1;
    int64_t blocks = (out + GROUP * 16 - 1) / (GROUP * 16) * GROUP;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t k = 0; k < wide; k += pair)
            for (int64_t o = 0; o < 16; o++)
                for (int64_t p = 0; p < pair; p++)
                    to[(b * wide + k) * 16 + o * pair + p] = b * 16 + o < out && k + p < in ? w[(b * 16 + o) * in + k + p] : T{};
}

}  // namespace
