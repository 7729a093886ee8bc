// Products of a linear layer on the CPU in float32: y = x W' + b with exact GELU, and dx = dy W.
//
// A thread copies 64 columns of the right side at a time into a panel that stays in its second-level cache, and
// multiplies all its rows by it. So no packed copy of a weight outlives the call, and none can be out of date.
// Bias and GELU are applied while the rows of a panel's result are in the cache.
//
// M rows, K columns of x, N columns of y.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <memory>

#include "transpose.h"
#include "vectors.h"

namespace hsta_fast {
namespace {

constexpr int64_t PANEL = 64;      // columns of y that one call of the small product makes
constexpr int64_t BLOCK_K = 1024;  // PANEL x BLOCK_K numbers: a quarter of a common second-level cache
constexpr int64_t BLOCK_ROWS = 96;
constexpr int64_t LEAST_ROWS = 256;  // of a thread, if several share a panel: each makes its own copy

// (y, what GELU was applied to, or nothing). `turned`: weight is (K, N) and y = x W; else it is (N, K) and y = x W'.
std::tuple<at::Tensor, at::Tensor> linear_product(const at::Tensor& x, const at::Tensor& weight,
                                                  const std::optional<at::Tensor>& bias, bool turned, bool with_gelu,
                                                  bool keep) {
  TORCH_CHECK(weight.dim() == 2 && x.dim() > 0 && x.size(-1) == weight.size(turned ? 0 : 1),
              "weight expected shape (N, K), or (K, N) where turned, for x of ", x.sizes(), ", got ", weight.sizes());
  for (const at::Tensor& given : {x, weight, bias ? *bias : weight}) {
    TORCH_CHECK(given.scalar_type() == at::kFloat && given.is_contiguous(),
                "x, weight and bias expected contiguous float32, got ", given.scalar_type(), " of strides ",
                given.strides());
  }
  const int64_t K = x.size(-1), N = weight.size(turned ? 1 : 0), M = K == 0 ? 0 : x.numel() / K;
  TORCH_CHECK(M > 0 && N > 0, "x and weight expected elements, got ", x.sizes(), " and ", weight.sizes());
  TORCH_CHECK(!bias || bias->numel() == N, "bias expected ", N, " elements, got ", bias->sizes());
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = N;
  at::Tensor y = at::empty(sizes, x.options());
  at::Tensor before = with_gelu && keep ? at::empty(sizes, x.options()) : at::empty({0}, x.options());
  const float *from = x.const_data_ptr<float>(), *right = weight.const_data_ptr<float>();
  const float* biases = bias ? bias->const_data_ptr<float>() : nullptr;
  float* activated = y.mutable_data_ptr<float>();
  float* sums = with_gelu && keep ? before.mutable_data_ptr<float>() : activated;

  const int64_t panels = (N + PANEL - 1) / PANEL, threads = at::get_num_threads();
  int64_t shares = 1;  // of the rows
  while (panels * shares < 4 * threads && panels * shares % threads && M / (shares + 1) >= LEAST_ROWS) ++shares;
  const int64_t parts = (K + BLOCK_K - 1) / BLOCK_K;

  at::parallel_for(0, panels * shares, 1, [&](int64_t begin, int64_t end) {
    std::unique_ptr<float[]> panel(new float[PANEL * ((K + parts - 1) / parts)]);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / shares * PANEL, width = std::min(PANEL, N - n);
      const int64_t first = M * (item % shares) / shares, last = M * (item % shares + 1) / shares;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t k = K * part / parts, depth = K * (part + 1) / parts - k;
        if (turned) {
          for (int64_t i = 0; i < depth; ++i) {
            std::memcpy(panel.get() + i * width, right + (k + i) * N + n, width * sizeof(float));
          }
        } else {
          transpose(right + n * K + k, width, depth, K, panel.get(), width);
        }
        for (int64_t row = first; row < last; row += BLOCK_ROWS) {
          const int64_t rows = std::min(BLOCK_ROWS, last - row);
          float* out = sums + row * N + n;
          if (part == 0 && biases) {
            for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * N, biases + n, width * sizeof(float));
          }
          at::native::cpublas::brgemm(rows, width, depth, K, width, N, part > 0 || biases, from + row * K + k,
                                      panel.get(), out, false);
          if (with_gelu && part == parts - 1) {
            for (int64_t i = 0; i < rows; ++i) gelu(out + i * N, width, activated + (row + i) * N + n);
          }
        }
      }
    }
    at::native::cpublas::brgemm_release(false);
  });
  return {y, before};
}

}  // namespace

TORCH_LIBRARY_IMPL(hsta_fast, CPU, m) { m.impl("linear_product", linear_product); }

}  // namespace hsta_fast
