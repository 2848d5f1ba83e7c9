// The rows of a batch, split over the threads.

#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

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

}  // namespace
