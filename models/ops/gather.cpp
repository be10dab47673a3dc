// Depthwise sampling on a CPU: y[n, p, c] = sum over taps t of weight[t, c] * mask[n, g, t, p] * x[n, (row, column)[n, g, t, p], c],
// bilinearly, neighbours outside the map counting 0. Maps lie pixel by pixel, channels innermost, so that each tap reads and writes
// whole vectors. Work is cut into (image, slice of channels): every task owns what it writes, so results do not depend on threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t SLICE = 64;

struct Shape {
    int64_t images, height, width, channels, pixels, taps, parts, threads;

    int64_t share() const { return channels / parts; }                              // channels with offsets of their own
    int64_t slices() const { return parts * ((share() + SLICE - 1) / SLICE); }
    int64_t part(int64_t slice) const { return slice / (slices() / parts); }
    int64_t first(int64_t slice) const { return part(slice) * share() + slice % (slices() / parts) * SLICE; }
    int64_t count(int64_t slice) const { return std::min(SLICE, (part(slice) + 1) * share() - first(slice)); }
};

template <class Work> void spread(const Shape& s, Work work) {
    const int64_t tasks = s.images * s.slices();
    std::atomic<int64_t> next{0};
    auto loop = [&] {
        for (int64_t k; (k = next++) < tasks;) work(k / s.slices(), k % s.slices());
    };
    std::vector<std::thread> helpers;
    for (int64_t k = 1; k < std::min(s.threads, tasks); ++k) helpers.emplace_back(loop);
    loop();
    for (auto& helper : helpers) helper.join();
}

// The four neighbours of one tap: where they lie (-1: outside) and the fractions.
template <class T> struct Spot {
    int64_t at[4];
    T fy, fx;

    bool find(T row, T column, const Shape& s) {
        // At -1 a tap sees nothing yet, but its gradient does. The test is false for NaN.
        if (!(row >= -1 && row < T(s.height) && column >= -1 && column < T(s.width))) return false;
        const T top = std::floor(row), left = std::floor(column);
        fy = row - top, fx = column - left;
        for (int k = 0; k < 4; ++k) {
            const int64_t y = int64_t(top) + k / 2, z = int64_t(left) + k % 2;
            at[k] = y >= 0 && y < s.height && z >= 0 && z < s.width ? y * s.width + z : -1;
        }
        return true;
    }
};

template <class T>
void forward(const Shape& s, const T* x, const T* rows, const T* columns, const T* weight, const T* mask, T* y) {
    const T zeros[SLICE] = {};
    spread(s, [&](int64_t n, int64_t slice) {
        const int64_t c0 = s.first(slice), count = s.count(slice), base = (n * s.parts + s.part(slice)) * s.taps * s.pixels;
        const T* map = x + n * s.height * s.width * s.channels + c0;
        for (int64_t p = 0; p < s.pixels; ++p) {
            T sum[SLICE] = {};
            for (int64_t t = 0; t < s.taps; ++t) {
                const int64_t here = base + t * s.pixels + p;
                Spot<T> spot;
                if (!spot.find(rows[here], columns[here], s)) continue;
                const T m = mask ? mask[here] : T(1);
                const T a = m * (1 - spot.fy) * (1 - spot.fx), b = m * (1 - spot.fy) * spot.fx;
                const T d = m * spot.fy * (1 - spot.fx), e = m * spot.fy * spot.fx;
                const T* v[4];
                for (int k = 0; k < 4; ++k) v[k] = spot.at[k] < 0 ? zeros : map + spot.at[k] * s.channels;
                const T* w = weight + t * s.channels + c0;
#pragma omp simd
                for (int64_t c = 0; c < count; ++c) sum[c] += w[c] * (a * v[0][c] + b * v[1][c] + d * v[2][c] + e * v[3][c]);
            }
            std::memcpy(y + (n * s.pixels + p) * s.channels + c0, sum, count * sizeof(T));
        }
    });
}

// gx starts at 0; gweight is (images, taps, channels); grows, gcolumns and gmask are (slices of a part, images, parts, taps, pixels).
template <class T>
void backward(const Shape& s, const T* x, const T* rows, const T* columns, const T* weight, const T* mask, const T* gy, T* gx,
              T* grows, T* gcolumns, T* gweight, T* gmask) {
    const T zeros[SLICE] = {};
    spread(s, [&](int64_t n, int64_t slice) {
        const int64_t c0 = s.first(slice), count = s.count(slice), base = (n * s.parts + s.part(slice)) * s.taps * s.pixels;
        const int64_t layer = slice % (s.slices() / s.parts) * s.images * s.parts * s.taps * s.pixels;
        const int64_t start = n * s.height * s.width * s.channels + c0;
        T nowhere[SLICE] = {};
        for (int64_t p = 0; p < s.pixels; ++p) {
            const T* g = gy + (n * s.pixels + p) * s.channels + c0;
            for (int64_t t = 0; t < s.taps; ++t) {
                const int64_t here = base + t * s.pixels + p;
                T down = 0, right = 0, whole = 0;
                Spot<T> spot;
                if (spot.find(rows[here], columns[here], s)) {
                    const T fy = spot.fy, fx = spot.fx, m = mask ? mask[here] : T(1);
                    const T a = (1 - fy) * (1 - fx), b = (1 - fy) * fx, d = fy * (1 - fx), e = fy * fx;
                    const T* v[4];
                    T* to[4];
                    for (int k = 0; k < 4; ++k) {
                        v[k] = spot.at[k] < 0 ? zeros : x + start + spot.at[k] * s.channels;
                        to[k] = spot.at[k] < 0 ? nowhere : gx + start + spot.at[k] * s.channels;
                    }
                    const T* w = weight + t * s.channels + c0;
                    T* gw = gweight + (n * s.taps + t) * s.channels + c0;
                    // Neighbours outside may share one row of scrap, which nobody reads.
#pragma omp simd reduction(+ : down, right, whole)
                    for (int64_t c = 0; c < count; ++c) {
                        const T v0 = v[0][c], v1 = v[1][c], v2 = v[2][c], v3 = v[3][c], h = g[c] * w[c];
                        const T seen = a * v0 + b * v1 + d * v2 + e * v3;
                        down += h * ((1 - fx) * (v2 - v0) + fx * (v3 - v1));
                        right += h * ((1 - fy) * (v1 - v0) + fy * (v3 - v2));
                        whole += h * seen;
                        gw[c] += m * g[c] * seen;
                        to[0][c] += m * a * h;
                        to[1][c] += m * b * h;
                        to[2][c] += m * d * h;
                        to[3][c] += m * e * h;
                    }
                    down *= m, right *= m;
                }
                grows[layer + here] = down, gcolumns[layer + here] = right;
                if (gmask) gmask[layer + here] = whole;
            }
        }
    });
}

}  // namespace

#define WARPLOOM_GATHER(name, T)                                                                                                     \
    extern "C" void forward_##name(const Shape* s, const T* x, const T* r, const T* c, const T* w, const T* m, T* y) {               \
        forward<T>(*s, x, r, c, w, m, y);                                                                                            \
    }                                                                                                                                \
    extern "C" void backward_##name(const Shape* s, const T* x, const T* r, const T* c, const T* w, const T* m, const T* gy, T* gx,  \
                                    T* gr, T* gc, T* gw, T* gm) {                                                                    \
        backward<T>(*s, x, r, c, w, m, gy, gx, gr, gc, gw, gm);                                                                      \
    }

WARPLOOM_GATHER(float32, float)
WARPLOOM_GATHER(float64, double)
