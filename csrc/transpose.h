// A matrix transposed in blocks of 16 x 16, in the registers of the local processor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace hsta_fast {

#ifdef __AVX512F__
using Row = float __attribute__((vector_size(64)));
using Order = int32_t __attribute__((vector_size(64)));

// Rows i and i + STEP exchange the parts that lie on the wrong side of the diagonal.
template <int STEP>
inline void exchange(Row* rows) {
  Order upper, lower;
  for (int j = 0; j < 16; ++j) {
    upper[j] = j & STEP ? 16 + j - STEP : j;
    lower[j] = j & STEP ? 16 + j : j + STEP;
  }
  for (int i = 0; i < 16; ++i) {
    if (i & STEP) continue;
    const Row a = rows[i], b = rows[i + STEP];
    rows[i] = __builtin_shuffle(a, b, upper);
    rows[i + STEP] = __builtin_shuffle(a, b, lower);
  }
}

// A block of 16 x 16, in registers.
inline void transpose_block(const float* in, int64_t in_pitch, float* out, int64_t out_pitch) {
  Row rows[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&rows[i], in + i * in_pitch, sizeof(Row));
  exchange<8>(rows);
  exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
  for (int i = 0; i < 16; ++i) std::memcpy(out + i * out_pitch, &rows[i], sizeof(Row));
}
#else
inline void transpose_block(const float* in, int64_t in_pitch, float* out, int64_t out_pitch) {
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t k = 0; k < 16; ++k) out[k * out_pitch + i] = in[i * in_pitch + k];
  }
}
#endif

// in (rows, columns) with rows in_pitch apart -> out (columns, rows) with rows out_pitch apart.
inline void transpose(const float* in, int64_t rows, int64_t columns, int64_t in_pitch, float* out,
                      int64_t out_pitch) {
  for (int64_t i = 0; i < rows; i += 16) {
    for (int64_t k = 0; k < columns; k += 16) {
      const float* from = in + i * in_pitch + k;
      float* to = out + k * out_pitch + i;
      if (rows - i >= 16 && columns - k >= 16) {
        transpose_block(from, in_pitch, to, out_pitch);
        continue;
      }
      for (int64_t row = 0; row < std::min<int64_t>(16, rows - i); ++row) {
        for (int64_t j = 0; j < std::min<int64_t>(16, columns - k); ++j) {
          to[j * out_pitch + row] = from[row * in_pitch + j];
        }
      }
    }
  }
}

}  // namespace hsta_fast
