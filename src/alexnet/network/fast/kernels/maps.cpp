#include "common.h"

#include <omp.h>

// ReLU, batch normalisation and max pooling of maps, in this order; each of them is optional.
// A window of 1 does not pool. The position of a window's maximum is stored as a byte, row by row.
struct Maps {
    long images;
    int height, width, channels;
    int window, stride, relu;

    int out(int size) const { return (size - window) / stride + 1; }
    long pixels() const { return images * height * width; }
};

namespace {

constexpr int kLanes = 32;       // channels at once, in registers
constexpr int kPixels = 256;     // pixels summed in single precision before they are added up in double

inline float rectified(float value, bool relu) { return relu && value < 0 ? 0.0f : value; }

// Call `body(first channel, count)` for blocks of channels; count is the constant kLanes in all but the last.
template <class Body>
inline void over_channels(int channels, Body body) {
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes) body(c, std::integral_constant<int, kLanes>());
    if (c < channels) body(c, channels - c);
}

// Sum a factor, and the factor times the value, per channel over all pixels. The order is fixed for a given number of threads,
// so the result is too. `prepare(row, dy)` fills the gradient of a row of pixels for `factor(dy, position in the row, value)`.
template <class T, class Prepare, class Factor>
void sum_rows(const T* x, double* sums, const Maps& maps, Prepare prepare, Factor factor) {
    const long rows = maps.images * maps.height;
    const int width = maps.width, channels = maps.channels, rows_at_once = std::max(1, kPixels / width);
    const bool relu = maps.relu;
    std::vector<double> totals(size_t(omp_get_max_threads()) * 2 * channels, 0.0);
#pragma omp parallel
    {
        std::vector<float> block(2 * channels), buffer(size_t(width) * channels);
        float *first = block.data(), *second = first + channels, *dy = buffer.data();
        double* total = totals.data() + size_t(omp_get_thread_num()) * 2 * channels;
#pragma omp for schedule(static)
        for (long start = 0; start < rows; start += rows_at_once) {
            std::fill(block.begin(), block.end(), 0.0f);
            for (long row = start; row < std::min(rows, start + rows_at_once); ++row) {
                prepare(row, dy);
                const T* from = x + row * width * channels;
                over_channels(channels, [=](int c, auto lanes) {
                    float a[kLanes] = {}, b[kLanes] = {};
                    for (int w = 0; w < width; ++w)
                        for (int i = 0; i < lanes; ++i) {
                            const long at = long(w) * channels + c + i;
                            const float value = rectified(load(from[at]), relu), each = factor(dy, at, value);
                            a[i] += each;
                            b[i] += each * value;
                        }
                    for (int i = 0; i < lanes; ++i) first[c + i] += a[i], second[c + i] += b[i];
                });
            }
            for (int i = 0; i < 2 * channels; ++i) total[i] += block[i];
        }
    }
    std::fill(sums, sums + 2 * channels, 0.0);
    for (size_t i = 0; i < totals.size(); ++i) sums[i % (2 * channels)] += totals[i];
}

// Sums of the values and of their squares.
template <class T>
void map_sums(const T* x, double* sums, const Maps& maps) {
    sum_rows(x, sums, maps, [](long, float*) {}, [](const float*, long, float value) { return value; });
}

// y = the maximum of scale * x + shift in each window; `scale` and `place` (the argmax) may be null.
template <class T>
void map_forward(const T* x, const float* scale, const float* shift, T* y, uint8_t* place, const Maps& maps) {
    const int channels = maps.channels, window = maps.window, stride = maps.stride, width = maps.width;
    const int out_height = maps.out(maps.height), out_width = maps.out(width);
    const bool relu = maps.relu;
#pragma omp parallel for collapse(2) schedule(static)
    for (long n = 0; n < maps.images; ++n)
        for (int oh = 0; oh < out_height; ++oh)
            for (int ow = 0; ow < out_width; ++ow) {
                const T* corner = x + ((n * maps.height + oh * stride) * width + ow * stride) * channels;
                const long to = ((n * out_height + oh) * out_width + ow) * channels;
                over_channels(channels, [=](int c, auto lanes) {
                    float best[kLanes], factor[kLanes], offset[kLanes];
                    int32_t at[kLanes];
                    for (int i = 0; i < lanes; ++i) {
                        factor[i] = scale ? scale[c + i] : 1.0f;
                        offset[i] = scale ? shift[c + i] : 0.0f;
                        best[i] = -INFINITY;
                        at[i] = 0;
                    }
                    for (int kh = 0; kh < window; ++kh)
                        for (int kw = 0; kw < window; ++kw) {
                            const T* from = corner + (long(kh) * width + kw) * channels + c;
                            const int32_t here = kh * window + kw;
                            for (int i = 0; i < lanes; ++i) {
                                const float value = rectified(load(from[i]), relu) * factor[i] + offset[i];
                                const bool better = (value > best[i]) | (value != value);  // as PyTorch: NaN wins
                                best[i] = better ? value : best[i];
                                at[i] = better ? here : at[i];
                            }
                        }
                    for (int i = 0; i < lanes; ++i) store(best[i], y[to + c + i]);
                    if (place)
                        for (int i = 0; i < lanes; ++i) place[to + c + i] = uint8_t(at[i]);
                });
            }
}

// The gradient at each pixel of a row before pooling, from the windows whose maximum it is: width x channels.
template <class T>
void unpooled(const T* g, const uint8_t* place, long row, float* __restrict dy, const Maps& maps) {
    const int channels = maps.channels, window = maps.window, stride = maps.stride, width = maps.width;
    const int out_height = maps.out(maps.height), out_width = maps.out(width);
    const long n = row / maps.height;
    const int h = int(row % maps.height);
    if (!place) {
        const T* from = g + row * width * channels;
        for (long i = 0; i < long(width) * channels; ++i) dy[i] = load(from[i]);
        return;
    }
    std::fill(dy, dy + long(width) * channels, 0.0f);
    const int first = h < window ? 0 : (h - window) / stride + 1;
    for (int oh = first; oh < out_height && oh * stride <= h; ++oh)
        for (int ow = 0; ow < out_width; ++ow) {
            const long from = ((n * out_height + oh) * out_width + ow) * channels;
            for (int kw = 0; kw < window; ++kw) {
                const int32_t here = (h - oh * stride) * window + kw;
                float* to = dy + long(ow * stride + kw) * channels;
                over_channels(channels, [=](int c, auto lanes) {
                    for (int i = 0; i < lanes; ++i)
                        to[c + i] += int32_t(place[from + c + i]) == here ? load(g[from + c + i]) : 0.0f;
                });
            }
        }
}

// Sums of the gradient, and of the gradient times the value, before pooling.
template <class T>
void map_gradient_sums(const T* x, const T* g, const uint8_t* place, double* sums, const Maps& maps) {
    const auto prepare = [=, &maps](long row, float* dy) { unpooled(g, place, row, dy, maps); };
    sum_rows(x, sums, maps, prepare, [](const float* dy, long at, float) { return dy[at]; });
}

// dx = factor * dy + slope * x + offset where the ReLU is active; `factor` may be null: then dx = dy.
template <class T>
void map_backward(const T* x, const T* g, const uint8_t* place, const float* factor, const float* slope, const float* offset,
                  T* dx, const Maps& maps) {
    const int width = maps.width, channels = maps.channels;
    const bool relu = maps.relu;
#pragma omp parallel
    {
        std::vector<float> buffer(size_t(width) * channels);
        float* dy = buffer.data();
#pragma omp for schedule(static)
        for (long row = 0; row < maps.images * maps.height; ++row) {
            unpooled(g, place, row, dy, maps);
            for (int w = 0; w < width; ++w) {
                const long at = (row * width + w) * channels;
                const float* gradient = dy + long(w) * channels;
                over_channels(channels, [=](int c, auto lanes) {
                    for (int i = 0; i < lanes; ++i) {
                        const float raw = load(x[at + c + i]), value = rectified(raw, relu);
                        float result = gradient[c + i];
                        if (factor) result = factor[c + i] * result + slope[c + i] * value + offset[c + i];
                        store(relu && raw <= 0 ? 0.0f : result, dx[at + c + i]);
                    }
                });
            }
        }
    }
}

}  // namespace

#define FOR(T, NAME)                                                                                                       \
    void map_sums_##NAME(const T* x, double* sums, Maps maps) { map_sums(x, sums, maps); }                                 \
    void map_forward_##NAME(const T* x, const float* scale, const float* shift, T* y, uint8_t* place, Maps maps) {         \
        map_forward(x, scale, shift, y, place, maps);                                                                      \
    }                                                                                                                      \
    void map_gradient_sums_##NAME(const T* x, const T* g, const uint8_t* place, double* sums, Maps maps) {                 \
        map_gradient_sums(x, g, place, sums, maps);                                                                        \
    }                                                                                                                      \
    void map_backward_##NAME(const T* x, const T* g, const uint8_t* place, const float* factor, const float* slope,        \
                             const float* offset, T* dx, Maps maps) {                                                      \
        map_backward(x, g, place, factor, slope, offset, dx, maps);                                                        \
    }

extern "C" {

FOR(float, float32)
FOR(bf16, bfloat16)
}
