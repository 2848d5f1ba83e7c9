// The rows of a batch, split over the threads, and the way back through the layers, piece by piece.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

// Calls work(first row, number of rows, thread) for the rows of each thread.
template <typename Work>
void over_rows(int64_t rows, int64_t threads, const Work& work) {
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const int64_t first = rows * t / threads, last = rows * (t + 1) / threads;
            if (first < last) work(first, last - first, t);
        }
    });
}

// Goes back through L layers, at most `chunk` at once. chain(l0, n, sums) takes the gradient from the output of layer
// l0 + n - 1 to the input of l0 and leaves, thread by thread, what da is the sum of. Where da is asked for,
// weights(l0, l, first, last) then finds the gradients of rows `first` to `last` of the weights of layer l0 + l.
template <typename T, typename Chain, typename Weights>
void backward(T* da, int64_t L, int64_t D, int64_t chunk, int64_t parts, int64_t threads, const Chain& chain,
              const Weights& weights) {
    std::vector<double> sums(threads * chunk);
    for (int64_t end = L; end > 0; end -= std::min(end, chunk)) {
        const int64_t n = std::min(end, chunk), l0 = end - n;
        std::fill(sums.begin(), sums.end(), 0);
        chain(l0, n, sums.data());
        if (da == nullptr) continue;  // only the input's gradient is asked for
        for (int64_t l = 0; l < n; ++l) {
            double sum = 0;
            for (int64_t t = 0; t < threads; ++t) sum += sums[t * n + l];
            da[l0 + l] = sum;
        }
        at::parallel_for(0, n * parts, 1, [&](int64_t begin, int64_t finish) {
            for (int64_t i = begin; i < finish; ++i) {
                weights(l0, i / parts, D * (i % parts) / parts, D * (i % parts + 1) / parts);
            }
        });
    }
}

}  // namespace
