// The forward pass on a CPU: linear, rms, attend (with rotary positions), bgmv, gate, and `fn_forward`, which runs them in
// turn. C interface, no library but OpenMP. ops.py says in torch what each computes; the tests compare the two.
//
// Law: every number of a token is summed in an order that depends on the shapes alone, never on how many other tokens are
// in the call. So a row gets the same bits alone, in a batch, and however its prompt was cut into chunks.
//
// Types: activations h and weights are bfloat16 or float32; sums, y and the residual x are float32. Widths are multiples of
// 16 (with AMX the inner ones are padded to 32). Matrices are packed: blocks of 16 outputs, four to a group; in a block,
// float32 weights stand [in][16], bfloat16 ones in pairs [in / 2][16][2], which dot product instructions and tiles read.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>
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

constexpr int64_t PAGE = 16;   // tokens of a page of keys and values
constexpr int64_t GROUP = 4;   // blocks of 16 outputs that are computed together: as many streams from memory

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

// -- linear ---------------------------------------------------------------------------------------------------------
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

// -- rms, gate ------------------------------------------------------------------------------------------------------
template <class T> void rms(T* h, int64_t ldh, const float* x, const T* w, int64_t n, int64_t hidden, float eps) {
#pragma omp parallel for schedule(static) if (n > 4)
    for (int64_t m = 0; m < n; m++) {
        const float* row = x + m * hidden;
        f16 squares = {};
        for (int64_t i = 0; i < hidden; i += 16) squares += load(row + i) * load(row + i);
        float scale = 1.0f / std::sqrt(sum(squares) / (float)hidden + eps);
        for (int64_t i = 0; i < hidden; i += 16) store(h + m * ldh + i, load(row + i) * scale * load(w + i));
    }
}

template <class T> void gate(T* h, int64_t ldh, const float* y, int64_t n, int64_t wide) {
#pragma omp parallel for schedule(static) if (n > 4)
    for (int64_t m = 0; m < n; m++)
        for (int64_t i = 0; i < wide; i += 16) {
            f16 left = load(y + m * 2 * wide + i), right = load(y + m * 2 * wide + wide + i);
            store(h + m * ldh + i, left / (1.0f + exponential(-left)) * right);
        }
}

// -- attend ---------------------------------------------------------------------------------------------------------
struct Heads { int64_t q, kv, dim; };
// n tokens: positions, places in the pages (page * PAGE + place), slots of adapters; pages + lists[m] are token m's pages.
struct Tokens { int64_t n; const int64_t *positions, *places, *lists; const int32_t *pages, *slots; };
struct Rotary { const float *cosine, *sine; };  // [context, dim / 2]

// Keys lie [page, kv head, dim, PAGE], values [page, kv head, PAGE, dim].
template <class T> void turn_and_store(float* q, const float* qkv, Rotary rotary, Tokens t, T* keys, T* values, Heads s) {
    int64_t half = s.dim / 2, all = s.q + 2 * s.kv;
    float scale = 1.0f / std::sqrt((float)s.dim);
#pragma omp parallel for schedule(static) if (t.n > 4)
    for (int64_t m = 0; m < t.n; m++) {
        const float *c = rotary.cosine + t.positions[m] * half, *e = rotary.sine + t.positions[m] * half, *from = qkv + m * all * s.dim;
        for (int64_t h = 0; h < s.q; h++)
            for (int64_t i = 0; i < half; i++) {
                float low = from[h * s.dim + i], high = from[h * s.dim + half + i];
                q[(m * s.q + h) * s.dim + i] = (low * c[i] - high * e[i]) * scale;
                q[(m * s.q + h) * s.dim + half + i] = (high * c[i] + low * e[i]) * scale;
            }
        int64_t page = t.places[m] / PAGE, at = t.places[m] % PAGE;
        for (int64_t h = 0; h < s.kv; h++) {
            const float *k = from + (s.q + h) * s.dim, *v = from + (s.q + s.kv + h) * s.dim;
            T *to = keys + (page * s.kv + h) * s.dim * PAGE + at, *into = values + ((page * s.kv + h) * PAGE + at) * s.dim;
            for (int64_t i = 0; i < half; i++) {
                set(to + i * PAGE, k[i] * c[i] - k[half + i] * e[i]);
                set(to + (half + i) * PAGE, k[half + i] * c[i] + k[i] * e[i]);
            }
            for (int64_t i = 0; i < s.dim; i += 16) store(into + i, load(v + i));
        }
    }
}

// scores of MANY query heads [MANY, dim] with the 16 keys of a page
template <int MANY, class T> inline void scores(float* to, int64_t ld, const float* q, const T* k, int64_t dim) {
    f16 even[MANY], odd[MANY];
    UNROLL for (int u = 0; u < MANY; u++) even[u] = odd[u] = f16{};
    for (int64_t i = 0; i < dim; i += 2) {
        f16 first = load(k + i * PAGE), second = load(k + (i + 1) * PAGE);
        UNROLL for (int u = 0; u < MANY; u++) {
            even[u] += first * q[u * dim + i];
            odd[u] += second * q[u * dim + i + 1];
        }
    }
    UNROLL for (int u = 0; u < MANY; u++) store(to + u * ld, even[u] + odd[u]);
}

// e^(w - most) in place, and 1 over their sum
inline float softmax(float* w, int64_t seen, int64_t wide) {
    for (int64_t t = seen; t < wide; t++) w[t] = -INFINITY;  // places after the token itself: any bits
    f16 highest = load(w), total = {};
    for (int64_t t = 16; t < wide; t += 16) highest = pick(load(w + t) > highest, load(w + t), highest);
    float most = highest[0];
    for (int i = 1; i < 16; i++) most = std::max(most, highest[i]);
    for (int64_t t = 0; t < wide; t += 16) {
        f16 e = exponential(load(w + t) - most);
        total += e;
        store(w + t, e);
    }
    return 1.0f / sum(total);
}

// 16 * WIDE numbers of the means of `seen` values, by MANY query heads' weights [MANY, ld]
template <int MANY, int WIDE, class T>
inline void means(T* out, const float* weights, int64_t ld, const float* whole, const T* values, const int32_t* pages, int64_t page, int64_t seen, int64_t dim) {
    f16 acc[MANY][WIDE];
    UNROLL for (int j = 0; j < MANY; j++) UNROLL for (int u = 0; u < WIDE; u++) acc[j][u] = f16{};
    for (int64_t t = 0; t < seen; t += PAGE) {
        const T* v = values + pages[t / PAGE] * page;
        int64_t many = std::min(PAGE, seen - t);
        for (int64_t i = 0; i < many; i++)
            UNROLL for (int u = 0; u < WIDE; u++) {
                f16 read = load(v + i * dim + 16 * u);
                UNROLL for (int j = 0; j < MANY; j++) acc[j][u] += read * weights[j * ld + t + i];
            }
    }
    UNROLL for (int j = 0; j < MANY; j++) UNROLL for (int u = 0; u < WIDE; u++) store(out + j * dim + 16 * u, acc[j][u] * whole[j]);
}

// weights [MANY, wide] of the keys, and what they are to be multiplied with
template <int MANY, class T>
inline void heads_of(T* out, float* w, const float* q, const T* keys, const T* values, const int32_t* pages, int64_t seen, Heads s) {
    int64_t wide = (seen + PAGE - 1) / PAGE * PAGE, page = s.kv * s.dim * PAGE, i = 0;
    float whole[MANY];
    for (int64_t t = 0; t < seen; t += PAGE) scores<MANY>(w + t, wide, q, keys + pages[t / PAGE] * page, s.dim);
    for (int j = 0; j < MANY; j++) whole[j] = softmax(w + j * wide, seen, wide);
    for (; s.dim - i >= 64; i += 64) means<MANY, 4>(out + i, w, wide, whole, values + i, pages, page, seen, s.dim);
    for (; i < s.dim; i += 16) means<MANY, 1>(out + i, w, wide, whole, values + i, pages, page, seen, s.dim);
}

// One token, the `share` query heads of one kv head, over the first `seen` keys of its pages.
template <class T> void look(T* out, const float* q, const T* keys, const T* values, const int32_t* pages, int64_t seen, int64_t share, Heads s, std::vector<float>& room) {
    room.resize(4 * (seen + PAGE));
    int64_t j = 0;
    for (; share - j >= 4; j += 4) heads_of<4>(out + j * s.dim, room.data(), q + j * s.dim, keys, values, pages, seen, s);
    for (; share - j >= 3; j += 3) heads_of<3>(out + j * s.dim, room.data(), q + j * s.dim, keys, values, pages, seen, s);
    for (; j < share; j++) heads_of<1>(out + j * s.dim, room.data(), q + j * s.dim, keys, values, pages, seen, s);
}

template <class T> void attend(T* out, int64_t ldo, float* q, const float* qkv, Rotary rotary, Tokens t, T* keys, T* values, Heads s) {
    turn_and_store(q, qkv, rotary, t, keys, values, s);
    int64_t share = s.q / s.kv;
#pragma omp parallel
    {
        std::vector<float> room;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < t.n * s.kv; job++) {
            int64_t m = job / s.kv, head = job % s.kv;
            look(out + m * ldo + head * share * s.dim, q + (m * s.q + head * share) * s.dim, keys + head * s.dim * PAGE, values + head * s.dim * PAGE,
                 t.pages + t.lists[m], t.positions[m] + 1, share, s, room);
        }
    }
}

// -- bgmv -----------------------------------------------------------------------------------------------------------
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

// -- the pass -------------------------------------------------------------------------------------------------------
struct Layer { const void *before_attention, *qkv; const float* bias; const void *o, *before_mlp, *gate_up, *down; void *keys, *values; };
struct Model { int64_t layers, hidden, intermediate, pad, adapters; Heads heads; float eps; int32_t threads; Rotary rotary; const Layer* layer; const Site* sites; const void* norm; };
struct Room { float *x, *y, *q; void* h; int64_t ldh; };  // x [n, hidden] is given and used up; y the widest output; h the widest input

template <class T> void forward(const Model& m, Tokens t, Room room) {
    Heads s = m.heads;
    int64_t q = s.q * s.dim, wide = q + 2 * s.kv * s.dim, up = 2 * m.intermediate, n = t.n, ld = room.ldh;
    T* h = (T*)room.h;
    auto padded = [&](int64_t in) { return (in + m.pad - 1) / m.pad * m.pad; };
    auto clear = [&](int64_t in) {  // weight 0 times what an earlier input left there could be NaN
        if (in != padded(in)) for (int64_t i = 0; i < n; i++) std::fill(h + i * ld + in, h + i * ld + padded(in), T{});
    };
    for (int64_t number = 0; number < m.layers; number++) {
        const Layer& w = m.layer[number];
        auto add = [&](int site, float* y, int64_t ldy) { if (m.adapters) bgmv(y, ldy, h, ld, n, m.sites[site], t.slots, number); };
        rms(h, ld, room.x, (const T*)w.before_attention, n, m.hidden, m.eps);
        clear(m.hidden);
        linear(To{room.y, wide, wide, w.bias, false}, h, ld, n, (const T*)w.qkv, padded(m.hidden));
        add(0, room.y, wide);
        attend(h, ld, room.q, room.y, m.rotary, t, (T*)w.keys, (T*)w.values, s);
        clear(q);
        linear(To{room.x, m.hidden, m.hidden, nullptr, true}, h, ld, n, (const T*)w.o, padded(q));
        add(1, room.x, m.hidden);
        rms(h, ld, room.x, (const T*)w.before_mlp, n, m.hidden, m.eps);
        clear(m.hidden);
        linear(To{room.y, up, up, nullptr, false}, h, ld, n, (const T*)w.gate_up, padded(m.hidden));
        add(2, room.y, up);
        gate(h, ld, room.y, n, m.intermediate);
        clear(m.intermediate);
        linear(To{room.x, m.hidden, m.hidden, nullptr, true}, h, ld, n, (const T*)w.down, padded(m.intermediate));
        add(3, room.x, m.hidden);
    }
    rms(h, ld, room.x, (const T*)m.norm, n, m.hidden, m.eps);
}

}  // namespace

#define EITHER(call32, call16) if (bf16) call16; else call32
typedef const float* F;
typedef const bfloat* B;
extern "C" {
// Asks for the processor's matrix unit; says which instructions bfloat16 matrices use.
const char* fn_begin() {
#if HAVE_AMX
    if ((amx = syscall(SYS_arch_prctl, 0x1023, 18) == 0)) return "amx";  // ARCH_REQ_XCOMP_PERM, tile data
#endif
#if defined(__AVX512BF16__)
    return "avx512-bf16";
#else
    return "portable";
#endif
}
void fn_threads(int threads) { omp_set_num_threads(threads); }
void fn_pack(int bf16, void* to, const void* w, int64_t out, int64_t in, int64_t wide) {
    EITHER(pack((float*)to, (F)w, out, in, wide), pack((bfloat*)to, (B)w, out, in, wide));
}
void fn_linear(int bf16, float* y, int64_t ldy, const void* x, int64_t ldx, int64_t n, const void* w, int64_t out, int64_t in, F bias, int add) {
    To to{y, ldy, out, bias, add != 0};
    EITHER(linear(to, (F)x, ldx, n, (F)w, in), linear(to, (B)x, ldx, n, (B)w, in));
}
void fn_rms(int bf16, void* h, int64_t ldh, F x, const void* w, int64_t n, int64_t hidden, float eps) {
    EITHER(rms((float*)h, ldh, x, (F)w, n, hidden, eps), rms((bfloat*)h, ldh, x, (B)w, n, hidden, eps));
}
void fn_gate(int bf16, void* h, int64_t ldh, F y, int64_t n, int64_t wide) {
    EITHER(gate((float*)h, ldh, y, n, wide), gate((bfloat*)h, ldh, y, n, wide));
}
void fn_attend(int bf16, void* out, int64_t ldo, float* q, F qkv, const Rotary* rotary, const Tokens* t, void* keys, void* values, const Heads* s) {
    EITHER(attend((float*)out, ldo, q, qkv, *rotary, *t, (float*)keys, (float*)values, *s),
           attend((bfloat*)out, ldo, q, qkv, *rotary, *t, (bfloat*)keys, (bfloat*)values, *s));
}
void fn_bgmv(int bf16, float* y, int64_t ldy, const void* x, int64_t ldx, int64_t n, const Site* site, const int32_t* slots, int64_t layer) {
    EITHER(bgmv(y, ldy, (F)x, ldx, n, *site, slots, layer), bgmv(y, ldy, (B)x, ldx, n, *site, slots, layer));
}
// h ends as the normed last hidden states.
void fn_forward(int bf16, const Model* model, const Tokens* t, const Room* room) {
    EITHER(forward<float>(*model, *t, *room), forward<bfloat>(*model, *t, *room));
}
}
