#include "common.h"

namespace {

// Response normalisation: y = x * s ** -beta, s = k + alpha * (sum of squares over `size` channels of the tower). With `relu`,
// x is first max(x, 0).
struct Norm {
    long pixels;
    int towers, channels;  // channels of one tower
    int size;
    float alpha, beta, k;
    int relu;

    int before() const { return size / 2; }
    int after() const { return size - 1 - size / 2; }
    bool paper() const { return size == 5 && beta == 0.75f; }  // special-cased below
};

// A run is the channels of one tower at one pixel. A block holds many runs, separated by `gap` zeros, so that one long loop
// processes them all and no window reaches from one run into the next.
struct Block {
    static constexpr int kValues = 1024;  // a block's buffers stay in the first-level cache

    int channels, gap, stride, runs, length;
    std::vector<float> value, square, scale, weighted, gradient, result;

    explicit Block(const Norm& norm)
        : channels(norm.channels), gap(norm.size), stride(norm.channels + norm.size),
          runs(stride > kValues ? 1 : kValues / stride), length(runs * stride) {
        for (auto* buffer : {&value, &square, &scale, &weighted, &gradient, &result}) buffer->assign(length + 2 * gap, 0.0f);
    }

    template <class T>
    void fill(std::vector<float>& buffer, const T* __restrict from, int count) const {
        for (int run = 0; run < count; ++run) {
            float* __restrict to = buffer.data() + gap + run * stride;
            for (int i = 0; i < channels; ++i) to[i] = load(from[run * channels + i]);
        }
    }

    // As in nn.ReLU, NaN stays NaN.
    void rectify() {
        for (float& x : value) x = x < 0.0f ? 0.0f : x;
    }

    // The gradient of a ReLU before the norm.
    void cut_off() {
        for (size_t i = 0; i < value.size(); ++i) result[i] = value[i] == 0.0f ? 0.0f : result[i];
    }

    template <class T>
    void empty(const std::vector<float>& buffer, T* __restrict to, int count) const {
        for (int run = 0; run < count; ++run) {
            const float* __restrict from = buffer.data() + gap + run * stride;
            for (int i = 0; i < channels; ++i) store(from[i], to[run * channels + i]);
        }
    }
};

// The sum of `size` values from `from` on; unrolled for the paper's five.
inline float window(const float* from, int size) {
    if (size == 5) return (from[0] + from[1]) + (from[2] + from[3]) + from[4];
    float sum = 0.0f;
    for (int j = 0; j < size; ++j) sum += from[j];
    return sum;
}

// scale = s ** -beta; for the paper's 0.75 by square roots, which are vectorized. `inverse` = 1 / s.
inline void power(float s, float beta, float& scale, float& inverse) {
    const float root = 1.0f / std::sqrt(s);
    inverse = root * root;
    scale = beta == 0.75f ? root * std::sqrt(root) : std::pow(s, -beta);
}

// Forward, result = y; backward, result = dx:
// dx[i] = g[i] * s[i] ** -beta - 2 * alpha * beta * x[i] * sum of g[j] * x[j] * s[j] ** (-beta - 1) over all j whose window has i
template <bool paper, bool backward>
void normalize(Block& block, const Norm& norm) {
    const int size = paper ? 5 : norm.size, before = norm.before(), after = norm.after();
    const float alpha = norm.alpha, beta = paper ? 0.75f : norm.beta, k = norm.k, factor = 2 * alpha * beta;
    const float* __restrict value = block.value.data() + block.gap;
    const float* __restrict gradient = block.gradient.data() + block.gap;
    float* __restrict square = block.square.data() + block.gap;
    float* __restrict scaled = block.scale.data() + block.gap;
    float* __restrict weighted = block.weighted.data() + block.gap;
    float* __restrict result = block.result.data() + block.gap;
    for (int i = 0; i < block.length; ++i) square[i] = value[i] * value[i];
    for (int i = 0; i < block.length; ++i) {
        float scale, inverse;
        power(k + alpha * window(square + i - before, size), beta, scale, inverse);
        if (backward) {
            scaled[i] = gradient[i] * scale;
            weighted[i] = scaled[i] * value[i] * inverse;
        } else {
            result[i] = value[i] * scale;
        }
    }
    if (!backward) return;
    for (int i = 0; i < block.length; ++i) result[i] = scaled[i] - factor * value[i] * window(weighted + i - after, size);
}

// Normalise all blocks of runs, on all threads; `g` is the gradient of y, only for `backward`.
template <bool backward, class T>
void normalize_all(const T* x, const T* g, T* result, const Norm& norm) {
    const long runs = norm.pixels * norm.towers;
#pragma omp parallel
    {
        Block block(norm);
#pragma omp for schedule(static)
        for (long start = 0; start < runs; start += block.runs) {
            const long at = start * norm.channels;
            const int count = int(std::min<long>(block.runs, runs - start));
            block.fill(block.value, x + at, count);
            if (norm.relu) block.rectify();
            if (backward) block.fill(block.gradient, g + at, count);
            norm.paper() ? normalize<true, backward>(block, norm) : normalize<false, backward>(block, norm);
            if (backward && norm.relu) block.cut_off();
            block.empty(block.result, result + at, count);
        }
    }
}

}  // namespace

extern "C" {

void norm_forward_float32(const float* x, float* y, Norm norm) { normalize_all<false>(x, x, y, norm); }
void norm_forward_bfloat16(const bf16* x, bf16* y, Norm norm) { normalize_all<false>(x, x, y, norm); }
void norm_backward_float32(const float* x, const float* g, float* dx, Norm norm) { normalize_all<true>(x, g, dx, norm); }
void norm_backward_bfloat16(const bf16* x, const bf16* g, bf16* dx, Norm norm) { normalize_all<true>(x, g, dx, norm); }
}
