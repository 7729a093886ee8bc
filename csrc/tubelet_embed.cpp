// Tubelet embedding on the CPU: patches and product block by block, so that patches stay in the cache.
//
// B batch, N tokens, C width; patches of t x p x p; K = 3 t p p.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <memory>

#include "transpose.h"
#include "video_patches.h"

namespace hsta_fast {
namespace {

constexpr int64_t PANEL = 64;                     // columns of the result that one call of the product makes
constexpr int64_t BLOCK_BYTES = int64_t{1} << 19;  // patches of one block: half of a common second-level cache
constexpr int64_t BLOCK_K = 1024;
constexpr int64_t BLOCK_ROWS = 128;  // of the sum over rows in the weight's gradient

VideoPatches sample(const at::Tensor& video, int64_t b, at::IntArrayRef patch) {
  VideoPatches view{};
  view.data = static_cast<const char*>(video.const_data_ptr()) + b * video.stride(0) * video.element_size();
  std::copy_n(video.strides().begin() + 1, 4, view.strides);
  for (int i = 0; i < 3; ++i) {
    view.patch[i] = patch[i];
    view.grid[i] = video.size(2 + i) / patch[i];
  }
  return view;
}

void check(const at::Tensor& video, at::IntArrayRef patch) {
  TORCH_CHECK(video.dim() == 5 && video.size(1) == 3, "video expected shape (B, 3, T, H, W), got ", video.sizes());
  TORCH_CHECK(patch.size() == 3 && std::min({patch[0], patch[1], patch[2]}) > 0,
              "patch expected three sizes (t, p, p) > 0, got ", patch);
}

Affine by_channel(at::ArrayRef<double> shift, at::ArrayRef<double> scale) {
  TORCH_CHECK(shift.size() == 3 && scale.size() == 3, "shift and scale expected 3 numbers each, got ", shift.size(),
              " and ", scale.size());
  Affine affine{};
  std::copy_n(shift.begin(), 3, affine.shift);
  std::copy_n(scale.begin(), 3, affine.scale);
  return affine;
}

// gather() for the dtype of the video: uint8, float32, or that of the patches.
template <typename Out>
void gather_any(const at::Tensor& video, const VideoPatches& view, const Part& part, const Affine& affine, Out* out) {
  switch (video.scalar_type()) {
    case at::kByte: return gather<uint8_t>(view, part, affine, out);
    case at::kFloat: return gather<float>(view, part, affine, out);
    default:
      TORCH_CHECK(video.scalar_type() == c10::CppTypeToScalarType<Out>::value, "video expected uint8, float32 or ",
                  c10::CppTypeToScalarType<Out>::value, ", got ", video.scalar_type());
      return gather<Out>(view, part, affine, out);
  }
}

at::Tensor patches(const at::Tensor& video, at::IntArrayRef patch, at::ScalarType dtype, double shift) {
  check(video, patch);
  const VideoPatches one = sample(video, 0, patch);
  const int64_t B = video.size(0), N = one.tokens(), K = one.columns();
  const float less = static_cast<float>(shift);
  const Affine affine{{less, less, less}, {1, 1, 1}};
  at::Tensor out = at::empty({B * N, K}, video.options().dtype(dtype));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "tubelet_patches", [&] {
    scalar_t* data = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, B * N, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end;) {
        const int64_t first = row % N, count = std::min(end - row, N - first);
        const Part part{first, first + count, 0, one.planes()};
        gather_any(video, sample(video, row / N, patch), part, affine, data + row * K);
        row += count;
      }
    });
  });
  return out;
}

// The weight (C, K) as consecutive panels (K, PANEL), the last one narrower, in the order that the product reads.
std::unique_ptr<float[]> panels(const float* weight, int64_t C, int64_t K) {
  std::unique_ptr<float[]> packed(new float[C * K]);
  at::parallel_for(0, (C + PANEL - 1) / PANEL, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin * PANEL; n < std::min(C, end * PANEL); n += PANEL) {
      const int64_t width = std::min(PANEL, C - n);
      transpose(weight + n * K, width, K, K, packed.get() + n * K, width);
    }
  });
  return packed;
}

// out (rows, C) += patches (rows, K) weight'
void multiply(const float* patches, const float* packed, int64_t rows, int64_t K, int64_t C, float* out) {
  for (int64_t k = 0; k < K; k += BLOCK_K) {
    for (int64_t n = 0; n < C; n += PANEL) {
      const int64_t width = std::min(PANEL, C - n);
      at::native::cpublas::brgemm(rows, width, std::min(BLOCK_K, K - k), K, width, C, true, patches + k,
                                  packed + n * K + k * width, out + n, false);
    }
  }
}

// Checks the inputs and allocates the result (B, N (+ 1), C), uninitialised.
at::Tensor result(const at::Tensor& video, const at::Tensor& weight, const at::Tensor& bias,
                  const std::optional<at::Tensor>& cls_token, const std::optional<at::Tensor>& pos_embed) {
  TORCH_CHECK(weight.dim() == 5 && weight.size(1) == 3 && weight.is_contiguous(),
              "weight expected shape (C, 3, t, p, p), contiguous, got ", weight.sizes());
  check(video, weight.sizes().slice(2));
  const int64_t C = weight.size(0), N = sample(video, 0, weight.sizes().slice(2)).tokens();
  TORCH_CHECK(N > 0, "video expected at least one patch of ", weight.sizes().slice(2), ", got ", video.sizes());
  const int64_t rows = N + cls_token.has_value();
  TORCH_CHECK(bias.numel() == C && bias.scalar_type() == weight.scalar_type(), "bias expected shape (C,) and dtype ",
              weight.scalar_type(), ", got ", bias.sizes(), " of ", bias.scalar_type());
  TORCH_CHECK(!cls_token || cls_token->numel() == C, "cls_token expected C elements, got ", cls_token->sizes());
  TORCH_CHECK(!pos_embed || pos_embed->numel() == rows * C, "pos_embed expected ", rows, " rows, got ",
              pos_embed->sizes());
  return at::empty({video.size(0), rows, C}, weight.options());
}

// In float32: a thread fills a block of rows with bias and position, gathers the patches and adds the product.
at::Tensor normalized_tokens(const at::Tensor& video, const at::Tensor& weight, const at::Tensor& bias,
                             const std::optional<at::Tensor>& cls_token, const std::optional<at::Tensor>& pos_embed,
                             at::ArrayRef<double> shift, at::ArrayRef<double> scale) {
  TORCH_CHECK(weight.scalar_type() == at::kFloat, "weight expected float32, got ", weight.scalar_type());
  at::Tensor out = result(video, weight, bias, cls_token, pos_embed);
  const Affine affine = by_channel(shift, scale);
  const auto patch = weight.sizes().slice(2);
  const int64_t first = cls_token.has_value(), planes = 3 * patch[0];
  const int64_t B = out.size(0), N = out.size(1) - first, C = out.size(2), K = planes * patch[1] * patch[2];
  const auto plain = [](const std::optional<at::Tensor>& x) {
    return x ? x->to(at::kFloat).contiguous() : at::Tensor();
  };
  const at::Tensor biases = plain(bias), cls = plain(cls_token), positions = plain(pos_embed);
  const float* bias_data = biases.const_data_ptr<float>();
  const float* cls_data = first ? cls.const_data_ptr<float>() : nullptr;
  const float* pos = pos_embed ? positions.const_data_ptr<float>() : nullptr;
  float* data = out.mutable_data_ptr<float>();
  const auto packed = panels(weight.const_data_ptr<float>(), C, K);

  const int64_t most = std::clamp<int64_t>(BLOCK_BYTES / (K * sizeof(float)), 16, 192);
  int64_t blocks = (N + most - 1) / most;  // of a sample
  const int64_t threads = at::get_num_threads();
  // A small number of blocks is made divisible by the threads, while each stays large enough for a call.
  while (B * blocks < 4 * threads && B * blocks % threads && N / (blocks + 1) >= 16) ++blocks;

  at::parallel_for(0, B * blocks, 1, [&](int64_t begin, int64_t end) {
    std::unique_ptr<float[]> block(new float[((N + blocks - 1) / blocks) * K]);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / blocks, i = item % blocks;
      const int64_t from = N * i / blocks, to = N * (i + 1) / blocks;
      float* rows = data + (b * (N + first) + first + from) * C;
      if (i == 0 && first) {
        for (int64_t c = 0; c < C; ++c) (rows - C)[c] = cls_data[c] + (pos ? pos[c] : 0);
      }
      for (int64_t row = 0; row < to - from; ++row) {
        const float* position = pos ? pos + (first + from + row) * C : nullptr;
        for (int64_t c = 0; c < C; ++c) rows[row * C + c] = bias_data[c] + (position ? position[c] : 0);
      }
      gather_any(video, sample(video, b, patch), {from, to, 0, planes}, affine, block.get());
      multiply(block.get(), packed.get(), to - from, K, C, rows);
    }
    at::native::cpublas::brgemm_release(false);
  });
  return out;
}

at::Tensor tokens(const at::Tensor& video, const at::Tensor& weight, const at::Tensor& bias,
                  const std::optional<at::Tensor>& cls_token, const std::optional<at::Tensor>& pos_embed) {
  if (weight.scalar_type() == at::kFloat) {
    return normalized_tokens(video, weight, bias, cls_token, pos_embed, {0., 0., 0.}, {1., 1., 1.});
  }
  TORCH_CHECK(weight.scalar_type() == at::kDouble, "weight expected float32 or float64, got ", weight.scalar_type());
  at::Tensor out = result(video, weight, bias, cls_token, pos_embed);
  const int64_t C = out.size(2), first = cls_token.has_value();
  out.zero_();
  if (pos_embed) out.copy_(pos_embed->view({-1, C}));
  if (cls_token) out.select(1, 0).add_(*cls_token);
  const at::Tensor rows = out.narrow(1, first, out.size(1) - first);
  rows.add_(bias);
  for (int64_t b = 0; b < out.size(0); ++b) {  // a sample's patches at a time
    rows.select(0, b).addmm_(patches(video.narrow(0, b, 1), weight.sizes().slice(2), at::kDouble, 0),
                             weight.view({C, -1}).t());
  }
  return out;
}

// dout' patches, (C, 3, t, p, p): each thread sums some planes of the patches over all rows, block by block.
at::Tensor weight_grad(const at::Tensor& dout, const at::Tensor& video, at::IntArrayRef patch,
                       at::ArrayRef<double> shift, at::ArrayRef<double> scale) {
  check(video, patch);
  const VideoPatches one = sample(video, 0, patch);
  const int64_t B = dout.size(0), N = dout.size(1), C = dout.size(2);
  TORCH_CHECK(dout.scalar_type() == at::kFloat && B == video.size(0) && N == one.tokens() && dout.stride(2) == 1,
              "dout expected float32 (B, N, C) of last stride 1, got ", dout.scalar_type(), " ", dout.sizes());
  const Affine affine = by_channel(shift, scale);
  const int64_t K = one.columns(), plane = one.plane(), blocks = (N + BLOCK_ROWS - 1) / BLOCK_ROWS;
  at::Tensor dweight = at::zeros({C, 3, patch[0], patch[1], patch[2]}, dout.options());
  float* sums = dweight.mutable_data_ptr<float>();

  // dout of every block of rows, (C, rows): the left side of the product.
  std::unique_ptr<float[]> turned(new float[B * N * C]);
  at::parallel_for(0, B * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / blocks, row = item % blocks * BLOCK_ROWS, rows = std::min(BLOCK_ROWS, N - row);
      transpose(dout.const_data_ptr<float>() + b * dout.stride(0) + row * dout.stride(1), rows, C, dout.stride(1),
                turned.get() + (b * N + row) * C, rows);
    }
  });

  const int64_t threads = at::get_num_threads();
  int64_t chunks = (threads + one.planes() - 1) / one.planes();  // of C: there may be more threads than planes
  while (chunks < 4 && one.planes() * chunks % threads) ++chunks;
  at::parallel_for(0, one.planes() * chunks, 1, [&](int64_t begin, int64_t end) {
    std::unique_ptr<float[]> block(new float[BLOCK_ROWS * plane]);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t p = item / chunks, from = C * (item % chunks) / chunks, to = C * (item % chunks + 1) / chunks;
      if (from == to) continue;
      for (int64_t b = 0; b < B; ++b) {
        for (int64_t row = 0; row < N; row += BLOCK_ROWS) {
          const int64_t rows = std::min(BLOCK_ROWS, N - row);
          gather_any(video, sample(video, b, patch), {row, row + rows, p, p + 1}, affine, block.get());
          for (int64_t k = 0; k < plane; k += PANEL) {
            at::native::cpublas::brgemm(to - from, std::min(PANEL, plane - k), rows, rows, plane, K, true,
                                        turned.get() + (b * N + row) * C + from * rows, block.get() + k,
                                        sums + from * K + p * plane + k, false);
          }
        }
      }
    }
    at::native::cpublas::brgemm_release(false);
  });
  return dweight;
}

}  // namespace

TORCH_LIBRARY_IMPL(hsta_fast, CPU, m) {
  m.impl("tubelet_patches", patches);
  m.impl("tubelet_tokens", tokens);
  m.impl("tubelet_weight_grad", weight_grad);
  m.impl("tubelet_tokens_normalized", normalized_tokens);
}

}  // namespace hsta_fast
