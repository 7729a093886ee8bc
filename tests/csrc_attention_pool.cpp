// Pools rows of many shapes in buffers that fit exactly, forward and backward, and compares with the formulas in
// float64: for the address sanitizer, which sees one element too many.
#include "attention_pool.cpp"

#include <ATen/ATen.h>

#include <cstdio>

namespace {

int failures = 0;

double largest(const at::Tensor& x) { return x.numel() ? x.abs().max().item<double>() : 0; }

// terms: the size of what is subtracted, where the exact result is a difference that can vanish.
void compare(const char* what, const at::Tensor& came, const at::Tensor& exact, double tolerance, double terms = 0) {
  const double size = std::max(largest(exact), terms);
  const double error = largest(came.to(at::kDouble) - exact);
  if (came.sizes() == exact.sizes() && error <= tolerance * (1 + size)) return;
  ++failures;
  std::printf("%s: error %g of %g\n", what, error, size);
}

void check(at::ScalarType dtype, int64_t B, int64_t N, int64_t C, int64_t R, bool with_extra, bool normalize) {
  const double eps = 1e-6, tolerance = dtype == at::kDouble ? 1e-12 : 1e-5;
  const auto options = at::TensorOptions().dtype(dtype);
  // A state's tokens: all but its first row, and the last of them ends where the memory does.
  const at::Tensor tokens = at::randn({B, N + 1, C}, options).narrow(1, 1, N).add_(3);
  const at::Tensor query = at::randn({B, R, C}, options).mul_(2 / std::sqrt(double(C)));
  const at::Tensor dpooled = at::randn({B, R, C}, options);
  std::optional<at::Tensor> extra;
  if (with_extra) extra = at::randn({B, C}, options);
  const at::Tensor scores = at::empty({B, R, N + with_extra}, options);
  const auto [pooled, lse, mean, rstd] =
      hsta_fast::attention_pool_fwd(query, tokens, extra, normalize, eps, scores);
  const at::Tensor dtokens = at::empty({B, N, C}, options), base = at::randn({B, N, C}, options);
  const auto stats = [&](const at::Tensor& x) { return normalize ? std::optional(x) : std::nullopt; };
  const auto [dquery, dextra] = hsta_fast::attention_pool_bwd(dpooled, query, tokens, extra, normalize, eps, pooled,
                                                              lse, stats(mean), stats(rstd), dtokens, base);

  const at::Tensor x = (with_extra ? at::cat({extra->unsqueeze(1), tokens}, 1) : tokens).to(at::kDouble);
  const at::Tensor u = query.to(at::kDouble), d = dpooled.to(at::kDouble);
  const at::Tensor away = x - x.mean(-1, true), r = (away.square().mean(-1, true) + eps).rsqrt();
  const at::Tensor z = normalize ? away * r : x;
  const at::Tensor s = at::matmul(u, z.transpose(1, 2)), p = at::softmax(s, -1);
  const at::Tensor t = at::matmul(d, z.transpose(1, 2)), ds = p * (t - (p * t).sum(-1, true));
  at::Tensor dx = at::matmul(p.transpose(1, 2), d) + at::matmul(ds.transpose(1, 2), u);
  if (normalize) dx = r * (dx - dx.mean(-1, true) - z * (dx * z).mean(-1, true));
  compare("scores", scores, s, tolerance);
  compare("pooled", pooled, at::matmul(p, z), tolerance);
  compare("lse", lse, at::logsumexp(s, -1), tolerance);
  compare("dquery", dquery, at::matmul(ds, z), tolerance, largest(t) * largest(z));
  compare("dtokens", dtokens, base.to(at::kDouble) + dx.narrow(1, with_extra, N), tolerance);
  if (with_extra) compare("dextra", dextra, dx.select(1, 0), tolerance);
}

}  // namespace

int main() {
  at::manual_seed(0);
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (int64_t N : {1, 15, 16, 17, 700}) {
      for (int64_t C : {3, 8, 31, 64, 70}) {
        for (int64_t R : {1, 4, 5}) {
          check(dtype, 2, N, C, R, true, true);
          check(dtype, 1, N, C, R, false, R > 1);
        }
      }
    }
    check(dtype, 2, 0, 24, 3, true, true);
  }
  std::printf("%d failures\n", failures);
}
