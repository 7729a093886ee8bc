// The schemas of every op of the extension; the implementations register per device in <op>.cpp and <op>_cuda.cpp.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(hsta_fast, m) {
  // video (B, 3, T, H, W) of any strides, uint8 or float; weight (C, 3, t, p, p), its dtype that of the result;
  // bias (C,) float32, or float64 with a float64 weight; cls_token (C,); pos_embed (N, C), (N + 1, C) with a CLS
  // -> (B, N, C), (B, N + 1, C) with a CLS. Tokens run over t, then h, then w.
  m.def(
      "tubelet_tokens(Tensor video, Tensor weight, Tensor bias, Tensor? cls_token, Tensor? pos_embed) -> Tensor");
  // The same of (video - shift) * scale, both by channel. CPU and float32 only: there it costs nothing.
  m.def(
      "tubelet_tokens_normalized(Tensor video, Tensor weight, Tensor bias, Tensor? cls_token, Tensor? pos_embed, "
      "float[] shift, float[] scale) -> Tensor");
  // The weight's gradient of that, from dout (B, N, C) -> (C, 3, t, p, p). CPU and float32 only.
  m.def(
      "tubelet_weight_grad(Tensor dout, Tensor video, int[] patch, float[] shift, float[] scale) -> Tensor");
  // -> (B * N, 3 * t * p * p) of video - shift in `dtype`, the columns in the weight's order (c, t, h, w).
  m.def("tubelet_patches(Tensor video, int[] patch, ScalarType dtype, float shift) -> Tensor");

  // query (B, R, C) contiguous, tokens (B, N, C) and extra (B, C) of last stride 1; scores (B, R, M), contiguous, are
  // filled, M = N + (extra given) -> pooled (B, R, C), lse (B, R), mean and rstd (B, M), or (B, 0) not to normalize.
  // A row's mean is counted from its first element.
  m.def(
      "attention_pool_fwd(Tensor query, Tensor tokens, Tensor? extra, bool normalize, float eps, *, "
      "Tensor(a!)? scores) -> (Tensor, Tensor, Tensor, Tensor)");
  // dtokens (B, N, C) of last stride 1, if given, is filled: accumulate, if given, plus the gradient
  // -> dquery (B, R, C), dextra (B, C), or (0, C) without extra.
  m.def(
      "attention_pool_bwd(Tensor dpooled, Tensor query, Tensor tokens, Tensor? extra, bool normalize, float eps, "
      "Tensor pooled, Tensor lse, Tensor? mean, Tensor? rstd, *, Tensor(a!)? dtokens, Tensor? accumulate) "
      "-> (Tensor, Tensor)");
}
