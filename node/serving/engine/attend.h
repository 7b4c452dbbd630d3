// attend: rotary positions, storing of keys and values in pages, and causal attention over a row's pages.
#pragma once
#include "vectors.h"
#include <vector>

namespace {

constexpr int64_t PAGE = 16;  // tokens of a page of keys and values

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

}  // namespace
