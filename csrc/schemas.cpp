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

  // q (B, N, H, D), k and v (B, M, H, D), float32 or bfloat16, of last stride 1, N, M and D > 0 -> out (B, N, H, D),
  // stats (B, H, 2, N) float32: per query the largest |scale| log2(e) score, and the sum of 2^(score - that).
  m.def("space_time_attention_fwd(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)");
  // Fills dq, dk, dv, shapes of q, k, v and last stride 1.
  m.def(
      "space_time_attention_bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor stats, float scale, *, "
      "Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv) -> ()");

  // x (..., K) float32; norm: weight and bias of a layer norm over K, or none; linear: weight (ceil(O / 64), ceil(K / 4),
  // 64, 4) int8, step (O,), sums (O,) int32, bias (O,); residual (..., O) -> residual + linear(norm(x)) (..., O).
  m.def(
      "int8_linear_fwd(Tensor x, Tensor[] norm, float eps, Tensor[] linear, Tensor? residual) -> Tensor");
  // -> x + fc2(gelu(fc1(norm(x)))) (..., K).
  m.def("int8_mlp_fwd(Tensor x, Tensor[] norm, float eps, Tensor[] fc1, Tensor[] fc2) -> Tensor");

  // x (..., K), weight (N, K), or (K, N) where turned, bias (N,), all contiguous float32 and not empty
  // -> y (..., N) = x weight' + bias, or x weight + bias, with exact GELU; and with gelu and keep the same without GELU,
  // else (0,). CPU only.
  m.def(
      "linear_product(Tensor x, Tensor weight, Tensor? bias, bool turned, bool gelu, bool keep) -> (Tensor, Tensor)");
  // The same in bfloat16 with sums in float32: x, weight and bias in float32 or bfloat16, results in bfloat16.
  m.def(
      "linear_product_bfloat16(Tensor x, Tensor weight, Tensor? bias, bool turned, bool gelu, bool keep) -> (Tensor, "
      "Tensor)");
}
