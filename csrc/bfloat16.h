// Rows of bfloat16, and pairs of them as the products in bfloat16 take them.
#pragma once

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <bit>
#include <cstdint>
#include <cstring>
#include <exception>

#include "transpose.h"

namespace hsta_fast {

using Half = c10::BFloat16;

// Whether one instruction of the local processor multiplies pairs of bfloat16, and torch's small product may use it:
// torch.backends.mkldnn.flags and ONEDNN_MAX_CPU_ISA can forbid it.
inline bool multiplies_bfloat16() {
#ifdef __AVX512BF16__
  if (!at::globalContext().userEnabledMkldnn()) return false;
  static const bool generated = [] {
    const Half a[2] = {1.0f, 2.0f}, b[2] = {3.0f, 4.0f};
    float product = 0;
    try {
      at::native::cpublas::brgemm(1, 1, 2, 2, 1, 1, false, a, b, &product, true);
      at::native::cpublas::brgemm_release(true);
    } catch (const std::exception&) {
      return false;
    }
    return product == 11.0f;
  }();
  return generated;
#else
  return false;
#endif
}

// The nearest bfloat16, ties to even; NaN kept.
inline uint16_t rounded(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), up = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(x == x ? up : 0x7fc0);
}

inline void round_row(const float* from, int64_t count, Half* to) {
  uint16_t* out = reinterpret_cast<uint16_t*>(to);
  int64_t i = 0;
#ifdef __AVX512BF16__
  for (; i + 16 <= count; i += 16) {
    const __m256bh sixteen = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
    std::memcpy(out + i, &sixteen, sizeof(sixteen));
  }
#endif
  for (; i < count; ++i) out[i] = rounded(from[i]);
}

inline void round_row(const Half* from, int64_t count, Half* to) { std::memcpy(to, from, count * sizeof(Half)); }

// Row k of `a` beside row k + 1, `b`: a[0] b[0] a[1] b[1] ...
inline void interleave(const Half* a, const Half* b, int64_t count, Half* to) {
  const uint16_t *low = reinterpret_cast<const uint16_t*>(a), *high = reinterpret_cast<const uint16_t*>(b);
  uint32_t* out = reinterpret_cast<uint32_t*>(to);
  for (int64_t j = 0; j < count; ++j) out[j] = low[j] | static_cast<uint32_t>(high[j]) << 16;
}

// in (rows, depth), depth even -> pairs (depth / 2, pitch, 2), of which `rows` columns are written.
inline void transpose_pairs(const Half* in, int64_t rows, int64_t depth, Half* pairs, int64_t pitch) {
  transpose(reinterpret_cast<const float*>(in), rows, depth / 2, depth / 2, reinterpret_cast<float*>(pairs), pitch);
}

}  // namespace hsta_fast
