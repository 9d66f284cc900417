// Fused CPU kernels: one pass over memory where PyTorch takes several. Plain C functions, called by operations.py through ctypes.
// Maps are N H W C in memory (torch's channels_last); a pixel is C successive values.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(float value) { return value; }
inline float load(bf16 value) {
    uint32_t wide = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &wide, 4);
    return result;
}

inline void store(float value, float& place) { place = value; }
inline void store(float value, bf16& place) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    const uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;  // to the nearest, ties to even
    place.bits = (wide & 0x7fffffff) > 0x7f800000 ? uint16_t(0x7fc0) : uint16_t(rounded);
}

}  // namespace
