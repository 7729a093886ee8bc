// Patches of a video as the rows of a matrix, on the CPU. No torch, so the sanitizer test can build it alone.
//
// B batch, T frames, N tokens; patches of t x p x p; K = 3 t p p.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

namespace hsta_fast {

// One sample (3, T, H, W) with its strides, cut into grid[0] x grid[1] x grid[2] whole patches; the rest is unused.
struct VideoPatches {
  const void* data;
  int64_t strides[4];  // elements: channel, frame, row, pixel
  int64_t patch[3];
  int64_t grid[3];

  int64_t tokens() const { return grid[0] * grid[1] * grid[2]; }
  int64_t planes() const { return 3 * patch[0]; }  // one frame of one channel of a patch each
  int64_t plane() const { return patch[1] * patch[2]; }
  int64_t columns() const { return planes() * plane(); }
};

// What a channel's pixels become: (x - shift) * scale.
struct Affine {
  float shift[3];
  float scale[3];
};

// `width` pixels of one line of a patch.
template <typename In, typename Out>
inline void copy_line(const In* in, int64_t stride, int64_t width, float shift, float scale, Out* out) {
#ifdef __AVX512BW__
  // Patches are about as wide as a register, so most of a plain loop would be its remainder: a mask needs none.
  if constexpr (std::is_same_v<In, uint8_t> && std::is_same_v<Out, float>) {
    if (stride == 1) {
      const __m512 subtrahend = _mm512_set1_ps(shift), factor = _mm512_set1_ps(scale);
      for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 mask = width - i >= 16 ? 0xffff : (1u << (width - i)) - 1;
        const __m512i wide = _mm512_maskz_cvtepu8_epi32(mask, _mm_maskz_loadu_epi8(mask, in + i));
        const __m512 value = _mm512_sub_ps(_mm512_maskz_cvtepi32_ps(mask, wide), subtrahend);
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(value, factor));
      }
      return;
    }
  }
#endif
  // In float, or in double where either end is.
  using Wide = std::conditional_t<std::is_same_v<In, double> || std::is_same_v<Out, double>, double, float>;
  for (int64_t i = 0; i < width; ++i) {
    out[i] = static_cast<Out>((static_cast<Wide>(in[i * stride]) - static_cast<Wide>(shift)) *
                              static_cast<Wide>(scale));
  }
}

// A part of a sample's patches: ranges of tokens and planes, each without its last.
struct Part {
  int64_t token, last_token;
  int64_t plane, last_plane;
};

// out (tokens, planes * h * w): that part of a sample, the columns in the order (c, t, h, w).
template <typename In, typename Out>
void gather(const VideoPatches& video, const Part& part, const Affine& affine, Out* out) {
  const auto [channel, frame, line, pixel] = video.strides;
  const auto [depth, height, width] = video.patch;
  const int64_t columns = (part.last_plane - part.plane) * video.plane();
  for (int64_t token = part.token; token < part.last_token;) {
    // All requested tokens of this row of patches: their lines are adjacent in memory.
    const int64_t across = token % video.grid[2], down = token / video.grid[2] % video.grid[1];
    const int64_t later = token / video.grid[2] / video.grid[1];
    const int64_t count = std::min(part.last_token - token, video.grid[2] - across);
    const In* corner = static_cast<const In*>(video.data) + later * depth * frame + down * height * line +
                       across * width * pixel;
    Out* target = out + (token - part.token) * columns;
    for (int64_t plane = part.plane; plane < part.last_plane; ++plane) {
      const int64_t c = plane / depth, f = plane % depth;
      for (int64_t y = 0; y < height; ++y, target += width) {
        const In* in = corner + c * channel + f * frame + y * line;
        for (int64_t i = 0; i < count; ++i) {
          copy_line(in + i * width * pixel, pixel, width, affine.shift[c], affine.scale[c], target + i * columns);
        }
      }
    }
    token += count;
  }
}

}  // namespace hsta_fast
