// Products of a linear layer on the CPU in bfloat16, sums in float32: y = x W' + b with exact GELU, and dx = dy W.
//
// As linear.cpp: a thread copies 64 columns of the right side at a time into a panel, here in pairs of bfloat16, which
// one instruction multiplies and adds. Operands in float32 are rounded as they are copied, so under autocast no
// rounded copy of a weight is written to memory.
//
// M rows, K columns of x, N columns of y.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <memory>

#include "bfloat16.h"
#include "vectors.h"

namespace hsta_fast {
namespace {

constexpr int64_t PANEL = 64;  // columns of y that one call of the small product makes
constexpr int64_t BLOCK_ROWS = 96;
constexpr int64_t LEAST_ROWS = 256;  // of a thread, if several share a panel: each makes its own copy

// Columns [n, n + width) of the right side -> panel (depth / 2, width, 2); depth is K padded to pairs.
template <typename T>
void pack(const T* right, bool turned, int64_t K, int64_t N, int64_t n, int64_t width, int64_t depth, Half* rows,
          Half* panel) {
  if (turned) {
    for (int64_t k = 0; k < depth; k += 2) {
      Half pair[2][PANEL] = {};
      for (int64_t i = 0; i < std::min<int64_t>(2, K - k); ++i) round_row(right + (k + i) * N + n, width, pair[i]);
      interleave(pair[0], pair[1], width, panel + k * width);
    }
    return;
  }
  for (int64_t first = 0; first < width; first += 16) {
    const int64_t some = std::min<int64_t>(16, width - first);
    for (int64_t i = 0; i < some; ++i) {
      round_row(right + (n + first + i) * K, K, rows + i * depth);
      if (K < depth) rows[i * depth + K] = Half(0.0f);
    }
    transpose_pairs(rows, some, depth, panel + 2 * first, width);
  }
}

template <typename T>
void multiply(const Half* x, const T* right, const float* bias, bool turned, bool with_gelu, int64_t M, int64_t K,
              int64_t N, int64_t depth, Half* y, Half* before) {
  const int64_t panels = (N + PANEL - 1) / PANEL, threads = at::get_num_threads();
  int64_t shares = 1;  // of the rows
  while (panels * shares < 4 * threads && panels * shares % threads && M / (shares + 1) >= LEAST_ROWS) ++shares;
  at::parallel_for(0, panels * shares, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<Half[]> panel(new Half[PANEL * depth]), rows(new Half[16 * depth]);
    alignas(64) float sums[BLOCK_ROWS * PANEL];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / shares * PANEL, width = std::min(PANEL, N - n);
      const int64_t first = M * (item % shares) / shares, last = M * (item % shares + 1) / shares;
      pack(right, turned, K, N, n, width, depth, rows.get(), panel.get());
      for (int64_t row = first; row < last; row += BLOCK_ROWS) {
        const int64_t count = std::min(BLOCK_ROWS, last - row);
        at::native::cpublas::brgemm(count, width, depth, depth, width, PANEL, false, x + row * depth, panel.get(),
                                    sums, true);
        for (int64_t i = 0; i < count; ++i) {
          float* out = sums + i * PANEL;
          if (bias) {
            for (int64_t j = 0; j < width; ++j) out[j] += bias[n + j];
          }
          if (before) round_row(out, width, before + (row + i) * N + n);
          if (with_gelu) gelu(out, width, out);
          round_row(out, width, y + (row + i) * N + n);
        }
      }
    }
    at::native::cpublas::brgemm_release(true);
  });
}

std::tuple<at::Tensor, at::Tensor> linear_product_bfloat16(const at::Tensor& x, const at::Tensor& weight,
                                                           const std::optional<at::Tensor>& bias, bool turned,
                                                           bool with_gelu, bool keep) {
  TORCH_CHECK(weight.dim() == 2 && x.dim() > 0 && x.size(-1) == weight.size(turned ? 0 : 1),
              "weight expected shape (N, K), or (K, N) where turned, for x of ", x.sizes(), ", got ", weight.sizes());
  for (const at::Tensor& given : {x, weight, bias ? *bias : weight}) {
    const auto dtype = given.scalar_type();
    TORCH_CHECK((dtype == at::kFloat || dtype == at::kBFloat16) && given.is_contiguous(),
                "x, weight and bias expected contiguous float32 or bfloat16, got ", dtype, " of strides ",
                given.strides());
  }
  const int64_t K = x.size(-1), N = weight.size(turned ? 1 : 0), M = K == 0 ? 0 : x.numel() / K;
  TORCH_CHECK(M > 0 && N > 0, "x and weight expected elements, got ", x.sizes(), " and ", weight.sizes());
  TORCH_CHECK(!bias || bias->numel() == N, "bias expected ", N, " elements, got ", bias->sizes());
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = N;
  const auto options = x.options().dtype(at::kBFloat16);
  at::Tensor y = at::empty(sizes, options), before = at::empty({0}, options);
  if (with_gelu && keep) before = at::empty(sizes, options);

  const int64_t depth = padded(K, 2);
  at::Tensor left = x;
  if (x.scalar_type() == at::kFloat || depth > K) {
    left = at::empty({M, depth}, options);
    Half* to = left.mutable_data_ptr<Half>();
    at::parallel_for(0, M, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (x.scalar_type() == at::kFloat) {
          round_row(x.const_data_ptr<float>() + row * K, K, to + row * depth);
        } else {
          round_row(x.const_data_ptr<Half>() + row * K, K, to + row * depth);
        }
        if (depth > K) to[row * depth + K] = Half(0.0f);
      }
    });
  }
  const std::unique_ptr<float[]> biases(bias ? new float[N] : nullptr);
  for (int64_t j = 0; bias && j < N; ++j) {
    biases[j] = bias->scalar_type() == at::kFloat ? bias->const_data_ptr<float>()[j]
                                                  : static_cast<float>(bias->const_data_ptr<Half>()[j]);
  }
  const Half* from = left.const_data_ptr<Half>();
  Half *to = y.mutable_data_ptr<Half>(), *kept = with_gelu && keep ? before.mutable_data_ptr<Half>() : nullptr;
  if (weight.scalar_type() == at::kFloat) {
    multiply(from, weight.const_data_ptr<float>(), biases.get(), turned, with_gelu, M, K, N, depth, to, kept);
  } else {
    multiply(from, weight.const_data_ptr<Half>(), biases.get(), turned, with_gelu, M, K, N, depth, to, kept);
  }
  return {y, before};
}

}  // namespace

TORCH_LIBRARY_IMPL(hsta_fast, CPU, m) { m.impl("linear_product_bfloat16", linear_product_bfloat16); }

// Whether the ops above and attention use products in bfloat16 now.
TORCH_LIBRARY_FRAGMENT(hsta_fast, m) { m.def("multiplies_bfloat16() -> bool", multiplies_bfloat16); }

}  // namespace hsta_fast
