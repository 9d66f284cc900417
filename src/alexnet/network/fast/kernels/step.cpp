#include "common.h"

// An optimizer step (training/optimizer.py) on `count` weights, in one pass over memory.
struct Step {
    long count;
    float rate, momentum, decay;
    int velocity;  // the velocity includes the learning rate (2012, Keras); else it sums gradients (PyTorch)
    int decoupled, nesterov;
};

namespace {

// `half` receives the new weights in bfloat16 for the next forward pass; it and `v` may be null.
template <class T, bool velocity>
void step(float* __restrict w, const T* __restrict g, float* __restrict v, bf16* __restrict half, const Step& step) {
    const float rate = step.rate, momentum = step.momentum;
    const float keep = step.decoupled ? 1 - rate * step.decay : 1, pull = step.decoupled ? 0 : step.decay;
    const bool nesterov = step.nesterov;
#pragma omp parallel for simd schedule(static)
    for (long i = 0; i < step.count; ++i) {
        const float weight = w[i] * keep, gradient = load(g[i]) + pull * weight;
        float move;  // subtracted from the weight
        if (!v) {
            move = rate * gradient;
        } else if (velocity) {
            const float now = momentum * v[i] - rate * gradient;
            move = nesterov ? rate * gradient - momentum * now : -now;
            v[i] = now;
        } else {
            const float now = momentum * v[i] + gradient;
            move = rate * (nesterov ? gradient + momentum * now : now);
            v[i] = now;
        }
        w[i] = weight - move;
        if (half) store(weight - move, half[i]);
    }
}

template <class T>
void any_step(float* w, const T* g, float* v, bf16* half, const Step& which) {
    which.velocity ? step<T, true>(w, g, v, half, which) : step<T, false>(w, g, v, half, which);
}

}  // namespace

extern "C" {

void step_float32(float* w, const float* g, float* v, bf16* half, Step step) { any_step(w, g, v, half, step); }
void step_bfloat16(float* w, const bf16* g, float* v, bf16* half, Step step) { any_step(w, g, v, half, step); }
}
