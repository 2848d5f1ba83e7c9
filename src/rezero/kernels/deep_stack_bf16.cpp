// The layers of rezero.DeepStack in bfloat16: x' = x + a relu(x W^T + b), forward and backward, as in deep_stack.cpp.
// Products are torch's own, which has them for the processor; sums over the layers, of x and of its gradient, are kept
// in float32 and are rounded where an array takes them: so a small a f is not lost beside a large x.
// L layers, B rows, D width. Arrays are contiguous and row-major: w (L,D,D), b (L,D), a (L) in float32, x and h (L,B,D).

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/core/InferenceMode.h>

#include <bit>
#include <cstdint>
#include <vector>

#include "rows.h"

namespace {

using Half = uint16_t;  // the bits of a bfloat16, the upper ones of a float32

inline float wide(Half bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

// Rounds to the nearest, of two the even one; nan stays nan.
inline Half narrow(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : rounded;
}

inline void widen(const Half* from, float* to, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = wide(from[i]);
}

inline void narrow(const float* from, Half* to, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = narrow(from[i]);
}

// A matrix that lies elsewhere.
at::Tensor matrix(const Half* data, int64_t rows, int64_t columns, int64_t stride) {
    return at::from_blob(const_cast<Half*>(data), {rows, columns}, {stride, 1}, at::kBFloat16);
}

// A step of 0 keeps nothing: each layer then reads and writes the same rows of x and of h.
void forward(Half* x, Half* h, Half* y, const Half* w, const Half* b, const float* a, int64_t L, int64_t B, int64_t D,
             int64_t step, int64_t threads) {
    over_rows(B, threads, [&](int64_t first, int64_t rows, int64_t) {
        const c10::InferenceMode guard;
        std::vector<float> sum(rows * D);
        widen(x + first * D, sum.data(), rows * D);
        for (int64_t l = 0; l < L; ++l) {
            Half* in = x + l * step + first * D;
            Half* branch = h + l * step + first * D;
            const float alpha = a[l];
            narrow(sum.data(), in, rows * D);
            at::Tensor product = matrix(branch, rows, D, D);
            // With the bias inside the branch is rounded once.
            at::addmm_out(product, matrix(b + l * D, 1, D, D), matrix(in, rows, D, D), matrix(w + l * D * D, D, D, D).t());
            for (int64_t r = 0; r < rows * D; r += D) {
#pragma omp simd
                for (int64_t d = 0; d < D; ++d) {
                    const float z = wide(branch[r + d]), f = z < 0 ? 0 : z;  // keeps nan
                    branch[r + d] = narrow(f);
                    sum[r + d] += alpha * f;
                }
            }
        }
        narrow(sum.data(), y + first * D, rows * D);
    });
}

// Takes g from the output of n layers to their input; leaves dz and, for each thread, the sums of g h.
void backward_chain(float* g, const Half* h, Half* dz, const Half* w, const float* a, double* sums, int64_t n,
                    int64_t B, int64_t D, int64_t threads) {
    over_rows(B, threads, [&](int64_t first, int64_t rows, int64_t t) {
        const c10::InferenceMode guard;
        float* gradient = g + first * D;
        std::vector<Half> product(rows * D);
        at::Tensor found = matrix(product.data(), rows, D, D);
        for (int64_t l = n - 1; l >= 0; --l) {
            const Half* branch = h + (l * B + first) * D;
            Half* out = dz + (l * B + first) * D;
            const float alpha = a[l];
            double sum = 0;
            for (int64_t r = 0; r < rows * D; r += D) {
                float row = 0;
#pragma omp simd reduction(+ : row)
                for (int64_t d = 0; d < D; ++d) {
                    const float gd = gradient[r + d], f = wide(branch[r + d]);
                    row += gd * f;
                    out[r + d] = f <= 0 ? 0 : narrow(alpha * gd);
                }
                sum += row;
            }
            sums[t * n + l] = sum;
            at::mm_out(found, matrix(out, rows, D, D), matrix(w + l * D * D, D, D, D));
#pragma omp simd
            for (int64_t i = 0; i < rows * D; ++i) gradient[i] += wide(product[i]);
        }
    });
}

void sum_rows(const Half* dz, Half* out, int64_t B, int64_t D) {
    std::vector<float> sum(D);
    for (int64_t r = 0; r < B; ++r) {
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) sum[d] += wide(dz[r * D + d]);
    }
    narrow(sum.data(), out, D);
}

}  // namespace

extern "C" void forward_bf16(Half* x, Half* h, Half* y, const Half* w, const Half* b, const float* a, int64_t L,
                             int64_t B, int64_t D, int64_t step, int64_t threads) {
    forward(x, h, y, w, b, a, L, B, D, step, threads);
}

extern "C" void backward_bf16(Half* g, const Half* x, const Half* h, Half* dz, const Half* w, const float* a, Half* dw,
                              Half* db, float* da, int64_t L, int64_t B, int64_t D, int64_t chunk, int64_t parts,
                              int64_t threads) {
    std::vector<float> sum(B * D);
    widen(g, sum.data(), B * D);
    const auto chain = [&](int64_t l0, int64_t n, double* sums) {
        backward_chain(sum.data(), h + l0 * B * D, dz, w + l0 * D * D, a + l0, sums, n, B, D, threads);
    };
    const auto weights = [&](int64_t l0, int64_t l, int64_t first, int64_t last) {
        const c10::InferenceMode guard;
        const Half* dzl = dz + l * B * D;
        at::Tensor part = matrix(dw + (l0 + l) * D * D + first * D, last - first, D, D);
        at::mm_out(part, matrix(dzl + first, B, last - first, D).t(), matrix(x + (l0 + l) * B * D, B, D, D));
        if (first == 0) sum_rows(dzl, db + (l0 + l) * D, B, D);
    };
    backward(da, L, D, chunk, parts, threads, chain, weights);
    narrow(sum.data(), g, B * D);
}
