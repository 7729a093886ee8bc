// Tubelet embedding on CUDA: what the binding and the kernels share. No torch, no CUDA header: plain C++20.
//
// B batch, T frames, H x W pixels, N tokens, C width; patches of t x p x p; K = 3 t p p.
#pragma once

#include <cstdint>

namespace hsta_fast {

enum class Type : int32_t { uint8, float16, bfloat16, float32 };

// (B, 3, T, H, W), any strides, and the size of a patch. Tokens run over t, then h, then w; frames, rows and columns
// beyond the last whole patch are unused.
struct Video {
  const void* data;
  Type type;
  int64_t sizes[5];    // elements
  int64_t strides[5];  // elements
  int64_t patch[3];    // t, p, p

  int64_t tokens() const {  // N, of one sample
    return (sizes[2] / patch[0]) * (sizes[3] / patch[1]) * (sizes[4] / patch[2]);
  }
  int64_t columns() const { return 3 * patch[0] * patch[1] * patch[2]; }  // K
  // The memory of a (B, T, H, W, 3) video: a patch row is 3p contiguous values.
  bool channels_last() const { return strides[1] == 1 && strides[4] == 3; }
};

// out (B, N (+ 1), C): weight times patches + bias + position, and the CLS row; sums in float32, one rounding.
struct Tokens {
  Video video;          // uint8, float32, or `type`
  Type type;            // float16 or bfloat16: weight and out
  int64_t width;        // C
  const void* weight;   // (C, K), columns (t, h, w, c) if video.channels_last(), else (c, t, h, w); 16-byte aligned
  int64_t pitch;        // elements from one row of weight to the next, a multiple of 8; zeros from K on
  const float* bias;    // (C,)
  const float* cls;     // (C,) or null
  const float* pos;     // (N, C), (N + 1, C) with a CLS, or null
  void* out;
};

// out (B N, K) = video - shift, columns in Conv3d's order (c, t, h, w).
struct Patches {
  Video video;
  float shift;
  Type type;  // of out: float16, bfloat16 or float32
  void* out;  // 16-byte aligned
};

// A cudaError_t, 0 when all went well. Asynchronous on `stream`, a cudaStream_t of the current device.
int tubelet_tokens(const Tokens& tokens, void* stream);
int tubelet_patches(const Patches& patches, void* stream);
const char* tubelet_error(int error);

}  // namespace hsta_fast
