// Products and attention in bfloat16 of many shapes, in buffers that fit exactly, against float64: for the address
// sanitizer, which sees one element too many. The products' operands are integers, whose sums float32 holds.
#include "attention_bfloat16.h"
#include "bfloat16_linear.cpp"

#include <ATen/ATen.h>

#include <cstdio>

namespace {

using namespace hsta_fast;

int failures = 0;

void compare(const char* what, const at::Tensor& came, const at::Tensor& exact, double tolerance) {
  const double error = (came.to(at::kDouble) - exact.to(at::kDouble)).abs().max().item<double>();
  if (came.sizes() == exact.sizes() && error <= tolerance) return;
  ++failures;
  std::printf("%s: error %g\n", what, error);
}

void check_product(int64_t M, int64_t K, int64_t N) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = at::randint(-9, 10, {M, K}, at::kDouble), weight = at::randint(-9, 10, {N, K}, at::kDouble);
    const at::Tensor bias = at::randint(-99, 99, {N}, at::kDouble), exact = at::matmul(x, weight.t());
    const auto [y, none] =
        linear_product_bfloat16(x.to(dtype), weight.to(dtype), bias.to(dtype), false, false, false);
    compare("x W' + b", y, (exact + bias).to(at::kBFloat16), 0);
    const auto [dx, nothing] =
        linear_product_bfloat16(x.to(dtype), weight.t().contiguous().to(dtype), std::nullopt, true, false, false);
    compare("x W", dx, exact.to(at::kBFloat16), 0);
    const auto [z, before] = linear_product_bfloat16(x.to(dtype), weight.to(dtype), std::nullopt, false, true, true);
    compare("before GELU", before, exact.to(at::kBFloat16), 0);
    compare("GELU", z, at::gelu(exact), 4e-3 * (1 + exact.abs().max().item<double>()));
  }
}

void check_attention(int64_t N, int64_t M, int64_t D, double scale) {
  const at::Tensor q = at::randn({N, D}).to(at::kBFloat16), k = at::randn({M, D}).to(at::kBFloat16);
  const at::Tensor v = at::randn({M, D}).to(at::kBFloat16), out = at::empty({N, D}, at::kBFloat16);
  const at::Tensor stats = at::empty({2 * N});
  const Sizes sizes{N, M, D, static_cast<float>(scale)};
  Scratch counted{nullptr};
  Bfloat16Scratch(counted, sizes);
  const at::Tensor memory = at::full({counted.used}, NAN);
  Scratch scratch{memory.data_ptr<float>()};
  const Bfloat16Scratch room(scratch, sizes);
  for (int64_t first = 0; first < N; first += 50) {
    attend_bfloat16(sizes, {q.const_data_ptr<Half>(), D}, {k.const_data_ptr<Half>(), D},
                    {v.const_data_ptr<Half>(), D}, first, std::min(first + 50, N), {out.data_ptr<Half>(), D},
                    stats.data_ptr<float>(), room);
  }
  const at::Tensor scores = scale * at::matmul(q.to(at::kDouble), k.to(at::kDouble).t());
  compare("attention", out, at::matmul(at::softmax(scores, 1), v.to(at::kDouble)), 0.03);
  const at::Tensor lse = (stats.slice(0, 0, N) + stats.slice(0, N).log2()) * 0.693147181;
  compare("log-sum-exp", lse, at::logsumexp(scores, 1), 1e-4);
}

}  // namespace

int main() {
  at::manual_seed(0);
  for (int64_t M : {1, 7, 97, 101}) {
    for (int64_t K : {1, 3, 16, 30}) {
      for (int64_t N : {1, 64, 65, 130}) check_product(M, K, N);
    }
  }
  for (int64_t D : {1, 16, 31, 64, 100}) {
    check_attention(1, 1, D, 0.3);
    check_attention(97, 300, D, -0.2);
    check_attention(7, 17, D, 1 / std::sqrt(double(D)));
    check_attention(130, 65, D, 0);
  }
  std::printf("%d failures\n", failures);
}
