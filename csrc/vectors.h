// Vectors of the local processor, and small products that keep their sums in registers.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace hsta_fast {

#if defined(__AVX512F__)
constexpr int64_t VECTOR_BYTES = 64;
#else
constexpr int64_t VECTOR_BYTES = 32;
#endif
constexpr int64_t TILE = 16;     // rows
constexpr int64_t QUERIES = 4;   // per block of products, times BLOCK rows or vectors: 16 sums in registers
constexpr int64_t BLOCK = 4;

template <typename T>
struct Lanes {
  static constexpr int64_t count = VECTOR_BYTES / sizeof(T);
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
  typedef T loose __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
};

template <typename T>
using Vector = typename Lanes<T>::type;

template <typename T>
inline Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename Lanes<T>::loose*>(from);
}

template <typename T>
inline void store(T* to, Vector<T> x) {
  *reinterpret_cast<typename Lanes<T>::loose*>(to) = x;
}

template <typename T>
inline T sum(Vector<T> x) {
  T parts[Lanes<T>::count];
  std::memcpy(parts, &x, sizeof(x));
  for (int64_t step = Lanes<T>::count / 2; step > 0; step /= 2) {
    for (int64_t i = 0; i < step; ++i) parts[i] += parts[i + step];
  }
  return parts[0];
}

// e^x of `count` values <= 88, NaN kept: 2^n e^r with |r| <= log(2) / 2 and a polynomial for e^r.
inline void exponentials(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float clamped = x[i] < -87.0f ? -87.0f : x[i];
    const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: leaves the integer n in the low bits
    const float n = shifted - 12582912.0f;
    const float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
    float y = 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    const uint32_t bits = std::bit_cast<uint32_t>(y) + (std::bit_cast<uint32_t>(shifted) << 23);
    const float power = x[i] < -87.0f ? 0.0f : std::bit_cast<float>(bits);
    x[i] = x[i] == x[i] ? power : x[i];
  }
}

inline void exponentials(double* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = std::exp(x[i]);
}

constexpr int64_t GELU_MOST = 64;

// out = x Phi(x) of at most GELU_MOST values. Phi(-|x|) = erfc(|x| / sqrt 2) / 2 by a rational argument of an
// exponential, of relative error 1.2e-7 everywhere (Numerical Recipes, `erfcc`).
inline void gelu(const float* x, int64_t count, float* out) {
  float tail[GELU_MOST];
  for (int64_t i = 0; i < count; ++i) {
    const float z = std::fabs(x[i]) * 0.707106781f;
    const float t = 1.0f / (1.0f + 0.5f * z);
    float y = 0.17087277f;
    y = y * t - 0.82215223f;
    y = y * t + 1.48851587f;
    y = y * t - 1.13520398f;
    y = y * t + 0.27886807f;
    y = y * t - 0.18628806f;
    y = y * t + 0.09678418f;
    y = y * t + 0.37409196f;
    y = y * t + 1.00002368f;
    tail[i] = y * t - 1.26551223f - z * z;
  }
  exponentials(tail, count);
  for (int64_t i = 0; i < count; ++i) {
    const float half = 0.5f * tail[i] / (1.0f + 0.353553391f * std::fabs(x[i]));
    out[i] = x[i] * (x[i] < 0 ? half : 1.0f - half);
  }
}

inline int64_t padded(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// out[q][j] = queries[q] . tile[j] for `count` rows; out has TILE columns.
template <typename T>
void products(const T* queries, int64_t number, const T* tile, int64_t count, int64_t columns, T* out) {
  constexpr int64_t L = Lanes<T>::count;
  for (int64_t j = 0; j < count; j += BLOCK) {
    const T* rows = tile + j * columns;
    for (int64_t q = 0; q < number; q += QUERIES) {
      const T* u = queries + q * columns;
      Vector<T> sums[QUERIES][BLOCK] = {};
      for (int64_t c = 0; c < columns; c += L) {
        Vector<T> z[BLOCK];
        for (int64_t i = 0; i < BLOCK; ++i) z[i] = load(rows + i * columns + c);
        for (int64_t k = 0; k < QUERIES; ++k) {
          const Vector<T> v = load(u + k * columns + c);
          for (int64_t i = 0; i < BLOCK; ++i) sums[k][i] += v * z[i];
        }
      }
      for (int64_t k = 0; k < QUERIES; ++k) {
        for (int64_t i = 0; i < BLOCK; ++i) out[(q + k) * TILE + j + i] = sum<T>(sums[k][i]);
      }
    }
  }
}

// finish(a, c, start(a, c) + sum_b weights(a, b) rows[b][c..]) for a multiple of QUERIES of a, b < count and every
// vector of columns; weights(a, b) lies at a * step_a + b * step_b.
template <typename T, typename Start, typename Finish>
void weighted_sums(const T* weights, int64_t step_a, int64_t step_b, int64_t number, const T* rows, int64_t count,
                   int64_t columns, const Start& start, const Finish& finish) {
  constexpr int64_t L = Lanes<T>::count;
  for (int64_t c = 0; c < columns; c += BLOCK * L) {
    for (int64_t a = 0; a < number; a += QUERIES) {
      Vector<T> sums[QUERIES][BLOCK];
      for (int64_t k = 0; k < QUERIES; ++k) {
        for (int64_t i = 0; i < BLOCK; ++i) sums[k][i] = start(a + k, c + i * L);
      }
      for (int64_t b = 0; b < count; ++b) {
        Vector<T> z[BLOCK];
        for (int64_t i = 0; i < BLOCK; ++i) z[i] = load(rows + b * columns + c + i * L);
        for (int64_t k = 0; k < QUERIES; ++k) {
          const T w = weights[(a + k) * step_a + b * step_b];
          for (int64_t i = 0; i < BLOCK; ++i) sums[k][i] += w * z[i];
        }
      }
      for (int64_t k = 0; k < QUERIES; ++k) {
        for (int64_t i = 0; i < BLOCK; ++i) finish(a + k, c + i * L, sums[k][i]);
      }
    }
  }
}

// acc[a] = factor[a] acc[a] + sum_b weights[a][b] rows[b], weights of TILE columns. Without `factor` acc is overwritten.
template <typename T>
void accumulate(const T* weights, int64_t number, const T* rows, int64_t count, int64_t columns, const T* factor,
                T* acc) {
  const auto put = [&](int64_t a, int64_t c, Vector<T> x) { store(acc + a * columns + c, x); };
  if (factor == nullptr) {
    weighted_sums(weights, TILE, int64_t{1}, number, rows, count, columns,
                  [](int64_t, int64_t) { return Vector<T>{}; }, put);
  } else {
    weighted_sums(weights, TILE, int64_t{1}, number, rows, count, columns,
                  [&](int64_t a, int64_t c) { return factor[a] * load(acc + a * columns + c); }, put);
  }
}

}  // namespace hsta_fast
