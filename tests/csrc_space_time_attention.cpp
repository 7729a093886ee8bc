// Attends in buffers that fit exactly, forward and backward, and compares with the formulas in float64: for the address
// sanitizer, which sees one element too many.
#include <cstdio>
#include <random>
#include <vector>

#include "attention_blocks.h"

namespace {

using namespace hsta_fast;
using Exact = std::vector<double>;  // rows of D

int failures = 0;
std::mt19937 generator(0);

std::vector<float> random_rows(int64_t rows, int64_t stride, int64_t D) {
  std::normal_distribution<float> normal;
  std::vector<float> x((rows - 1) * stride + D);  // the last row ends where the memory does
  for (float& value : x) value = normal(generator);
  return x;
}

void compare(const char* what, const std::vector<float>& came, int64_t stride, const Exact& exact, int64_t D) {
  double error = 0, size = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error = std::max(error, std::abs(came[i / D * stride + i % D] - exact[i]));
    size = std::max(size, std::abs(exact[i]));
  }
  if (error <= 1e-5 * (1 + size)) return;
  ++failures;
  std::printf("%s: error %g of %g\n", what, error, size);
}

template <typename Room>
std::pair<Room, std::vector<float>> exact_room(const Sizes& sizes) {
  Scratch counted{nullptr};
  Room(counted, sizes);
  std::vector<float> memory(counted.used, NAN);
  Scratch scratch{memory.data()};
  const Room room(scratch, sizes);
  return {room, std::move(memory)};
}

void check(int64_t N, int64_t M, int64_t D, double scale) {
  const int64_t stride = D + 3, other = D + 1;
  const auto q = random_rows(N, stride, D), k = random_rows(M, stride, D), v = random_rows(M, other, D);
  const auto dout = random_rows(N, other, D);
  Exact out(N * D), dq(N * D), dk(M * D), dv(M * D);
  for (int64_t n = 0; n < N; ++n) {
    Exact s(M), t(M);
    double total = 0, delta = 0;
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t d = 0; d < D; ++d) {
        s[m] += double(q[n * stride + d]) * k[m * stride + d];
        t[m] += double(dout[n * other + d]) * v[m * other + d];
      }
      total += s[m] = std::exp(scale * s[m]);
    }
    for (int64_t m = 0; m < M; ++m) delta += (s[m] /= total) * t[m];
    for (int64_t m = 0; m < M; ++m) {
      const double ds = scale * s[m] * (t[m] - delta);
      for (int64_t d = 0; d < D; ++d) {
        out[n * D + d] += s[m] * v[m * other + d];
        dv[m * D + d] += s[m] * dout[n * other + d];
        dq[n * D + d] += ds * k[m * stride + d];
        dk[m * D + d] += ds * q[n * stride + d];
      }
    }
  }
  const Sizes sizes{N, M, D, static_cast<float>(scale)};
  std::vector<float> came((N - 1) * stride + D), stats(2 * N), came_dk((M - 1) * stride + D), came_dv(M * D);
  const auto [room, memory] = exact_room<ForwardScratch>(sizes);
  for (int64_t first = 0; first < N; first += 50) {
    attend<float>(sizes, {q.data(), stride}, {k.data(), stride}, {v.data(), other}, first, std::min(first + 50, N),
                  {came.data(), stride}, stats.data(), room);
  }
  compare("out", came, stride, out, D);
  const auto [back, more] = exact_room<BackwardScratch>(sizes);
  attend_backward<float>(sizes, {q.data(), stride}, {k.data(), stride}, {v.data(), other}, {came.data(), stride},
                         {dout.data(), other}, stats.data(), 0, M, {came_dk.data(), stride}, {came_dv.data(), D}, back);
  std::vector<float> came_dq(back.dq, back.dq + N * sizes.columns());
  for (float& value : came_dq) value *= sizes.scale;
  compare("dq", came_dq, sizes.columns(), dq, D);
  compare("dk", came_dk, stride, dk, D);
  compare("dv", came_dv, D, dv, D);
}

}  // namespace

int main() {
  for (int64_t D : {1, 16, 31, 64, 100}) {
    check(1, 1, D, 0.3);
    check(97, 300, D, -0.2);
    check(7, 17, D, 1 / std::sqrt(double(D)));
    check(130, 65, D, 0);
  }
  std::printf("%d failures\n", failures);
}
