// Convolutions of small maps and their gradients in bfloat16: 3x3 (pad 1) and 5x5 (pad 2), stride 1.
//
// Winograd's minimal filtering with the points 0, 1, -1 and infinity only, whose transforms are sums of few terms and therefore
// lose little precision. Along one axis two outputs of three taps take 4 products instead of 6. Five taps are cut into 3 + 2,
// which take 4 + 3 products instead of 10. The products of two taps (points 0, 1, infinity) contribute to the outputs like
// those of three taps at the same points, so they are added to the same sums: the 49 products of a 5x5 filter make only 16
// sums, and both filter sizes share all but the first step.
//
// Tensors are N H W C in memory and weights O kh kw I. Channel counts are multiples of 32. The transformed inputs and weights
// are rounded to bfloat16 once more: the relative error is about 0.4 %, against 0.2 % of direct convolution.
// Only for CPUs that multiply bfloat16 in AVX-512; for others this file is empty. With AMX, direct convolution is faster.

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

#include <immintrin.h>
#include <omp.h>

#include <array>
#include <cstdlib>

#include "common.h"

namespace {

constexpr int POINTS = 16;                  // sums per tile of 2x2 outputs
constexpr int LANE = 32;                    // channels processed together: a cache line of bf16
constexpr int ROWS = 12;                    // rows of the product's register block; its columns are LANE
constexpr size_t BLOCK_BYTES = 448 * 1024;  // transformed input at a time: half a 1 MB cache
constexpr int BLOCK_TILES = 256;            // the same for the weight gradient
constexpr int MOST_CHANNELS = 4096;

// Two registers that are processed alike.
struct Twin {
    __m512 a, b;
};
inline Twin operator+(Twin l, Twin r) { return {l.a + r.a, l.b + r.b}; }
inline Twin operator-(Twin l, Twin r) { return {l.a - r.a, l.b - r.b}; }
inline Twin halved(Twin t) { return {t.a * 0.5f, t.b * 0.5f}; }
inline Twin load_twin(const float* p) { return {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)}; }

// The even or the odd ones of 32 channels as float, cheaper to extract than the low and the high half. So all intermediate
// results store every 32 channels as 16 even and 16 odd ones.
inline __m512 even(const bf16* p) { return (__m512)((__v16su)_mm512_loadu_si512(p) << 16); }
inline __m512 odd(const bf16* p) { return (__m512)((__v16su)_mm512_loadu_si512(p) & 0xffff0000u); }
constexpr int channel(int place) { return place / LANE * LANE + place % 16 * 2 + place % LANE / 16; }
inline Twin even_odd(const bf16* p) { return {even(p), odd(p)}; }

// 16 even or odd channels, from `place` on, of two pixels or weights.
inline Twin two_rows(const bf16* first, const bf16* second, int place) {
    const int from = place / LANE * LANE;
    return place % LANE ? Twin{odd(first + from), odd(second + from)} : Twin{even(first + from), even(second + from)};
}

inline __m512i narrow(Twin t) { return (__m512i)_mm512_cvtne2ps_pbh(t.b, t.a); }

// Interleave two registers: operands into pairs, or even and odd channels into order.
inline __m512i pairs(Twin t) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, narrow(t));
}

// The transforms along one axis. Products are ordered by the point to whose sum they are added; `first` is each point's first
// product, and `uses` the window's elements in each product (bit 0: the first).
template <int TAPS> struct Axis;
template <int COUNT> using Twins = std::array<Twin, COUNT>;

template <> struct Axis<3> {
    static constexpr int window = 4, products = 4;
    static constexpr int first[5] = {0, 1, 2, 3, 4};
    static constexpr int uses[4] = {0b0101, 0b0110, 0b0110, 0b1010};
    static Twins<4> input(const Twin* d) { return {d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]}; }
    static Twins<4> weight(const Twin* g) {
        const Twin ends = halved(g[0] + g[2]), middle = halved(g[1]);
        return {g[0], ends + middle, ends - middle, g[2]};
    }
    static Twins<3> weight_gradient(const Twin* u) {
        const Twin sum = halved(u[1] + u[2]);
        return {u[0] + sum, halved(u[1] - u[2]), u[3] + sum};
    }
};

template <> struct Axis<5> {
    static constexpr int window = 6, products = 7;
    static constexpr int first[5] = {0, 2, 4, 5, 7};
    static constexpr int uses[7] = {0b000101, 0b011000, 0b000110, 0b010000, 0b000110, 0b001010, 0b110000};
    static Twins<7> input(const Twin* d) {
        return {d[0] - d[2], d[3] - d[4], d[1] + d[2], d[4], d[2] - d[1], d[1] - d[3], d[4] - d[5]};
    }
    static Twins<7> weight(const Twin* g) {
        const Twin ends = halved(g[0] + g[2]), middle = halved(g[1]);
        return {g[0], g[3], ends + middle, g[3] + g[4], ends - middle, g[2], g[4]};
    }
    static Twins<5> weight_gradient(const Twin* u) {
        const Twin sum = halved(u[2] + u[4]);
        return {u[0] + sum, halved(u[2] - u[4]), u[5] + sum, u[1] + u[3], u[3] + u[6]};
    }
};

// The index of the first product of point (py, px), and the index of a product.
template <int TAPS> constexpr int begin(int point) {
    using A = Axis<TAPS>;
    if (point == POINTS) return A::products * A::products;
    const int y = point / 4, x = point % 4;
    return A::first[y] * A::products + (A::first[y + 1] - A::first[y]) * A::first[x];
}

template <int TAPS> struct Places {
    static constexpr int count = Axis<TAPS>::products * Axis<TAPS>::products;
    int at[count] = {}, point[count] = {};
    constexpr Places() {
        using A = Axis<TAPS>;
        for (int p = 0; p < POINTS; ++p) {
            int place = begin<TAPS>(p);
            for (int y = A::first[p / 4]; y < A::first[p / 4 + 1]; ++y)
                for (int x = A::first[p % 4]; x < A::first[p % 4 + 1]; ++x) {
                    point[place] = p;
                    at[y * A::products + x] = place++;
                }
        }
    }
};
template <int TAPS> constexpr Places<TAPS> places;

// Apply the transform of one axis to columns, then to rows; sink receives element (y, x) of the result.
template <int IN, int OUT, class Load, class Step, class Sink>
inline void both_axes(Load load, Step step, Sink sink) {
    Twin half[OUT][IN];
#pragma GCC unroll 8
    for (int x = 0; x < IN; ++x) {
        Twin column[IN];
#pragma GCC unroll 8
        for (int y = 0; y < IN; ++y) column[y] = load(y, x);
        const Twins<OUT> result = step(column);
#pragma GCC unroll 8
        for (int y = 0; y < OUT; ++y) half[y][x] = result[y];
    }
#pragma GCC unroll 8
    for (int y = 0; y < OUT; ++y) {
        const Twins<OUT> result = step(half[y]);
#pragma GCC unroll 8
        for (int x = 0; x < OUT; ++x) sink(y, x, result[x]);
    }
}

// Of the input or, with TAPS as IN, of the weights: load(y, x) returns an element, sink(q, value) receives product q's factor.
template <int TAPS, int IN = Axis<TAPS>::window, class Load, class Sink> inline void transform(Load load, Sink sink) {
    using A = Axis<TAPS>;
    both_axes<IN, A::products>(load, IN == TAPS ? A::weight : A::input,
                               [&](int y, int x, Twin value) { sink(places<TAPS>.at[y * A::products + x], value); });
}

// The transpose of the weights' transform; load(q) returns the sum of product q.
template <int TAPS, class Load, class Sink>
inline void transform_weight_gradient(Load load, Sink sink) {
    using A = Axis<TAPS>;
    both_axes<A::products, TAPS>([&](int y, int x) { return load(places<TAPS>.at[y * A::products + x]); }, A::weight_gradient,
                                 [&](int y, int x, Twin value) { sink(y * TAPS + x, value); });
}

template <class Load, class Sink> inline void transform_output(Load load, Sink sink) {
    both_axes<4, 2>([&](int y, int x) { return load(y * 4 + x); },
                    [](const Twin* m) { return Twins<2>{m[0] + m[1] + m[2], m[1] - m[2] - m[3]}; }, sink);
}

// The transpose of transform_output: the gradient of each sum from that of 2x2 outputs.
template <class Load, class Sink> inline void transform_gradient(Load load, Sink sink) {
    both_axes<2, 4>(load, [](const Twin* y) { return Twins<4>{y[0], y[0] + y[1], y[0] - y[1], Twin{} - y[1]}; },
                    [&](int y, int x, Twin value) { sink(y * 4 + x, value); });
}

// Memory that a thread reuses between calls; new pages would cost more time than the transforms.
template <class T> T* scratch(int slot, size_t count) {
    struct Kept {
        void* memory = nullptr;
        size_t size = 0;
        ~Kept() { std::free(memory); }
    };
    static thread_local Kept kept[4];
    Kept& mine = kept[slot];
    const size_t size = (count * sizeof(T) + 4095) / 4096 * 4096;
    if (mine.size < size) {
        std::free(mine.memory);
        mine.memory = std::aligned_alloc(4096, size);
        if (!mine.memory) std::abort();
        mine.size = size;
    }
    return static_cast<T*>(mine.memory);
}

// Tiles of 2x2 outputs. Within a group of images, all tiles of one position are adjacent, so that rows computed together mostly
// need the same products.
struct Map {
    static constexpr int GROUP = 96;
    int n, height, width, channels;
    int rows() const { return (height + 1) / 2; }
    int columns() const { return (width + 1) / 2; }
    int positions() const { return rows() * columns(); }
    int tiles() const { return n * positions(); }

    struct Tile {
        size_t image;
        int position, y, x;
    };
    Tile tile(int index) const {
        const int group = index / (GROUP * positions()), rest = index % (GROUP * positions());
        const int images = std::min(GROUP, n - group * GROUP), position = rest / images;
        return {static_cast<size_t>(group * GROUP + rest % images), position, position / columns() * 2,
                position % columns() * 2};
    }
    size_t pixel(const Tile& t, int y, int x) const { return ((t.image * height + t.y + y) * width + t.x + x) * channels; }
    bool inside(const Tile& t, int y, int x) const {
        return t.y + y >= 0 && t.y + y < height && t.x + x >= 0 && t.x + x < width;
    }
    // Pointers to the pixels of a window that begins at offset (first, first) from the tile; outside the map, and in tiles
    // after the last, they point to zeros.
    void window(const bf16* x, int index, int first, int size, const bf16** pixels) const {
        alignas(64) static const bf16 zeros[MOST_CHANNELS] = {};
        const Tile t = tile(std::min(index, tiles() - 1));
        for (int i = 0; i < size * size; ++i) {
            const int dy = first + i / size, dx = first + i % size;
            pixels[i] = index < tiles() && inside(t, dy, dx) ? x + pixel(t, dy, dx) : zeros;
        }
    }
};

// For every position a bit mask of the products that are not zero and contribute to outputs inside the map. At the far edges
// about a third can be skipped, which matters for small maps.
template <int TAPS> std::vector<uint64_t> needed_products(const Map& map) {
    using A = Axis<TAPS>;
    const auto axis = [](int start, int size, int product) {
        bool any = false;
        for (int i = 0; i < A::window; ++i) {
            const int at = start - TAPS / 2 + i;
            any |= (A::uses[product] >> i & 1) && at >= 0 && at < size;
        }
        return any && (product < A::first[3] || start + 1 < size);
    };
    std::vector<uint64_t> needed(map.positions());
    for (int i = 0; i < map.positions(); ++i)
        for (int y = 0; y < A::products; ++y)
            for (int x = 0; x < A::products; ++x)
                if (axis(i / map.columns() * 2, map.height, y) && axis(i % map.columns() * 2, map.width, x))
                    needed[i] |= uint64_t{1} << places<TAPS>.at[y * A::products + x];
    return needed;
}

// The products that at least one of the tiles from begin to end needs.
uint64_t needed_by(const Map& map, const std::vector<uint64_t>& needed, int begin, int end) {
    uint64_t all = 0;
    for (int t = begin; t < std::min(end, map.tiles()); ++t) all |= needed[map.tile(t).position];
    return all;
}

void transpose(__m512i* r) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int s = 1; s < 16; s *= 2) {
        const __m512i step = _mm512_set1_epi32(s), other = _mm512_set1_epi32(16);
        const __mmask16 set = _mm512_test_epi32_mask(lane, step);
        const __m512i low = _mm512_mask_add_epi32(lane, set, lane, _mm512_sub_epi32(other, step));
        const __m512i high = _mm512_add_epi32(lane, _mm512_mask_blend_epi32(set, step, other));
        for (int i = 0; i < 16; ++i) {
            if (i & s) continue;
            const __m512i a = r[i], b = r[i + s];
            r[i] = _mm512_permutex2var_epi32(a, low, b);
            r[i + s] = _mm512_permutex2var_epi32(a, high, b);
        }
    }
}

// sums[R][LANE] = a * b, or += with `add`, over parts of several lines of 16 pairs, without the parts that use() excludes. Pair
// i of row r of a is at a[r * ROW_STEP + i * PAIR_STEP], the next line line_step and the next part part_step further; b is
// contiguous.
template <int R, int ROW_STEP, int PAIR_STEP, class Use>
inline void multiply(const int* a, size_t part_step, size_t line_step, const int* b, int parts, int lines, Use use, bool add,
                     float* sums) {
    Twin sum[R];
    for (int r = 0; r < R; ++r) sum[r] = add ? load_twin(sums + r * LANE) : Twin{};
    for (int part = 0; part < parts; ++part) {
        if (!use(part)) continue;
        const int* a_line = a + part * part_step;
        const int* b_line = b + static_cast<size_t>(part) * lines * 16 * LANE;
        for (int line = 0; line < lines; ++line, a_line += line_step, b_line += 16 * LANE)
            for (int i = 0; i < 16; ++i) {
                const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b_line + i * LANE);
                const __m512bh b1 = (__m512bh)_mm512_loadu_si512(b_line + i * LANE + 16);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const __m512bh pair = (__m512bh)_mm512_set1_epi32(a_line[r * ROW_STEP + i * PAIR_STEP]);
                    sum[r] = {_mm512_dpbf16_ps(sum[r].a, pair, b0), _mm512_dpbf16_ps(sum[r].b, pair, b1)};
                }
            }
    }
    for (int r = 0; r < R; ++r) {
        _mm512_storeu_ps(sums + r * LANE, sum[r].a);
        _mm512_storeu_ps(sums + r * LANE + 16, sum[r].b);
    }
}

// Pack one block of weights, 32 channels in by 32 out, into packed[product][in / 2][32 out] pairs.
// ROTATED: the filter of the input gradient, with in and out exchanged and both axes reversed.
template <int TAPS, bool ROTATED>
void pack_weights(const bf16* w, int in, int out, int c, int k, int* packed) {
    constexpr int Q = Places<TAPS>::count, AREA = TAPS * TAPS;
    const size_t step = static_cast<size_t>(in) / 2 * LANE;
    if (ROTATED) {  // memory is [in][tap][out]: vectors along out, pairs of two rows
        for (int pair = c / 2; pair < (c + LANE) / 2; ++pair) {
            const bf16* first = w + static_cast<size_t>(channel(2 * pair)) * AREA * out + k;
            const bf16* second = w + static_cast<size_t>(channel(2 * pair + 1)) * AREA * out + k;
            for (int half = 0; half < 2; ++half)
                transform<TAPS, TAPS>(
                    [&](int y, int x) {
                        const int at = (AREA - 1 - y * TAPS - x) * out;
                        return two_rows(first + at, second + at, half * 16);
                    },
                    [&](int q, Twin value) { _mm512_storeu_si512(packed + q * step + pair * LANE + half * 16, pairs(value)); });
        }
        return;
    }
    for (int half = 0; half < LANE; half += 16) {
        __m512i block[Q][16];
        for (int i = 0; i < 16; ++i) {
            const bf16* row = w + static_cast<size_t>(channel(k + half + i)) * AREA * in + c;
            transform<TAPS, TAPS>([&](int y, int x) { return even_odd(row + (y * TAPS + x) * in); },
                                  [&](int q, Twin value) { block[q][i] = narrow(value); });
        }
        for (int q = 0; q < Q; ++q) {
            transpose(block[q]);
            for (int i = 0; i < 16; ++i) _mm512_storeu_si512(packed + q * step + (c / 2 + i) * LANE + half, block[q][i]);
        }
    }
}

// The biases of 32 channels, even then odd; zeros without a bias.
inline Twin biases(const float* bias, int k) {
    if (!bias) return Twin{};
    const __m512i step = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return Twin{_mm512_i32gather_ps(step, bias + k, 4), _mm512_i32gather_ps(step, bias + k + 1, 4)};
}

template <int TAPS, bool ROTATED>
void convolve(const bf16* x, const bf16* w, const float* bias, bf16* y, const Map& map, int out) {
    constexpr int Q = Places<TAPS>::count, WINDOW = Axis<TAPS>::window;
    const int in = map.channels, lines = in / LANE, panels = out / LANE, tiles = map.tiles();
    const Map result{map.n, map.height, map.width, out};
    const auto needed = needed_products<TAPS>(map);
    // A block's transformed input stays in the second-level cache; threads get equal parts.
    const int threads = omp_get_max_threads();
    const int most = std::max<int>(ROWS, BLOCK_BYTES / (Q * in * sizeof(bf16)) / ROWS * ROWS);
    const int blocks = ((tiles + most - 1) / most + threads - 1) / threads * threads;
    const int block = ((tiles + blocks - 1) / blocks + ROWS - 1) / ROWS * ROWS;
    const size_t row = (block | 1) * LANE;  // an odd number of lines avoids cache conflicts
    const size_t panel_size = static_cast<size_t>(Q) * in / 2 * LANE;
    int* packed = scratch<int>(0, panel_size * panels);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int i = 0; i < panels * lines; ++i)
            pack_weights<TAPS, ROTATED>(w, in, out, i % lines * LANE, i / lines * LANE, packed + i / lines * panel_size);
        bf16* input = scratch<bf16>(1, Q * lines * row);  // [in / 32][product][tile][32]
        float* sums = scratch<float>(2, POINTS * row);    // [point][tile][32]
        std::vector<uint64_t> needed_rows(block / ROWS);
#pragma omp for schedule(dynamic)
        for (int start = 0; start < tiles; start += block) {
            const int count = std::min(block, tiles - start);
            for (int t = 0; t < count; t += ROWS) needed_rows[t / ROWS] = needed_by(map, needed, start + t, start + t + ROWS);
            // Prefetch the next tile's pixels, as the hardware cannot predict this order.
            const bf16* windows[2][WINDOW * WINDOW];
            map.window(x, start, -(TAPS / 2), WINDOW, windows[0]);
            for (int t = 0; t < count; ++t) {
                const bf16* const* pixels = windows[t % 2];
                const bf16** next = windows[(t + 1) % 2];
                map.window(x, start + t + 1, -(TAPS / 2), WINDOW, next);
                for (int c = 0; c < in; c += LANE)
                    transform<TAPS>(
                        [&](int y, int x) {
                            __builtin_prefetch(next[y * WINDOW + x] + c);
                            return even_odd(pixels[y * WINDOW + x] + c);
                        },
                        [&](int q, Twin value) {
                            _mm512_storeu_si512(input + (c / LANE * Q + q) * row + t * LANE, narrow(value));
                        });
            }
            for (int panel = 0; panel < panels; ++panel) {
                for (int p = 0; p < POINTS; ++p) {
                    const int first = begin<TAPS>(p), last = begin<TAPS>(p + 1);
                    for (int t = 0; t < count; t += ROWS) {
                        const uint64_t use = needed_rows[t / ROWS] >> first;
                        multiply<ROWS, LANE / 2, 1>(
                            reinterpret_cast<const int*>(input + first * row + t * LANE), row / 2, Q * row / 2,
                            packed + panel * panel_size + first * (panel_size / Q), last - first, lines,
                            [&](int part) { return use >> part & 1; }, false, sums + p * row + t * LANE);
                    }
                }
                const Twin shift = biases(bias, panel * LANE);
                for (int t = 0; t < count; ++t) {
                    const Map::Tile tile = map.tile(start + t);
                    transform_output(
                        [&](int p) { return load_twin(sums + p * row + t * LANE); },
                        [&](int dy, int dx, Twin value) {
                            if (map.inside(tile, dy, dx))
                                _mm512_storeu_si512(y + result.pixel(tile, dy, dx) + panel * LANE, pairs(value + shift));
                        });
                }
            }
        }
    }
}

// Sums over all tiles of transformed gradient times transformed input, transformed back to dw. Every thread sums a fixed part
// of the tiles, so that threads synchronize only once and results do not vary between calls.
template <int TAPS>
void weight_gradient(const bf16* dy, const bf16* x, bf16* dw, const Map& map, int out) {
    constexpr int Q = Places<TAPS>::count, WINDOW = Axis<TAPS>::window, STRIP = 8;
    const int in = map.channels, lines = in / LANE, tiles = map.tiles();
    const Map result{map.n, map.height, map.width, out};
    const auto needed = needed_products<TAPS>(map);
    std::vector<const float*> all_sums(omp_get_max_threads());
#pragma omp parallel
    {
        const int threads = omp_get_num_threads();  // may be fewer than requested
        const int share = ((tiles + 31) / 32 + threads - 1) / threads * 32;
        const int block = std::min(BLOCK_TILES, share);
        // Pairs of tiles: input[product][in / 32][pair][32], gradient[point][out / 16][pair][16].
        // Odd sizes avoid cache conflicts.
        const size_t input_row = block / 2 * LANE + 16, gradient_row = block / 2 * 16 + 16;
        int* input = scratch<int>(0, Q * lines * input_row);
        int* gradient = scratch<int>(1, POINTS * (out / 16) * gradient_row);
        float* sums = scratch<float>(2, static_cast<size_t>(Q) * lines * out * LANE);
        const int begin = omp_get_thread_num() * share, end = std::min(tiles, begin + share);
        if (begin < end) all_sums[omp_get_thread_num()] = sums;
        for (int start = begin; start < end; start += block) {
            const int parts = std::min(block, end - start + 31) / 32;
            for (int pair = 0; pair < parts * 16; ++pair) {
                const bf16* pixels[4][WINDOW * WINDOW];  // this pair's and the next one's
                const bf16* outputs[4][4];
                for (int i = 0; i < 4; ++i) {
                    map.window(x, start + 2 * pair + i, -(TAPS / 2), WINDOW, pixels[i]);
                    result.window(dy, start + 2 * pair + i, 0, 2, outputs[i]);
                }
                for (int c = 0; c < in; c += 16) {
                    int* to = input + c / LANE * input_row + pair * LANE + c % LANE;
                    transform<TAPS>(
                        [&](int y, int x) {
                            const int i = y * WINDOW + x;
                            __builtin_prefetch(pixels[2 + c / 16 % 2][i] + c / LANE * LANE);
                            return two_rows(pixels[0][i], pixels[1][i], c);
                        },
                        [&](int q, Twin value) { _mm512_storeu_si512(to + q * lines * input_row, pairs(value)); });
                }
                for (int k = 0; k < out; k += 16) {
                    int* to = gradient + k / 16 * gradient_row + pair * 16;
                    transform_gradient(
                        [&](int y, int x) {
                            const int i = y * 2 + x;
                            __builtin_prefetch(outputs[2 + k / 16 % 2][i] + k / LANE * LANE);
                            return two_rows(outputs[0][i], outputs[1][i], k);
                        },
                        [&](int p, Twin value) { _mm512_storeu_si512(to + p * (out / 16) * gradient_row, pairs(value)); });
                }
            }
            uint64_t needed_parts[BLOCK_TILES / 32];
            for (int i = 0; i < parts; ++i) needed_parts[i] = needed_by(map, needed, start + 32 * i, start + 32 * i + 32);
            for (int i = 0; i < Q * lines; ++i) {
                const int q = i / lines;
                const int* a = gradient + places<TAPS>.point[q] * (out / 16) * gradient_row;
                for (int k = 0; k < out; k += STRIP)
                    multiply<STRIP, 1, 16>(
                        a + k / 16 * gradient_row + k % 16, 16 * 16, 0, input + i * input_row, parts, 1,
                        [&](int part) { return needed_parts[part] >> q & 1; }, start > begin,
                        sums + (static_cast<size_t>(i) * out + k) * LANE);
            }
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int k = 0; k < out; ++k)
            for (int c = 0; c < in; c += LANE)
                transform_weight_gradient<TAPS>(
                    [&](int q) {
                        Twin sum{};
                        const size_t at = (static_cast<size_t>(q * lines + c / LANE) * out + k) * LANE;
                        for (const float* sums : all_sums)
                            if (sums) sum = sum + load_twin(sums + at);
                        return sum;
                    },
                    [&](int tap, Twin value) {
                        _mm512_storeu_si512(dw + (static_cast<size_t>(channel(k)) * TAPS * TAPS + tap) * in + c, pairs(value));
                    });
    }
}

}  // namespace

struct Convolution {
    int images, height, width, in, out, taps;
};

extern "C" {

// y[n, h, w, out] from x[n, h, w, in], the weights[out, taps, taps, in] and, unless null, the bias[out].
void winograd_forward_bfloat16(const bf16* x, const bf16* weight, const float* bias, bf16* y, Convolution of) {
    const Map map{of.images, of.height, of.width, of.in};
    (of.taps == 3 ? convolve<3, false> : convolve<5, false>)(x, weight, bias, y, map, of.out);
}

// The gradient of x[n, h, w, in] from that of y[n, h, w, out].
void winograd_input_gradient_bfloat16(const bf16* dy, const bf16* weight, bf16* dx, Convolution of) {
    const Map map{of.images, of.height, of.width, of.out};
    (of.taps == 3 ? convolve<3, true> : convolve<5, true>)(dy, weight, nullptr, dx, map, of.in);
}

// The gradient of the weights[out, taps, taps, in].
void winograd_weight_gradient_bfloat16(const bf16* dy, const bf16* x, bf16* dw, Convolution of) {
    const Map map{of.images, of.height, of.width, of.in};
    (of.taps == 3 ? weight_gradient<3> : weight_gradient<5>)(dy, x, dw, map, of.out);
}
}

#endif
