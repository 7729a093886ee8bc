// The schemas of every op of the extension; the implementations register per device in <op>.cpp and <op>_cuda.cpp.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(hsta_fast, m) {
  // video (B, 3, T, H, W), any strides, uint8 or float; weight (C, 3, t, p, p), whose dtype is that of the result;
  // bias (C,) float32, or float64 with a float64 weight; cls_token (C,); pos_embed (N, C), (N + 1, C) with a CLS
  // -> (B, N, C), (B, N + 1, C) with a CLS. Tokens are ordered by t, then h, then w.
  m.def(
      "tubelet_tokens(Tensor video, Tensor weight, Tensor bias, Tensor? cls_token, Tensor? pos_embed) -> Tensor");
  // The same for (video - shift) * scale, both by channel. CPU and float32 only: there it costs no extra time.
  m.def(
      "tubelet_tokens_normalized(Tensor video, Tensor weight, Tensor bias, Tensor? cls_token, Tensor? pos_embed, "
      "float[] shift, float[] scale) -> Tensor");
  // Its gradient of the weight: dout (B, N, C) -> (C, 3, t, p, p). CPU and float32 only.
  m.def(
      "tubelet_weight_grad(Tensor dout, Tensor video, int[] patch, float[] shift, float[] scale) -> Tensor");
  // -> (B * N, 3 * t * p * p) of video - shift in `dtype`, the columns in the weight's order (c, t, h, w).
  m.def("tubelet_patches(Tensor video, int[] patch, ScalarType dtype, float shift) -> Tensor");

  // query (B, R, C) contiguous; tokens (B, N, C), extra (B, C) of last stride 1; fills scores (B, R, M) contiguous,
  // M = N + (1 if extra is given) -> pooled (B, R, C), lse (B, R), mean and rstd (B, M), or (B, 0) without normalize.
  // A row's mean is relative to its first element.
  m.def(
      "attention_pool_fwd(Tensor query, Tensor tokens, Tensor? extra, bool normalize, float eps, *, "
      "Tensor(a!)? scores) -> (Tensor, Tensor, Tensor, Tensor)");
  // Fills dtokens (B, N, C) of last stride 1, if given, with the gradient, plus accumulate, if given
  // -> dquery (B, R, C), dextra (B, C), or (0, C) without extra.
  m.def(
      "attention_pool_bwd(Tensor dpooled, Tensor query, Tensor tokens, Tensor? extra, bool normalize, float eps, "
      "Tensor pooled, Tensor lse, Tensor? mean, Tensor? rstd, *, Tensor(a!)? dtokens, Tensor? accumulate) "
      "-> (Tensor, Tensor)");

  // x (..., K), weight (N, K), or (K, N) where turned, bias (N,), all contiguous float32 and not empty
  // -> y (..., N) = x weight' + bias, or x weight + bias, with exact GELU; and with gelu and keep the same without GELU,
  // else (0,). CPU only.
  m.def(
      "linear_product(Tensor x, Tensor weight, Tensor? bias, bool turned, bool gelu, bool keep) -> (Tensor, Tensor)");
}
