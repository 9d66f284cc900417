#include "common.h"

// A dense layer on one vector, y = weight x + bias. Reading the weights takes most of the time.
struct Dense {
    int inputs, outputs;
};

namespace {

constexpr int kRows = 4;    // of weights, read side by side: faster than one after the other
constexpr int kLanes = 16;  // partial sums of each, in registers
constexpr int kChunk = 8;   // groups of rows that a thread takes at a time; one that shares its core takes fewer

// Dot products of `rows` rows of weights with a vector; each adds up its terms in the same order.
template <int rows>
inline void dot(const float* __restrict weight, const float* __restrict x, int inputs, float* __restrict result) {
    float sums[rows][kLanes] = {};
    int i = 0;
    for (; i + kLanes <= inputs; i += kLanes)
        for (int row = 0; row < rows; ++row)
            for (int lane = 0; lane < kLanes; ++lane) sums[row][lane] += weight[long(row) * inputs + i + lane] * x[i + lane];
    for (int row = 0; row < rows; ++row) {
        float* sum = sums[row];
        for (int lane = 0; i + lane < inputs; ++lane) sum[lane] += weight[long(row) * inputs + i + lane] * x[i + lane];
        for (int half = kLanes / 2; half; half /= 2)
            for (int lane = 0; lane < half; ++lane) sum[lane] += sum[lane + half];
        result[row] = sum[0];
    }
}

}  // namespace

extern "C" {

// `bias` may be null.
void dense_float32(const float* x, const float* weight, const float* bias, float* y, Dense dense) {
    const int inputs = dense.inputs, outputs = dense.outputs;
#pragma omp parallel for schedule(dynamic, kChunk)
    for (int first = 0; first < outputs; first += kRows) {
        const float* from = weight + long(first) * inputs;
        const int rows = std::min(kRows, outputs - first);
        float sums[kRows];
        if (rows == kRows) dot<kRows>(from, x, inputs, sums);
        else
            for (int row = 0; row < rows; ++row) dot<1>(from + long(row) * inputs, x, inputs, sums + row);
        for (int row = 0; row < rows; ++row) y[first + row] = sums[row] + (bias ? bias[first + row] : 0.0f);
    }
}
}
