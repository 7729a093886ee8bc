// Softmax attention of one head on the CPU, block by block: out = softmax(scale q k') v and its backward, in float32.
//
// Queries and keys are copied into aligned panels. A block of BLOCK_ROWS queries meets a tile of TILE_KEYS keys; their
// scores stay in the second-level cache, and the sums of a product in registers.
//
// N queries, M keys, D head width; `columns` is D padded to whole vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "transpose.h"
#include "vectors.h"

namespace hsta_fast {

using Floats = Vector<float>;
constexpr int64_t WIDTH = Lanes<float>::count;
constexpr int64_t WIDE = VECTOR_BYTES == 64 ? 4 : 2;  // vectors of a row in registers; 6 rows of them: 24 or 12 sums
constexpr int64_t PANEL = WIDE * WIDTH;               // keys of a transposed panel
constexpr int64_t ROWS = 12;                          // to which numbers of rows are padded
constexpr int64_t BLOCK_ROWS = 96;
constexpr int64_t TILE_KEYS = 256;
constexpr int64_t PITCH = TILE_KEYS + WIDTH;  // of scores: an odd number of cache lines, so that no column collides
constexpr float LOWEST = -std::numeric_limits<float>::infinity();

// How a product meets what its result holds.
enum class Into { replace, add, scale };

// The first operand of a product: element (r, t) lies at r * row + t * depth.
struct Factor {
  const float* at;
  int64_t row, depth;
};

template <int64_t R, int64_t V>
inline void block_product(Factor a, const float* b, int64_t pitch_b, int64_t depth, float* c, int64_t pitch_c,
                          Into into, const float* factor) {
  Floats sums[R][V];
#pragma GCC unroll 12
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t v = 0; v < V; ++v) {
      const Floats old = into == Into::replace ? Floats{} : load(c + r * pitch_c + v * WIDTH);
      sums[r][v] = into == Into::scale ? old * factor[r] : old;
    }
  }
  const float* at = a.at;
  for (int64_t t = 0; t < depth; ++t, at += a.depth, b += pitch_b) {
    Floats x[V];
    for (int64_t v = 0; v < V; ++v) x[v] = load(b + v * WIDTH);
#pragma GCC unroll 12
    for (int64_t r = 0; r < R; ++r) {
      const float w = at[r * a.row];
      for (int64_t v = 0; v < V; ++v) sums[r][v] += w * x[v];
    }
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t v = 0; v < V; ++v) store(c + r * pitch_c + v * WIDTH, sums[r][v]);
  }
}

template <int64_t R, int64_t V>
void rows_product(Factor a, int64_t rows, const float* b, int64_t pitch_b, int64_t depth, float* c, int64_t pitch_c,
                  Into into, const float* factor) {
  for (int64_t r = 0; r < rows; r += R) {
    block_product<R, V>({a.at + r * a.row, a.row, a.depth}, b, pitch_b, depth, c + r * pitch_c, pitch_c, into,
                        factor == nullptr ? nullptr : factor + r);
  }
}

// c[r][j] = sum_t a(r, t) b[t][j], plus c[r][j] (add) or factor[r] c[r][j] (scale), for `vectors` vectors of columns.
// Rows are padded to a multiple of ROWS: these are read and written.
inline void product(Factor a, int64_t rows, const float* b, int64_t pitch_b, int64_t depth, int64_t vectors, float* c,
                    int64_t pitch_c, Into into, const float* factor = nullptr) {
  for (int64_t v = 0; v < vectors;) {
    const float* from = b + v * WIDTH;
    float* to = c + v * WIDTH;
    if (vectors - v >= WIDE) {
      rows_product<6, WIDE>(a, rows, from, pitch_b, depth, to, pitch_c, into, factor);
      v += WIDE;
    } else if (WIDE > 2 && vectors - v >= 2) {
      rows_product<ROWS, 2>(a, rows, from, pitch_b, depth, to, pitch_c, into, factor);
      v += 2;
    } else {
      rows_product<ROWS, 1>(a, rows, from, pitch_b, depth, to, pitch_c, into, factor);
      v += 1;
    }
  }
}

// 2^x of values <= 127, 0 below -127, NaN kept: 2^n 2^f with |f| <= 1/2 and a polynomial for 2^f.
inline Floats power_of_two(Floats x) {
  typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  x = -127.0f > x ? -127.0f - Floats{} : x;
  const Floats shifted = x + 12583039.0f;  // 1.5 * 2^23 + 127: leaves n + 127 in the low bits
  const Floats f = x - (shifted - 12583039.0f);
  Floats y = f * 1.53533561e-4f + 1.33988757e-3f;
  y = y * f + 9.61843739e-3f;
  y = y * f + 5.55033247e-2f;
  y = y * f + 2.40226479e-1f;
  y = y * f + 6.93147203e-1f;
  y = y * f + 1.0f;
  const Bits power = std::bit_cast<Bits>(shifted) << 23;
  return y * std::bit_cast<Floats>(power);
}

inline float highest(Floats x) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter parts[VECTOR_BYTES / 16];
  std::memcpy(parts, &x, sizeof(x));
  for (int64_t i = 1; i < VECTOR_BYTES / 16; ++i) parts[0] = parts[i] > parts[0] ? parts[i] : parts[0];
  return std::max(std::max(parts[0][0], parts[0][1]), std::max(parts[0][2], parts[0][3]));
}

inline float total_of(Floats x) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter parts[VECTOR_BYTES / 16];
  std::memcpy(parts, &x, sizeof(x));
  for (int64_t i = 1; i < VECTOR_BYTES / 16; ++i) parts[0] += parts[i];
  return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

// to[j][..D] = factor * from[j * stride ..], zeros up to `columns`.
template <typename T>
void copy_rows(const T* from, int64_t stride, int64_t rows, int64_t D, float factor, float* to) {
  const int64_t columns = padded(D, WIDTH);
  for (int64_t j = 0; j < rows; ++j, from += stride, to += columns) {
    for (int64_t d = 0; d < D; ++d) to[d] = factor * static_cast<float>(from[d]);
    std::fill(to + D, to + columns, 0.0f);
  }
}

// Panels of PANEL keys, each [D][PANEL], zeros for keys that do not exist.
template <typename T>
void transpose_rows(const T* from, int64_t stride, int64_t rows, int64_t D, float* to) {
  for (int64_t j = 0; j < rows; j += PANEL, to += D * PANEL) {
    const int64_t some = std::min(PANEL, rows - j);
    const T* first = from + j * stride;
    if (some < PANEL) std::fill(to, to + D * PANEL, 0.0f);
    if constexpr (std::is_same_v<T, float>) {
      transpose(first, some, D, stride, to, PANEL);
      continue;
    }
    for (int64_t i = 0; i < some; ++i) {
      for (int64_t d = 0; d < D; ++d) to[d * PANEL + i] = static_cast<float>(first[i * stride + d]);
    }
  }
}

// scores[r][j] = rows[r] . key j of the panels, for rows of `columns` elements.
inline void scores_of(const float* rows, int64_t number, int64_t columns, const float* panels, int64_t keys, int64_t D,
                      float* scores) {
  for (int64_t j = 0; j < keys; j += PANEL, panels += D * PANEL) {
    const int64_t vectors = (std::min(PANEL, keys - j) + WIDTH - 1) / WIDTH;
    product({rows, columns, 1}, number, panels, PANEL, D, vectors, scores + j, PITCH, Into::replace);
  }
}

// The rows of one head of a tensor (B, N, H, D), and the sizes of a problem.
template <typename T>
struct Rows {
  T* at;
  int64_t stride;
  T* operator[](int64_t row) const { return at + row * stride; }
};

struct Sizes {
  int64_t N, M, D;
  float scale;
  int64_t columns() const { return padded(D, WIDTH); }
  // Of the queries: scores are logarithms to base 2 as they come out of a product. Were they scaled after it, in one
  // instruction with the subtraction of their rounded maximum, huge ones would exceed it.
  float query_factor() const { return scale * 1.44269504f; }
};

// A part of the scratch memory, in floats; every part begins on a cache line.
struct Scratch {
  float* next;
  int64_t used = 0;
  float* take(int64_t size) {
    float* part = next == nullptr ? nullptr : next + used;
    used += padded(size, 16);
    return part;
  }
};

struct ForwardScratch {
  float *panels, *values, *queries, *scores, *sums, *factor, *top, *total;
  ForwardScratch(Scratch& from, const Sizes& sizes)
      : panels(from.take(padded(sizes.M, PANEL) * sizes.D)),
        values(from.take(sizes.M * sizes.columns())),
        queries(from.take(BLOCK_ROWS * sizes.columns())),
        scores(from.take(BLOCK_ROWS * PITCH)),
        sums(from.take(BLOCK_ROWS * sizes.columns())),
        factor(from.take(BLOCK_ROWS)),
        top(from.take(BLOCK_ROWS)),
        total(from.take(BLOCK_ROWS)) {}
};

// Running maxima `top` of `rows` rows, raised to those of one more tile; factor: these, then by how much earlier weights
// shrink.
inline void raise_maxima(int64_t rows, float* top, float* factor) {
  for (int64_t r = 0; r < rows; r += WIDTH) {
    const Floats before = load(top + r), now = load(factor + r), most = now > before ? now : before;
    store(top + r, most);
    store(factor + r, power_of_two(before - (most == LOWEST ? Floats{} : most)));
  }
}

// One row of scores -> weights relative to its maximum `top`, then zeros to the end of the vector; returns their sum.
inline float weigh_row(float* row, int64_t keys, float top) {
  const int64_t whole = keys / WIDTH * WIDTH;
  const float base = top == LOWEST ? 0.0f : top;
  Floats sums{};
  for (int64_t j = 0; j < whole; j += WIDTH) {
    const Floats p = power_of_two(load(row + j) - base);
    store(row + j, p);
    sums += p;
  }
  if (whole < keys) {
    store(row + whole, power_of_two(load(row + whole) - base));
    std::fill(row + keys, row + whole + WIDTH, 0.0f);
    sums += load(row + whole);
  }
  return total_of(sums);
}

// Scores of `rows` rows -> weights relative to the running maxima `top`, which are updated, as are the sums of weights
// `total`; factor: by how much earlier weights shrink.
inline void weigh(float* scores, int64_t rows, int64_t keys, float* top, float* total, float* factor) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * PITCH;
    std::fill(row + keys, row + padded(keys, WIDTH), row[0]);
    Floats most = load(row);
    for (int64_t j = WIDTH; j < keys; j += WIDTH) {
      const Floats s = load(row + j);
      most = s > most ? s : most;
    }
    factor[r] = highest(most);
  }
  raise_maxima(rows, top, factor);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * PITCH;
    const float sum = weigh_row(row, keys, top[r]);
    total[r] = total[r] * factor[r] + sum;
  }
}

// Rows [first, last) of one head. stats: the largest score of each row to base 2, then at + N the sum of its weights.
template <typename T>
void attend(const Sizes& sizes, Rows<const T> q, Rows<const T> k, Rows<const T> v, int64_t first, int64_t last,
            Rows<T> out, float* stats, const ForwardScratch& room) {
  const int64_t columns = sizes.columns(), D = sizes.D, vectors = columns / WIDTH;
  transpose_rows(k.at, k.stride, sizes.M, D, room.panels);
  copy_rows(v.at, v.stride, sizes.M, D, 1.0f, room.values);
  for (int64_t n = first; n < last; n += BLOCK_ROWS) {
    const int64_t rows = std::min(BLOCK_ROWS, last - n);
    copy_rows(q[n], q.stride, rows, D, sizes.query_factor(), room.queries);
    std::fill(room.top, room.top + BLOCK_ROWS, LOWEST);
    std::fill(room.total, room.total + rows, 0.0f);
    for (int64_t m = 0; m < sizes.M; m += TILE_KEYS) {
      const int64_t keys = std::min(TILE_KEYS, sizes.M - m);
      scores_of(room.queries, rows, columns, room.panels + m * D, keys, D, room.scores);
      weigh(room.scores, rows, keys, room.top, room.total, room.factor);
      product({room.scores, PITCH, 1}, rows, room.values + m * columns, columns, keys, vectors, room.sums, columns,
              m == 0 ? Into::replace : Into::scale, room.factor);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float inverse = 1.0f / room.total[r];
      T* to = out[n + r];
      for (int64_t d = 0; d < D; ++d) to[d] = static_cast<T>(room.sums[r * columns + d] * inverse);
      stats[n + r] = room.top[r];
      stats[sizes.N + n + r] = room.total[r];
    }
  }
}

struct BackwardScratch {
  float *queries, *dout, *delta, *dq, *key_panels, *value_panels, *keys, *dk, *dv, *weights, *products;
  BackwardScratch(Scratch& from, const Sizes& sizes)
      : queries(from.take(padded(sizes.N, ROWS) * sizes.columns())),
        dout(from.take(padded(sizes.N, ROWS) * sizes.columns())),
        delta(from.take(sizes.N)),
        dq(from.take(padded(sizes.N, ROWS) * sizes.columns())),
        key_panels(from.take(TILE_KEYS * sizes.D)),
        value_panels(from.take(TILE_KEYS * sizes.D)),
        keys(from.take(TILE_KEYS * sizes.columns())),
        dk(from.take(padded(TILE_KEYS, ROWS) * sizes.columns())),
        dv(from.take(padded(TILE_KEYS, ROWS) * sizes.columns())),
        weights(from.take(BLOCK_ROWS * PITCH)),
        products(from.take(BLOCK_ROWS * PITCH)) {}
};

// The gradients of keys and values [first, last) of one head; room.dq: what these keys add to dq, without the scale.
template <typename T>
void attend_backward(const Sizes& sizes, Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> out,
                     Rows<const T> dout, const float* stats, int64_t first, int64_t last, Rows<T> dk, Rows<T> dv,
                     const BackwardScratch& room) {
  const int64_t columns = sizes.columns(), D = sizes.D, vectors = columns / WIDTH;
  copy_rows(q.at, q.stride, sizes.N, D, sizes.query_factor(), room.queries);
  for (int64_t n = 0; n < sizes.N; ++n) {
    float* row = room.dout + n * columns;
    copy_rows(dout[n], dout.stride, 1, D, 1.0f / stats[sizes.N + n], row);
    float delta = 0;
    for (int64_t d = 0; d < D; ++d) delta += row[d] * static_cast<float>(out[n][d]);
    room.delta[n] = delta;
  }
  for (int64_t m = first; m < last; m += TILE_KEYS) {
    const int64_t keys = std::min(TILE_KEYS, last - m);
    transpose_rows(k[m], k.stride, keys, D, room.key_panels);
    transpose_rows(v[m], v.stride, keys, D, room.value_panels);
    copy_rows(k[m], k.stride, keys, D, 1.0f, room.keys);
    for (int64_t n = 0; n < sizes.N; n += BLOCK_ROWS) {
      const int64_t rows = std::min(BLOCK_ROWS, sizes.N - n);
      const float *queries = room.queries + n * columns, *gradients = room.dout + n * columns;
      scores_of(queries, rows, columns, room.key_panels, keys, D, room.weights);
      scores_of(gradients, rows, columns, room.value_panels, keys, D, room.products);
      for (int64_t r = 0; r < rows; ++r) {
        const float top = stats[n + r], base = top == LOWEST ? 0.0f : top;
        const float delta = room.delta[n + r];
        float *p = room.weights + r * PITCH, *t = room.products + r * PITCH;
        for (int64_t j = 0; j < keys; j += WIDTH) {
          const Floats weight = power_of_two(load(p + j) - base);
          store(p + j, weight);
          store(t + j, weight * (load(t + j) - delta));
        }
      }
      const Into into = n == 0 ? Into::replace : Into::add;
      product({room.weights, 1, PITCH}, keys, gradients, columns, rows, vectors, room.dv, columns, into);
      product({room.products, 1, PITCH}, keys, queries, columns, rows, vectors, room.dk, columns, into);
      product({room.products, PITCH, 1}, rows, room.keys, columns, keys, vectors, room.dq + n * columns, columns,
              m == first ? Into::replace : Into::add);
    }
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t d = 0; d < D; ++d) {
        dk[m + j][d] = static_cast<T>(0.693147181f * room.dk[j * columns + d]);
        dv[m + j][d] = static_cast<T>(room.dv[j * columns + d]);
      }
    }
  }
}

}  // namespace hsta_fast
