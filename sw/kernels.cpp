// Loops of the fast golden model on one image, (height, width, channels) float32 that holds integers. All sums stay below 2^24 and all
// products with a requantizer's factor below 2^53 (sw/fast.py sees to it), so every step is exact and no order of a sum matters.
// A map's pixels may lie further apart than its channels need: `step` floats from one to the next, as in a part of a split.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t SLICE = 64;

// What follows a sum: + bias, * factor, rounding, clamp; without a factor only the bias. One number each channel.
struct Finish {
    const float* bias;
    const double* factor;
    double low, high;
    int64_t rounding;  // 0: ties up, 1: ties to even, 2: down
};

template <int ROUNDING> void finish(const Finish& f, int64_t c0, int64_t count, const float* sum, float* out) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
        double v = (double(sum[c]) + double(f.bias[c0 + c])) * f.factor[c0 + c];
        v = ROUNDING == 0 ? std::floor(v + 0.5) : ROUNDING == 1 ? std::nearbyint(v) : std::floor(v);
        v = v < f.low ? f.low : v;
        out[c] = float(v > f.high ? f.high : v);
    }
}

inline void finish(const Finish& f, int64_t c0, int64_t count, const float* sum, float* out) {
    if (!f.factor) {
        for (int64_t c = 0; c < count; ++c) out[c] = sum[c] + f.bias[c0 + c];
    } else if (f.rounding == 0) {
        finish<0>(f, c0, count, sum, out);
    } else if (f.rounding == 1) {
        finish<1>(f, c0, count, sum, out);
    } else {
        finish<2>(f, c0, count, sum, out);
    }
}

struct Window {
    int64_t height, width, channels, step, out_height, out_width, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left;

    const float* at(const float* x, int64_t oy, int64_t ox, int64_t i, int64_t j) const {  // null: outside
        const int64_t y = oy * stride_h + i * dilation_h - top, z = ox * stride_w + j * dilation_w - left;
        return y >= 0 && y < height && z >= 0 && z < width ? x + (y * width + z) * step : nullptr;
    }
};

// Where a deformable layer looks: sw/ops/deform.py's attributes; height and width of the results, `up` halvings of the map that is read.
struct Taps {
    int64_t height, width, channels, size, frac, low, high, origin, free, up;

    // The four neighbours of every tap of pixel p: floats from the map's start (-1: outside) and integer bilinear weights.
    void find(int64_t p, const float* codes, int64_t step, int64_t* at, float* share) const {
        const int64_t taps = size * size, half = size / 2, one = int64_t(1) << frac;
        const float* code = codes + p * (free ? 2 * taps : 1);
        auto clip = [&](float v) { return std::clamp(int64_t(v), low, high); };
        for (int64_t k = 0; k < taps; ++k) {
            const int64_t i = k / size - half, j = k % size - half;
            const int64_t row = (p / width << frac) + (free ? clip(code[2 * k]) + i * one : i * (clip(*code) + origin));
            const int64_t column = (p % width << frac) + (free ? clip(code[2 * k + 1]) + j * one : j * (clip(*code) + origin));
            const int64_t fy = row & (one - 1), fx = column & (one - 1);
            for (int64_t n = 0; n < 4; ++n) {
                const int64_t y = (row >> frac) + n / 2, z = (column >> frac) + n % 2;
                at[k * 4 + n] = y >= 0 && y < height && z >= 0 && z < width ? ((y >> up) * (width >> up) + (z >> up)) * step : -1;
                share[k * 4 + n] = float((n / 2 ? fy : one - fy) * (n % 2 ? fx : one - fx));
            }
        }
    }
};

// Sixteen channels at once. Maps of at least sixteen are cut into blocks of 64 or 16; the last one reaches back over channels that are
// done, which get the same values again. Narrower maps go one by one.
typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t LANES = 16, BLOCKS = SLICE / LANES;

inline const Lanes& lanes(const float* x, int64_t block) { return reinterpret_cast<const Lanes*>(x)[block]; }

// Calls work(number of blocks of sixteen, first channel) for all channels; 0 blocks: one channel.
template <class Work> inline void each_block(int64_t channels, Work work) {
    int64_t c0 = 0;
    for (; c0 + SLICE <= channels; c0 += SLICE) work(std::integral_constant<int, BLOCKS>(), c0);
    if (channels < LANES) {
        for (; c0 < channels; ++c0) work(std::integral_constant<int, 0>(), c0);
        return;
    }
    if (channels - c0 >= 3 * LANES) {
        work(std::integral_constant<int, 3>(), c0), c0 += 3 * LANES;
    } else if (channels - c0 >= 2 * LANES) {
        work(std::integral_constant<int, 2>(), c0), c0 += 2 * LANES;
    }
    for (; c0 < channels; c0 += LANES) work(std::integral_constant<int, 1>(), std::min(c0, channels - LANES));
}

template <int N> struct Sum {
    Lanes part[N] = {};
    template <class F> void add(F f) {
        for (int b = 0; b < N; ++b) part[b] += f([b](const float* x) -> const Lanes& { return lanes(x, b); });
    }
    void done(const Finish& f, int64_t c0, float* y) const {
        Lanes all[N];  // a copy, so that nobody knows where `part` lies and it stays in registers
        for (int b = 0; b < N; ++b) all[b] = part[b];
        finish(f, c0, N * LANES, reinterpret_cast<const float*>(all), y + c0);
    }
};

template <> struct Sum<0> {
    float part = 0;
    template <class F> void add(F f) { part += f([](const float* x) { return *x; }); }
    void done(const Finish& f, int64_t c0, float* y) const { finish(f, c0, 1, &part, y + c0); }
};

}  // namespace

extern "C" {

void requant(const Finish* f, const float* x, int64_t pixels, int64_t channels, int64_t step, float* y) {
    for (int64_t p = 0; p < pixels; ++p) finish(*f, 0, channels, x + p * step, y + p * channels);
}

// taps (kernel_h * kernel_w, channels)
void depthwise(const Finish* f, const Window* w, const float* x, const float* taps, float* y) {
    std::vector<const float*> seen(w->kernel_h * w->kernel_w), by(w->kernel_h * w->kernel_w);
    for (int64_t oy = 0; oy < w->out_height; ++oy)
        for (int64_t ox = 0; ox < w->out_width; ++ox, y += w->channels) {
            int64_t inside = 0;
            for (int64_t i = 0; i < w->kernel_h; ++i)
                for (int64_t j = 0; j < w->kernel_w; ++j)
                    if (const float* v = w->at(x, oy, ox, i, j)) {
                        seen[inside] = v;
                        by[inside++] = taps + (i * w->kernel_w + j) * w->channels;
                    }
            each_block(w->channels, [&](auto blocks, int64_t c0) {
                Sum<decltype(blocks)::value> sum;
                for (int64_t k = 0; k < inside; ++k) {
                    const float *v = seen[k] + c0, *tap = by[k] + c0;
                    sum.add([&](auto at) { return at(v) * at(tap); });
                }
                sum.done(*f, c0, y);
            });
        }
}

// y (out_height, out_width, kernel_h * kernel_w * channels): what a dense convolution multiplies.
void cut(const Window* w, const float* x, float* y) {
    const int64_t row = w->kernel_w * w->channels;
    const bool close = w->dilation_w == 1 && w->step == w->channels;  // a row of taps is one piece of memory
    for (int64_t oy = 0; oy < w->out_height; ++oy)
        for (int64_t ox = 0; ox < w->out_width; ++ox)
            for (int64_t i = 0; i < w->kernel_h; ++i, y += row) {
                const float *first = w->at(x, oy, ox, i, 0), *last = w->at(x, oy, ox, i, w->kernel_w - 1);
                if (close && first && last) {
                    for (int64_t c = 0; c < row; ++c) y[c] = first[c];
                    continue;
                }
                for (int64_t j = 0; j < w->kernel_w; ++j) {
                    const float* v = w->at(x, oy, ox, i, j);
                    for (int64_t c = 0; c < w->channels; ++c) y[j * w->channels + c] = v ? v[c] : 0;
                }
            }
}

void max_pool(const Window* w, const float* x, float lowest, float* y) {
    for (int64_t oy = 0; oy < w->out_height; ++oy)
        for (int64_t ox = 0; ox < w->out_width; ++ox, y += w->channels) {
            for (int64_t c = 0; c < w->channels; ++c) y[c] = lowest;
            for (int64_t i = 0; i < w->kernel_h; ++i)
                for (int64_t j = 0; j < w->kernel_w; ++j)
                    if (const float* v = w->at(x, oy, ox, i, j)) {
#pragma omp simd
                        for (int64_t c = 0; c < w->channels; ++c) y[c] = v[c] > y[c] ? v[c] : y[c];
                    }
        }
}

// codes (height, width, 1 or 2 * size * size) and weights (size * size, channels) as in sw/ops/deform.py.
void deform(const Finish* f, const Taps* t, const float* x, int64_t step, const float* codes, const float* weights, float* y) {
    static const float zeros[SLICE] = {};
    const int64_t taps = t->size * t->size;
    std::vector<int64_t> place(taps * 4);
    std::vector<float> share(taps * 4);
    for (int64_t p = 0; p < t->height * t->width; ++p, y += t->channels) {
        t->find(p, codes, step, place.data(), share.data());
        each_block(t->channels, [&](auto blocks, int64_t c0) {
            Sum<decltype(blocks)::value> sum;
            for (int64_t k = 0; k < taps; ++k) {
                const float *s = &share[k * 4], *v[4];
                for (int n = 0; n < 4; ++n) v[n] = place[k * 4 + n] < 0 ? zeros : x + place[k * 4 + n] + c0;
                const float* w = weights + k * t->channels + c0;
                sum.add([&](auto at) { return at(w) * (s[0] * at(v[0]) + s[1] * at(v[1]) + s[2] * at(v[2]) + s[3] * at(v[3])); });
            }
            sum.done(*f, c0, y);
        });
    }
}

// Every pixel factor times down and right.
void upsample(const float* x, int64_t height, int64_t width, int64_t channels, int64_t step, int64_t factor, float* y) {
    const int64_t row = width * factor * channels;
    for (int64_t r = 0; r < height; ++r, y += factor * row) {
        for (int64_t p = 0; p < width * factor; ++p) std::copy_n(x + (r * width + p / factor) * step, channels, y + p * channels);
        for (int64_t k = 1; k < factor; ++k) std::copy_n(y, row, y + k * row);
    }
}

// Channels of `parts` maps of `channels` each, in turn.
void interleave(const float* const* x, const int64_t* steps, int64_t parts, int64_t pixels, int64_t channels, float* y) {
    for (int64_t p = 0; p < pixels; ++p, y += parts * channels)
        if (parts == 2) {
            const float *a = x[0] + p * steps[0], *b = x[1] + p * steps[1];
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) y[2 * c] = a[c], y[2 * c + 1] = b[c];
        } else {
            for (int64_t k = 0; k < parts; ++k)
                for (int64_t c = 0; c < channels; ++c) y[c * parts + k] = x[k][p * steps[k] + c];
        }
}
}
