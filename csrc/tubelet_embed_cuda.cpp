// Binds the CUDA kernels of tubelet_embed: checks, allocates, launches on torch's current stream.
//
// The headers of c10/cuda and ATen/cuda compile only with a CUDA build of torch. This file uses the device-independent
// guard, and gets the stream through torch's stable C interface, so it compiles with any build of torch.
#ifndef USE_CUDA
#define USE_CUDA  // declares the CUDA part of that interface
#endif
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "tubelet_embed.h"

namespace hsta_fast {
namespace {

constexpr int64_t PATCH_BYTES = int64_t{1} << 28;  // of float32 patches at a time

void* current_stream(const at::Tensor& x) {
  void* stream = nullptr;
  TORCH_CHECK(aoti_torch_get_current_cuda_stream(x.get_device(), &stream) == AOTI_TORCH_SUCCESS,
              "torch expected to have a current CUDA stream, got none on ", x.device());
  return stream;
}

void check_launch(int error) { TORCH_CHECK(error == 0, "tubelet_embed on CUDA: ", tubelet_error(error)); }

std::optional<Type> type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kByte: return Type::uint8;
    case at::kHalf: return Type::float16;
    case at::kBFloat16: return Type::bfloat16;
    case at::kFloat: return Type::float32;
    default: return std::nullopt;
  }
}

Video describe(const at::Tensor& video, at::IntArrayRef patch) {
  Video out{};
  out.data = video.const_data_ptr();
  out.type = *type_of(video.scalar_type());
  std::copy_n(video.sizes().begin(), 5, out.sizes);
  std::copy_n(video.strides().begin(), 5, out.strides);
  std::copy_n(patch.begin(), 3, out.patch);
  return out;
}

void check(const at::Tensor& video, at::IntArrayRef patch) {
  TORCH_CHECK(video.dim() == 5 && video.size(1) == 3, "video expected shape (B, 3, T, H, W), got ", video.sizes());
  TORCH_CHECK(patch.size() == 3 && std::min({patch[0], patch[1], patch[2]}) > 0,
              "patch expected three sizes (t, p, p) > 0, got ", patch);
  for (int i = 0; i < 3; ++i)
    TORCH_CHECK(video.size(2 + i) >= patch[i], "video expected at least one patch ", patch, ", got ", video.sizes());
}

}  // namespace

at::Tensor tubelet_patches_cuda(const at::Tensor& video, at::IntArrayRef patch, at::ScalarType dtype, double shift) {
  check(video, patch);
  TORCH_CHECK(type_of(dtype) && dtype != at::kByte, "dtype expected float16, bfloat16 or float32, got ", dtype);
  const c10::DeviceGuard guard(video.device());
  const at::Tensor pixels = type_of(video.scalar_type()) ? video : video.to(dtype);
  Patches patches{};
  patches.video = describe(pixels, patch);
  at::Tensor out =
      at::empty({video.size(0) * patches.video.tokens(), patches.video.columns()}, video.options().dtype(dtype));
  patches.shift = static_cast<float>(shift);
  patches.type = *type_of(dtype);
  patches.out = out.mutable_data_ptr();
  check_launch(tubelet_patches(patches, current_stream(video)));
  return out;
}

namespace {

// The weight as the matrix that the kernel reads: columns in the order of the video's memory, rows padded to 16 bytes.
at::Tensor rows_of(const at::Tensor& weight, bool channels_last) {
  at::Tensor rows = (channels_last ? weight.permute({0, 2, 3, 4, 1}) : weight).reshape({weight.size(0), -1});
  if (rows.size(1) % 8 != 0) rows = at::constant_pad_nd(rows, {0, 8 - rows.size(1) % 8});
  return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 == 0 ? rows : rows.clone();
}

// In float32 the product of the patches is torch's, which follows torch's TF32 setting (off by default). A kernel
// without tensor cores could at best be as fast.
void multiply_patches(const at::Tensor& video, const at::Tensor& weight, const at::Tensor& bias,
                      const at::Tensor& cls, const at::Tensor& pos, at::Tensor& out) {
  const int64_t B = video.size(0), C = weight.size(0), K = weight.numel() / C;
  const int64_t first = cls.defined(), N = out.size(1) - first;
  out.copy_(bias);
  if (first) out.select(1, 0).copy_(cls);
  if (pos.defined()) out.add_(pos);
  const at::Tensor columns = weight.view({C, K}).t();
  const int64_t step = std::max<int64_t>(1, PATCH_BYTES / (N * K * weight.element_size()));
  for (int64_t b = 0; b < B; b += step) {
    const int64_t count = std::min(step, B - b);
    const at::Tensor patches =
        tubelet_patches_cuda(video.narrow(0, b, count), weight.sizes().slice(2), weight.scalar_type(), 0);
    out.narrow(0, b, count).narrow(1, first, N).baddbmm_(patches.view({count, N, K}), columns.expand({count, K, C}));
  }
}

}  // namespace

at::Tensor tubelet_tokens_cuda(const at::Tensor& video, const at::Tensor& weight, const at::Tensor& bias,
                               const std::optional<at::Tensor>& cls_token,
                               const std::optional<at::Tensor>& pos_embed) {
  TORCH_CHECK(weight.dim() == 5 && weight.size(1) == 3 && weight.is_contiguous(),
              "weight expected shape (C, 3, t, p, p), contiguous, got ", weight.sizes());
  const at::ScalarType dtype = weight.scalar_type();
  TORCH_CHECK(type_of(dtype) && dtype != at::kByte, "weight expected float16, bfloat16 or float32, got ", dtype);
  const auto patch = weight.sizes().slice(2);
  check(video, patch);
  const c10::DeviceGuard guard(video.device());
  const bool as_is = video.scalar_type() == at::kByte || video.scalar_type() == at::kFloat;
  const at::Tensor pixels = as_is ? video : video.to(dtype);

  Tokens tokens{};
  tokens.video = describe(pixels, patch);
  const int64_t C = weight.size(0), N = tokens.video.tokens(), first = cls_token.has_value();
  TORCH_CHECK(bias.dim() == 1 && bias.size(0) == C, "bias expected shape (C,), got ", bias.sizes());
  TORCH_CHECK(!cls_token || cls_token->numel() == C, "cls_token expected C elements, got ", cls_token->sizes());
  TORCH_CHECK(!pos_embed || pos_embed->numel() == (N + first) * C, "pos_embed expected ", N + first,
              " rows, got ", pos_embed->sizes());
  for (const auto& x : {weight, bias, cls_token.value_or(bias), pos_embed.value_or(bias)})
    TORCH_CHECK(x.device() == video.device(), "inputs expected one device, got ", video.device(), " and ", x.device());

  const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat).contiguous(); };
  const at::Tensor offset = wide(bias), cls = cls_token ? wide(cls_token->reshape({C})) : at::Tensor(),
                   pos = pos_embed ? wide(pos_embed->reshape({N + first, C})) : at::Tensor();
  at::Tensor out = at::empty({video.size(0), N + first, C}, weight.options());
  if (out.numel() == 0) return out;
  if (dtype == at::kFloat) {
    multiply_patches(pixels, weight, offset, cls, pos, out);
    return out;
  }
  const at::Tensor rows = rows_of(weight, tokens.video.channels_last());
  tokens.type = *type_of(dtype);
  tokens.width = C;
  tokens.weight = rows.const_data_ptr();
  tokens.pitch = rows.size(1);
  tokens.bias = offset.const_data_ptr<float>();
  tokens.cls = cls.defined() ? cls.const_data_ptr<float>() : nullptr;
  tokens.pos = pos.defined() ? pos.const_data_ptr<float>() : nullptr;
  tokens.out = out.mutable_data_ptr();
  check_launch(tubelet_tokens(tokens, current_stream(video)));
  return out;
}

TORCH_LIBRARY_IMPL(hsta_fast, CUDA, m) {
  m.impl("tubelet_patches", tubelet_patches_cuda);
  m.impl("tubelet_tokens", tubelet_tokens_cuda);
}

}  // namespace hsta_fast
