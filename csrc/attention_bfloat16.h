// The forward of attention_blocks.h with products in bfloat16 and sums in float32, for processors that multiply it.
#pragma once

#include <ATen/native/CPUBlas.h>

#include "attention_blocks.h"
#include "bfloat16.h"

namespace hsta_fast {

struct Bfloat16Scratch {
  Half *keys, *values, *queries, *weights;
  float *scores, *sums, *factor, *top, *total;
  Bfloat16Scratch(Scratch& from, const Sizes& sizes)
      : keys(take(from, padded(sizes.M, TILE_KEYS) * padded(sizes.D, 2))),
        values(take(from, padded(sizes.M, 2) * sizes.D)),
        queries(take(from, std::max(BLOCK_ROWS, TILE_KEYS) * padded(sizes.D, 2))),
        weights(take(from, BLOCK_ROWS * TILE_KEYS)),
        scores(from.take(BLOCK_ROWS * PITCH)),
        sums(from.take(BLOCK_ROWS * sizes.D)),
        factor(from.take(BLOCK_ROWS)),
        top(from.take(BLOCK_ROWS)),
        total(from.take(BLOCK_ROWS)) {}

 private:
  static Half* take(Scratch& from, int64_t size) { return reinterpret_cast<Half*>(from.take((size + 1) / 2)); }
};

// As `weigh`, of scores still to be multiplied by `scale`; the weights in bfloat16, with a zero after an odd number.
inline void weigh_bfloat16(float* scores, float scale, int64_t rows, int64_t keys, float* top, float* total,
                           float* factor, Half* weights) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * PITCH;
    std::fill(row + keys, row + padded(keys, WIDTH), row[0]);
    Floats most = LOWEST - Floats{};
    for (int64_t j = 0; j < keys; j += WIDTH) {
      const Floats s = load(row + j) * scale;
      store(row + j, s);
      most = s > most ? s : most;
    }
    factor[r] = highest(most);
  }
  raise_maxima(rows, top, factor);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * PITCH;
    const float sum = weigh_row(row, keys, top[r]);
    round_row(row, padded(keys, 2), weights + r * TILE_KEYS);
    total[r] = total[r] * factor[r] + sum;
  }
}

// As `attend`.
inline void attend_bfloat16(const Sizes& sizes, Rows<const Half> q, Rows<const Half> k, Rows<const Half> v,
                            int64_t first, int64_t last, Rows<Half> out, float* stats, const Bfloat16Scratch& room) {
  const int64_t D = sizes.D, depth = padded(D, 2);
  const auto copy = [&](Rows<const Half> from, int64_t begin, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      round_row(from[begin + i], D, room.queries + i * depth);
      if (D < depth) room.queries[i * depth + D] = Half(0.0f);
    }
  };
  for (int64_t m = 0; m < sizes.M; m += TILE_KEYS) {
    const int64_t keys = std::min(TILE_KEYS, sizes.M - m);
    copy(k, m, keys);
    transpose_pairs(room.queries, keys, depth, room.keys + m * depth, TILE_KEYS);
  }
  for (int64_t m = 0; m < sizes.M; m += 2) {
    if (m + 1 < sizes.M) {
      interleave(v[m], v[m + 1], D, room.values + m * D);
    } else {
      for (int64_t d = 0; d < D; ++d) {
        room.values[m * D + 2 * d] = v[m][d];
        room.values[m * D + 2 * d + 1] = Half(0.0f);
      }
    }
  }
  for (int64_t n = first; n < last; n += BLOCK_ROWS) {
    const int64_t rows = std::min(BLOCK_ROWS, last - n);
    copy(q, n, rows);
    std::fill(room.top, room.top + BLOCK_ROWS, LOWEST);
    std::fill(room.total, room.total + rows, 0.0f);
    for (int64_t m = 0; m < sizes.M; m += TILE_KEYS) {
      const int64_t keys = std::min(TILE_KEYS, sizes.M - m);
      at::native::cpublas::brgemm(rows, keys, depth, depth, TILE_KEYS, PITCH, false, room.queries,
                                  room.keys + m * depth, room.scores, true);
      weigh_bfloat16(room.scores, sizes.query_factor(), rows, keys, room.top, room.total, room.factor, room.weights);
      for (int64_t r = 0; m > 0 && r < rows; ++r) {
        for (int64_t d = 0; d < D; ++d) room.sums[r * D + d] *= room.factor[r];
      }
      at::native::cpublas::brgemm(rows, D, padded(keys, 2), TILE_KEYS, D, D, m > 0, room.weights,
                                  room.values + m * D, room.sums, true);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float inverse = 1.0f / room.total[r];
      float* row = room.sums + r * D;
      for (int64_t d = 0; d < D; ++d) row[d] *= inverse;
      round_row(row, D, out[n + r]);
      stats[n + r] = room.top[r];
      stats[sizes.N + n + r] = room.total[r];
    }
  }
  at::native::cpublas::brgemm_release(true);
}

}  // namespace hsta_fast
