// Fake quantization with one scale, forward and backward, in one pass each: y = scale * clamp(rint(x / scale), low, high).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr int64_t PIECE = 1 << 17;

template <class Work> void spread(int64_t count, int64_t threads, Work work) {
    const int64_t pieces = (count + PIECE - 1) / PIECE;
    std::atomic<int64_t> next{0};
    auto loop = [&] {
        for (int64_t k; (k = next++) < pieces;) work(k * PIECE, std::min(count, (k + 1) * PIECE));
    };
    std::vector<std::thread> helpers;
    for (int64_t k = 1; k < std::min(threads, pieces); ++k) helpers.emplace_back(loop);
    loop();
    for (auto& helper : helpers) helper.join();
}

}  // namespace

extern "C" {

void forward(const float* x, int64_t count, float scale, float low, float high, float* y, int64_t threads) {
    const float inverse = 1 / scale;
    spread(count, threads, [=](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t k = begin; k < end; ++k) {
            float q = std::nearbyint(x[k] * inverse);
            q = q < low ? low : q;
            y[k] = (q > high ? high : q) * scale;
        }
    });
}

// above: gradients pass only where x is more than that (0 where a ReLU is part of it, else minus infinity).
void backward(const float* x, const float* grad, int64_t count, float scale, float low, float high, float above, float* out,
              int64_t threads) {
    const float inverse = 1 / scale;
    spread(count, threads, [=](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t k = begin; k < end; ++k) {
            const float q = std::nearbyint(x[k] * inverse);
            out[k] = q >= low && q <= high && x[k] > above ? grad[k] : 0;
        }
    });
}
}
