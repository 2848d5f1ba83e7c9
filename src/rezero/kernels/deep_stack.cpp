// The layers of rezero.DeepStack, x' = x + a relu(x W^T + b), forward and backward, without a barrier between them.
// L layers, B rows, D width, BD = B D. Arrays are contiguous and row-major: w (L,D,D), b (L,D), a (L), x and h (L,B,D).
// The sizes of a layer's share are fixed by the number of threads, and so are all orders of summation.

#include <cstdint>
#include <vector>

#include "rows.h"

// The BLAS that torch brings along. It runs on one thread inside a parallel region.
extern "C" void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                       const int*, const float*, const int*, const float*, float*, const int*);
extern "C" void dgemm_(const char*, const char*, const int*, const int*, const int*, const double*, const double*,
                       const int*, const double*, const int*, const double*, double*, const int*);

namespace {

// BLAS counts columns first, so that it sees the transpose of each array: c (m,n) = op(a) op(b).
inline void gemm(char op_a, char op_b, int m, int n, int k, const float* a, int lda, const float* b, int ldb,
                 float* c, int ldc) {
    const float one = 1, zero = 0;
    sgemm_(&op_a, &op_b, &m, &n, &k, &one, a, &lda, b, &ldb, &zero, c, &ldc);
}

inline void gemm(char op_a, char op_b, int m, int n, int k, const double* a, int lda, const double* b, int ldb,
                 double* c, int ldc) {
    const double one = 1, zero = 0;
    dgemm_(&op_a, &op_b, &m, &n, &k, &one, a, &lda, b, &ldb, &zero, c, &ldc);
}

// A step of 0 keeps nothing: each layer then reads and writes the same rows of x, which are y too, and of h.
template <typename T>
void forward(T* x, T* h, T* y, const T* w, const T* b, const T* a, int64_t L, int64_t B, int64_t D, int64_t step,
             int64_t threads) {
    over_rows(B, threads, [&](int64_t first, int64_t rows, int64_t) {
        for (int64_t l = 0; l < L; ++l) {
            const T* in = x + l * step + first * D;
            T* branch = h + l * step + first * D;
            T* out = (l + 1 < L ? x + (l + 1) * step : y) + first * D;
            const T* bias = b + l * D;
            const T alpha = a[l];
            gemm('T', 'N', D, rows, D, w + l * D * D, D, in, D, branch, D);
            for (int64_t r = 0; r < rows * D; r += D) {
#pragma omp simd
                for (int64_t d = 0; d < D; ++d) {
                    const T z = branch[r + d] + bias[d];
                    const T f = z < 0 ? 0 : z;  // keeps nan
                    branch[r + d] = f;
                    out[r + d] = in[r + d] + alpha * f;
                }
            }
        }
    });
}

// Takes g from the output of n layers to their input; leaves dz and, for each thread, the sums of g h.
template <typename T>
void backward_chain(T* g, const T* h, T* dz, const T* w, const T* a, double* sums, int64_t n, int64_t B, int64_t D,
                    int64_t threads) {
    over_rows(B, threads, [&](int64_t first, int64_t rows, int64_t t) {
        T* gradient = g + first * D;
        std::vector<T> product(rows * D);  // apart from g, so that a sum of small terms is rounded as such
        for (int64_t l = n - 1; l >= 0; --l) {
            const T* branch = h + (l * B + first) * D;
            T* out = dz + (l * B + first) * D;
            const T alpha = a[l];
            double sum = 0;
            for (int64_t r = 0; r < rows * D; r += D) {
                T row = 0;
#pragma omp simd reduction(+ : row)
                for (int64_t d = 0; d < D; ++d) {
                    const T gd = gradient[r + d] + product[r + d], f = branch[r + d];
                    gradient[r + d] = gd;
                    row += gd * f;
                    out[r + d] = f <= 0 ? 0 : alpha * gd;
                }
                sum += row;
            }
            sums[t * n + l] = sum;
            gemm('N', 'N', D, rows, D, w + l * D * D, D, out, D, product.data(), D);
        }
        for (int64_t i = 0; i < rows * D; ++i) gradient[i] += product[i];
    });
}

// Sums the rows of dz (B,D).
template <typename T>
void sum_rows(const T* dz, T* out, int64_t B, int64_t D) {
    std::vector<double> sum(D);
    for (int64_t r = 0; r < B; ++r) {
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) sum[d] += dz[r * D + d];
    }
    for (int64_t d = 0; d < D; ++d) out[d] = sum[d];
}

template <typename T>
void backward(T* g, const T* x, const T* h, T* dz, const T* w, const T* a, T* dw, T* db, T* da, int64_t L, int64_t B,
              int64_t D, int64_t chunk, int64_t parts, int64_t threads) {
    const auto chain = [&](int64_t l0, int64_t n, double* sums) {
        backward_chain(g, h + l0 * B * D, dz, w + l0 * D * D, a + l0, sums, n, B, D, threads);
    };
    const auto weights = [&](int64_t l0, int64_t l, int64_t first, int64_t last) {
        const T* dzl = dz + l * B * D;
        gemm('N', 'T', D, last - first, B, x + (l0 + l) * B * D, D, dzl + first, D,
             dw + (l0 + l) * D * D + first * D, D);
        if (first == 0) sum_rows(dzl, db + (l0 + l) * D, B, D);
    };
    backward(da, L, D, chunk, parts, threads, chain, weights);
}

}  // namespace

#define EXPORT(T, name)                                                                                             \
    extern "C" void forward_##name(T* x, T* h, T* y, const T* w, const T* b, const T* a, int64_t L, int64_t B,      \
                                   int64_t D, int64_t step, int64_t threads) {                                      \
        forward(x, h, y, w, b, a, L, B, D, step, threads);                                                          \
    }                                                                                                               \
    extern "C" void backward_##name(T* g, const T* x, const T* h, T* dz, const T* w, const T* a, T* dw, T* db,      \
                                    T* da, int64_t L, int64_t B, int64_t D, int64_t chunk, int64_t parts,           \
                                    int64_t threads) {                                                              \
        backward(g, x, h, dz, w, a, dw, db, da, L, B, D, chunk, parts, threads);                                    \
    }

EXPORT(float, f32)
EXPORT(double, f64)
