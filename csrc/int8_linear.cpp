// Linear layers of a transformer block on int8, with what stands around them: layer norm, GELU, the residual.
//
// Each row is rounded to bytes with a step and a zero point of its own, each output's weights to int8 with a step of
// its own. The products are exact (u8 x s8 -> s32, VNNI or AMX through oneDNN). A thread takes a block of rows through
// all of it, so that what lies between stays in its cache: of the MLP's hidden layer nothing is written to memory.
//
// K inputs, O outputs; columns padded to whole vectors.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>
#include <torch/library.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>

#include "vectors.h"

namespace hsta_fast {
namespace {

constexpr int64_t PANEL = 64;  // outputs whose weights lie together
constexpr int64_t DEEP = 4;    // inputs whose products one instruction adds up
constexpr int64_t ROWS = 48;   // per block, at most: 48 rows of 3072 hidden floats are 590 KB, within an L2 of 1 MB
constexpr int64_t L = Lanes<float>::count;

struct Linear {
  const int8_t* weight;  // (panels, K / DEEP, PANEL, DEEP), zeros where K or O is padded
  const float *step, *bias;
  const int32_t* sums;  // of each output's weights
  int64_t K, O;
};

struct Norm {
  const float *weight, *bias;
  float eps;
};

Linear linear_of(at::TensorList parts, int64_t K) {
  TORCH_CHECK(parts.size() == 4, "linear expected weight, step, sums and bias, got ", parts.size(), " tensors");
  const at::Tensor &weight = parts[0], &step = parts[1], &sums = parts[2], &bias = parts[3];
  const int64_t O = bias.numel();
  TORCH_CHECK(weight.scalar_type() == at::kChar && weight.is_contiguous() && weight.dim() == 4 &&
                  weight.size(0) == (O + PANEL - 1) / PANEL && weight.size(1) == (K + DEEP - 1) / DEEP &&
                  weight.size(2) == PANEL && weight.size(3) == DEEP,
              "weight expected int8 (", (O + PANEL - 1) / PANEL, ", ", (K + DEEP - 1) / DEEP, ", ", PANEL, ", ", DEEP,
              "), contiguous, got ", weight.scalar_type(), " ", weight.sizes());
  for (const at::Tensor& x : {step, bias}) {
    TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous() && x.numel() == O,
                "step and bias expected ", O, " float32 numbers, got ", x.scalar_type(), " ", x.sizes());
  }
  TORCH_CHECK(sums.scalar_type() == at::kInt && sums.is_contiguous() && sums.numel() == O, "sums expected ", O,
              " int32 numbers, got ", sums.scalar_type(), " ", sums.sizes());
  return {weight.const_data_ptr<int8_t>(), step.const_data_ptr<float>(), bias.const_data_ptr<float>(),
          sums.const_data_ptr<int32_t>(), K, O};
}

std::optional<Norm> norm_of(at::TensorList parts, double eps, int64_t K) {
  if (parts.empty()) return std::nullopt;
  TORCH_CHECK(parts.size() == 2, "norm expected weight and bias, or nothing, got ", parts.size(), " tensors");
  for (const at::Tensor& x : parts) {
    TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous() && x.numel() == K, "norm expected ", K,
                " float32 numbers, got ", x.scalar_type(), " ", x.sizes());
  }
  return Norm{parts[0].const_data_ptr<float>(), parts[1].const_data_ptr<float>(), static_cast<float>(eps)};
}

void check(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.dim() >= 1 && x.is_contiguous(),
              "x expected float32, contiguous, got ", x.scalar_type(), " ", x.sizes());
}

int64_t rows_of(const at::Tensor& x) { return c10::multiply_integers(x.sizes().slice(0, x.dim() - 1)); }

// to = LN(x), or a copy of x.
void prepare(const float* x, int64_t K, const std::optional<Norm>& norm, float* to) {
  if (!norm) {
    std::copy_n(x, K, to);
    return;
  }
  const int64_t whole = K / L * L;
  Vector<float> sums{};
  for (int64_t k = 0; k < whole; k += L) sums += load(x + k);
  float total = sum<float>(sums);
  for (int64_t k = whole; k < K; ++k) total += x[k];
  const float mean = total / static_cast<float>(K);
  Vector<float> squares{};
  for (int64_t k = 0; k < whole; k += L) {
    const Vector<float> d = load(x + k) - mean;
    squares += d * d;
  }
  float square = sum<float>(squares);
  for (int64_t k = whole; k < K; ++k) square += (x[k] - mean) * (x[k] - mean);
  const float rstd = 1 / std::sqrt(square / static_cast<float>(K) + norm->eps);
  for (int64_t k = 0; k < K; ++k) to[k] = (x[k] - mean) * rstd * norm->weight[k] + norm->bias[k];
}

struct Rounding {
  float step;
  int32_t zero;  // the byte that stands for 0
};

// Rounds `columns` numbers, a multiple of L: x ~ step (to - zero). A row that is not finite gets a step of NaN.
Rounding quantize(const float* x, int64_t columns, uint8_t* to) {
  Vector<float> lows{}, highs{}, odd{};
  for (int64_t k = 0; k < columns; k += L) {
    const Vector<float> v = load(x + k);
    lows = v < lows ? v : lows;
    highs = v > highs ? v : highs;
    odd += v - v;  // 0, or NaN
  }
  if (sum<float>(odd) != 0) {
    std::fill(to, to + columns, uint8_t{0});
    return {std::numeric_limits<float>::quiet_NaN(), 0};
  }
  float low = 0, high = 0;
  for (int64_t i = 0; i < L; ++i) {
    low = std::min(low, lows[i]);
    high = std::max(high, highs[i]);
  }
  const float step = high / 255 - low / 255, inverse = step >= FLT_MIN ? 1 / step : 0;
  const int32_t zero = static_cast<int32_t>(0.5f - low * inverse);
  const float shift = static_cast<float>(zero) + 0.5f;
  for (int64_t k = 0; k < columns; ++k) {
    const int32_t byte = static_cast<int32_t>(x[k] * inverse + shift);
    to[k] = static_cast<uint8_t>(byte > 255 ? 255 : byte);
  }
  return {step, zero};
}

// finish(row, first output, number of outputs, their results): rows of bytes times the weights, plus bias.
template <typename Finish>
void product(const uint8_t* bytes, int64_t stride, const Rounding* roundings, int64_t rows, const Linear& linear,
             const Finish& finish) {
  alignas(64) int32_t sums[ROWS * PANEL];
  alignas(64) float out[PANEL];
  const int64_t K = padded(linear.K, DEEP);
  for (int64_t o = 0; o < linear.O; o += PANEL) {
    if (K == 0) {
      std::fill_n(sums, rows * PANEL, 0);
    } else {
      at::native::cpublas::brgemm(rows, PANEL, K, stride, PANEL, PANEL, false, bytes,
                                  reinterpret_cast<const signed char*>(linear.weight) + o * K, sums, true);
    }
    const int64_t width = std::min(PANEL, linear.O - o);
    const float *step = linear.step + o, *bias = linear.bias + o;
    const int32_t* weights = linear.sums + o;
    for (int64_t r = 0; r < rows; ++r) {
      const Rounding rounding = roundings[r];
      const int32_t* row = sums + r * PANEL;
      for (int64_t c = 0; c < width; ++c) {
        out[c] = static_cast<float>(row[c] - rounding.zero * weights[c]) * (rounding.step * step[c]) + bias[c];
      }
      finish(r, o, width, out);
    }
  }
}

// x (1 + erf(x / sqrt(2))) / 2 with erf to 1.5e-7 (Abramowitz and Stegun 7.1.26), far below a step of a byte.
void gelu(float* x, int64_t count) {
  alignas(64) float powers[PANEL];
  for (int64_t i = 0; i < count; ++i) powers[i] = -0.5f * x[i] * x[i];
  exponentials(powers, count);
  for (int64_t i = 0; i < count; ++i) {
    const float t = 1 / (1 + 0.3275911f * 0.70710678f * std::fabs(x[i]));
    const float tail =
        ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t *
        powers[i];
    x[i] *= x[i] < 0 ? 0.5f * tail : 1 - 0.5f * tail;
  }
}

// run(first row, number of rows) for blocks of rows, as many for each thread, none of them empty.
template <typename Run>
void parallel_rows(int64_t rows, const Run& run) {
  const int64_t blocks = std::min(rows, padded((rows + ROWS - 1) / ROWS, at::get_num_threads()));
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * rows / blocks;
      run(first, (i + 1) * rows / blocks - first);
    }
    at::native::cpublas::brgemm_release(true);
  });
}

// Room of a thread for `rows` rows of bytes, and for one row of floats that ends in zeros.
struct Bytes {
  int64_t columns;
  std::unique_ptr<uint8_t[]> bytes;
  Rounding roundings[ROWS];

  Bytes(int64_t rows, int64_t K) : columns(padded(K, L)), bytes(new uint8_t[rows * columns]) {}
  void round(int64_t row, const float* x) { roundings[row] = quantize(x, columns, bytes.get() + row * columns); }
  template <typename Finish>
  void times(int64_t rows, const Linear& linear, const Finish& finish) const {
    product(bytes.get(), columns, roundings, rows, linear, finish);
  }
};

void round_rows(const float* x, int64_t rows, int64_t K, const std::optional<Norm>& norm, Bytes& to) {
  const std::unique_ptr<float[]> row(new float[to.columns]());
  for (int64_t r = 0; r < rows; ++r) {
    prepare(x + r * K, K, norm, row.get());
    to.round(r, row.get());
  }
}

at::Tensor int8_linear(const at::Tensor& x, at::TensorList norm_parts, double eps, at::TensorList parts,
                       const std::optional<at::Tensor>& residual) {
  check(x);
  const int64_t K = x.size(-1), rows = rows_of(x);
  const Linear linear = linear_of(parts, K);
  const auto norm = norm_of(norm_parts, eps, K);
  auto sizes = x.sizes().vec();
  sizes.back() = linear.O;
  at::Tensor out = at::empty(sizes, x.options());
  if (residual) {
    check(*residual);
    TORCH_CHECK(residual->sizes() == out.sizes(), "residual expected ", out.sizes(), ", got ", residual->sizes());
  }
  const float* from = x.const_data_ptr<float>();
  const float* base = residual ? residual->const_data_ptr<float>() : nullptr;
  float* to = out.data_ptr<float>();
  parallel_rows(rows, [&](int64_t first, int64_t count) {
    Bytes bytes(count, K);
    round_rows(from + first * K, count, K, norm, bytes);
    bytes.times(count, linear, [&](int64_t r, int64_t o, int64_t width, const float* y) {
      const int64_t at = (first + r) * linear.O + o;
      for (int64_t c = 0; c < width; ++c) to[at + c] = base == nullptr ? y[c] : base[at + c] + y[c];
    });
  });
  return out;
}

at::Tensor int8_mlp(const at::Tensor& x, at::TensorList norm_parts, double eps, at::TensorList parts1,
                    at::TensorList parts2) {
  check(x);
  const int64_t K = x.size(-1), rows = rows_of(x);
  TORCH_CHECK(parts1.size() == 4, "fc1 expected weight, step, sums and bias, got ", parts1.size(), " tensors");
  const Linear fc1 = linear_of(parts1, K), fc2 = linear_of(parts2, parts1[3].numel());
  TORCH_CHECK(fc2.O == K, "fc2 expected ", K, " outputs, got ", fc2.O);
  const auto norm = norm_of(norm_parts, eps, K);
  at::Tensor out = at::empty(x.sizes(), x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = out.data_ptr<float>();
  parallel_rows(rows, [&](int64_t first, int64_t count) {
    Bytes inputs(count, K), activations(count, fc1.O);
    const int64_t columns = activations.columns;
    const std::unique_ptr<float[]> hidden(new float[count * columns]);
    round_rows(from + first * K, count, K, norm, inputs);
    inputs.times(count, fc1, [&](int64_t r, int64_t o, int64_t width, float* y) {
      gelu(y, width);
      std::copy_n(y, width, hidden.get() + r * columns + o);
    });
    for (int64_t r = 0; r < count; ++r) {
      float* row = hidden.get() + r * columns;
      std::fill(row + fc1.O, row + columns, 0.0f);
      activations.round(r, row);
    }
    activations.times(count, fc2, [&](int64_t r, int64_t o, int64_t width, const float* y) {
      const int64_t at = (first + r) * K + o;
      for (int64_t c = 0; c < width; ++c) to[at + c] = from[at + c] + y[c];
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(hsta_fast, CPU, m) {
  m.impl("int8_linear_fwd", int8_linear);
  m.impl("int8_mlp_fwd", int8_mlp);
}

}  // namespace hsta_fast
