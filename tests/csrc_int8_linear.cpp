// Products on int8 of many shapes, in buffers that fit exactly, against float64: for the address sanitizer, which sees
// one element too many. Inputs and weights are integers that rounding leaves as they are.
#include "int8_linear.cpp"

#include <ATen/ATen.h>

#include <cstdio>

namespace {

int failures = 0;

// An integer weight (O, K) with a largest entry of 127 per row, as `pack` of ops/int8_linear.py lays it out.
std::vector<at::Tensor> pack(const at::Tensor& weight) {
  const int64_t O = weight.size(0), K = weight.size(1);
  at::Tensor padded = at::zeros({(O + 63) / 64 * 64, (K + 3) / 4 * 4}, at::kChar);
  padded.narrow(0, 0, O).narrow(1, 0, K).copy_(weight);
  return {padded.view({padded.size(0) / 64, 64, padded.size(1) / 4, 4}).transpose(1, 2).contiguous(), at::ones({O}, at::kFloat),
          weight.sum(1, false, at::kInt), at::randint(-9, 9, {O}, at::kFloat)};
}

void compare(const char* what, const at::Tensor& came, const at::Tensor& exact, double tolerance) {
  const double error = exact.numel() ? (came.to(at::kDouble) - exact).abs().max().item<double>() : 0;
  if (came.sizes() == exact.sizes() && error <= tolerance) return;
  ++failures;
  std::printf("%s: error %g\n", what, error);
}

void check(int64_t rows, int64_t K, int64_t O) {
  at::Tensor x = at::randint(0, 256, {rows, K}, at::kFloat), weight = at::randint(-127, 128, {O, K}, at::kFloat);
  if (rows && K) x.select(1, 0).fill_(255);
  if (K) weight.select(1, 0).fill_(127);
  const auto parts = pack(weight);
  const at::Tensor residual = at::randint(-9, 9, {rows, O}, at::kFloat);
  const at::Tensor exact = at::matmul(x.to(at::kDouble), weight.to(at::kDouble).t()) + parts[3];
  compare("linear", hsta_fast::int8_linear(x, {}, 1e-6, parts, residual), exact + residual, 0);
  const std::vector<at::Tensor> norm{at::ones({K}), at::zeros({K})};
  at::Tensor finite = hsta_fast::int8_mlp(x, norm, 1e-6, parts, pack(at::randint(-127, 128, {K, O}, at::kFloat)));
  compare("mlp", finite.isfinite().to(at::kDouble), at::ones({rows, K}, at::kDouble), 0);
}

}  // namespace

int main() {
  at::manual_seed(0);
  for (int64_t rows : {0, 1, 7, 48, 49, 101}) {
    for (int64_t K : {0, 1, 3, 16, 30, 64}) {
      for (int64_t O : {1, 64, 65, 130}) check(rows, K, O);
    }
  }
  std::printf("%d failures\n", failures);
}
