// The forward pass on a CPU: linear, rms, attend (with rotary positions), bgmv, gate, and `fn_forward`, which runs them in
// turn. C interface, no library but OpenMP. ops.py says in torch what each computes; the tests compare the two.
//
// Law: every number of a token is summed in an order that depends on the shapes alone, never on how many other tokens are
// in the call. So a row gets the same bits alone, in a batch, and however its prompt was cut into chunks.
//
// Types: activations h and weights are bfloat16 or float32; sums, y and the residual x are float32. Widths are multiples of
// 16 (with AMX the inner ones are padded to 32). Matrices are packed: blocks of 16 outputs, four to a group; in a block,
// float32 weights stand [in][16], bfloat16 ones in pairs [in / 2][16][2], which dot product instructions and tiles read.

#include "attend.h"
#include "bgmv.h"
#include "linear.h"
#include <omp.h>

namespace {

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
