// Where a token's pixels are, and their conversion: a patch is runs of contiguous values, addressed without division.
#pragma once

#include <type_traits>

#include "device.cuh"
#include "tubelet_embed.h"

namespace hsta_fast {

// n / divisor for n < 2^31, by one multiplication: with 2^l >= divisor, ceil(2^(31 + l) / divisor) errs by less than
// 2^l / 2^(31 + l) per unit of n.
struct Divider {
  uint32_t divisor = 1, multiplier = 0;
  int shift = 31;

  Divider() = default;
  explicit Divider(int64_t by) : divisor(static_cast<uint32_t>(by)) {
    while ((int64_t{1} << (shift - 31)) < by) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>(uint64_t{n} * multiplier >> shift);
  }
};

struct Token {
  int64_t origin;   // of its first pixel, in elements
  uint32_t sample;  // b
};

// A patch is channels x frames x rows runs of `length` values, `stride_x` apart: (3, t, p, p), or (1, t, p, 3p) where
// the three channels of a pixel are neighbours. Strides of dimensions of one entry are 0.
struct VideoGather {
  const void* data;
  uint32_t columns;  // K
  Divider length, run_rows, run_frames;
  int64_t stride_x, stride_row, stride_frame, stride_channel;
  Divider tokens, tokens_y, tokens_x;  // N; of a frame, across and down
  int64_t token_sample, token_t, token_y, token_x;

  VideoGather() = default;
  VideoGather(const Video& v, bool by_pixel)
      : data(v.data),
        columns(static_cast<uint32_t>(v.columns())),
        length(v.patch[2] * (by_pixel ? 3 : 1)),
        run_rows(v.patch[1]),
        run_frames(v.patch[0]),
        stride_x(by_pixel ? 1 : v.strides[4]),
        stride_row(v.patch[1] > 1 ? v.strides[3] : 0),
        stride_frame(v.patch[0] > 1 ? v.strides[2] : 0),
        stride_channel(by_pixel ? 0 : v.strides[1]),
        tokens(v.tokens()),
        tokens_y(v.sizes[3] / v.patch[1]),
        tokens_x(v.sizes[4] / v.patch[2]),
        token_sample(v.sizes[0] > 1 ? v.strides[0] : 0),
        token_t(v.sizes[2] / v.patch[0] > 1 ? v.strides[2] * v.patch[0] : 0),
        token_y(tokens_y.divisor > 1 ? v.strides[3] * v.patch[1] : 0),
        token_x(tokens_x.divisor > 1 ? v.strides[4] * v.patch[2] : 0) {}

  // How many values, of `bytes` each, every aligned load may take: a power of two up to 16 bytes.
  int64_t vector(int64_t bytes) const {
    if (stride_x != 1) return 1;
    const int64_t strides = length.divisor | stride_row | stride_frame | stride_channel | token_sample | token_t |
                            token_y | token_x | 16;  // its lowest bit is that of the least divisible
    int64_t width = 16 / bytes;
    while (strides % width != 0 || reinterpret_cast<uintptr_t>(data) % (width * bytes) != 0) width /= 2;
    return width;
  }

  // Of column k, from the token's origin; in elements.
  __device__ __forceinline__ int64_t place(uint32_t k) const {
    const uint32_t run = length.quotient(k), frame = run_rows.quotient(run), channel = run_frames.quotient(frame);
    return (k - run * length.divisor) * stride_x + (run - frame * run_rows.divisor) * stride_row +
           (frame - channel * run_frames.divisor) * stride_frame + channel * stride_channel;
  }

  __device__ __forceinline__ Token token(int64_t row) const {
    const uint32_t b = static_cast<uint32_t>(row >> 31 == 0 ? tokens.quotient(row) : row / tokens.divisor);
    const uint32_t n = static_cast<uint32_t>(row - int64_t{b} * tokens.divisor);
    const uint32_t line = tokens_x.quotient(n), t = tokens_y.quotient(line);
    return {b * token_sample + t * token_t + (line - t * tokens_y.divisor) * token_y +
                (n - line * tokens_x.divisor) * token_x,
            b};
  }
};

// Registers of 2 to 16 bytes, as loads and stores take them.
template <int Bytes>
struct Words;
template <>
struct Words<1> {
  using type = uint8_t;
};
template <>
struct Words<2> {
  using type = uint16_t;
};
template <>
struct Words<4> {
  using type = uint32_t;
};
template <>
struct Words<8> {
  using type = uint2;
};
template <>
struct Words<16> {
  using type = uint4;
};
template <class Pixel, int V>
using RawOf = typename Words<sizeof(Pixel) * V>::type;

__device__ __forceinline__ uint32_t word(uint32_t raw, int) { return raw; }
__device__ __forceinline__ uint32_t word(uint2 raw, int i) { return i == 0 ? raw.x : raw.y; }
__device__ __forceinline__ uint32_t word(uint4 raw, int i) {
  return i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w;
}

__device__ __forceinline__ float to_float(bfloat16_t value) { return __uint_as_float(uint32_t{value.bits} << 16); }
// Byte `which` of a word. 2^23 + byte has that byte as its lowest: no conversion unit, whose rate is a quarter.
__device__ __forceinline__ float byte_to_float(uint32_t word, int which) {
  return __uint_as_float(__byte_perm(word, 0x4B000000, 0x7440 + which)) - 8388608.0F;
}

// Value i of what was loaded.
template <class Pixel, class Raw>
__device__ __forceinline__ float value_of(Raw raw, int i) {
  if constexpr (std::is_same_v<Pixel, uint8_t>)
    return byte_to_float(word(raw, i / 4), i % 4);
  else if constexpr (std::is_same_v<Pixel, float>)
    return __uint_as_float(word(raw, i));
  else
    return to_float(Pixel{static_cast<uint16_t>(word(raw, i / 2) >> (i % 2 * 16))});
}

// V values that were loaded one by one.
template <class Raw, int V>
struct Separate {
  Raw raw[V];
};

template <class Pixel, class Raw, int V>
__device__ __forceinline__ float value_of(const Separate<Raw, V>& values, int i) {
  return value_of<Pixel>(values.raw[i], 0);
}
// V values of Out, in parts of 16 bytes at most.
template <class Out, int V>
struct Encoded {
  static constexpr int kBytes = sizeof(Out) * V;
  static constexpr int kParts = kBytes > 16 ? kBytes / 16 : 1;
  static constexpr int kPerPart = V / kParts;
  uint32_t words[kBytes > 4 ? kBytes / 4 : 1];

  __device__ __forceinline__ typename Words<kBytes / kParts>::type part(int i) const {
    if constexpr (kBytes >= 16)
      return {words[i * 4], words[i * 4 + 1], words[i * 4 + 2], words[i * 4 + 3]};
    else if constexpr (kBytes == 8)
      return {words[0], words[1]};
    else
      return static_cast<typename Words<kBytes>::type>(words[0]);
  }
};

template <class Pixel, class Out, int V, class Raw>
__device__ __forceinline__ Encoded<Out, V> convert(Raw raw, float shift) {
  Encoded<Out, V> out;
  if constexpr (std::is_same_v<Out, float>) {
#pragma unroll
    for (int i = 0; i < V; ++i) out.words[i] = __float_as_uint(value_of<Pixel>(raw, i) - shift);
  } else {
#pragma unroll
    for (int i = 0; i < V; i += 2)
      out.words[i / 2] = pack<Out>(
          value_of<Pixel>(raw, i) - shift, V > 1 ? value_of<Pixel>(raw, i + 1) - shift : 0.0F);
  }
  return out;
}

}  // namespace hsta_fast
