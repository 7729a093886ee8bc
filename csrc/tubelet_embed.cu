// Tubelet embedding: a matrix product whose left operand is gathered from the video on the fly.
//
// tokens (M = B N rows, C) = patches (M, K) weight^T (K, C). A block of 4 warps owns 128 tokens x 128 channels and
// loops over K in steps of 32. Pixels are loaded into registers, converted there (0..255 is exact in both 16-bit types)
// and stored in two buffers; weights are copied asynchronously into three. One barrier per step. The reasons are in
// docs/tubelet-embed.md.
#include "tubelet_embed.h"

#include <type_traits>
#include <utility>

#include "device.cuh"
#include "video_gather.cuh"

namespace hsta_fast {
namespace {

constexpr int kTile = 128;          // tokens, and channels, of a block
constexpr int kStep = 32;           // columns of K in one step
constexpr int kThreads = 128;       // 2 x 2 warps, each 64 tokens x 64 channels
constexpr int kStages = 3;          // buffers of weights
constexpr int kTokensPerBlock = 8;  // of the patches kernel: a warp each

struct TokensArguments {
  VideoGather video;
  int64_t rows;   // M
  int64_t width;  // C
  int64_t tiles;  // of channels
  const uint16_t* weight;
  int64_t pitch;
  const float* bias;
  const float* cls;
  const float* pos;
  int64_t has_cls;  // 0 or 1
  bool aligned;     // every eighth channel of pos and out is at a multiple of 16 bytes
  void* out;
};

struct TokensStorage {
  alignas(128) uint16_t pixels[2][kTile * kStep];
  alignas(128) uint16_t weights[kStages][kTile * kStep];
  int64_t origin[kTile];   // of each token in the video, in elements
  uint32_t sample[kTile];  // its b
};

// Rows are 64 bytes, two to a line of all 32 banks. Eight rows that are read at once must differ in half and chunk:
// tokens are read by rows 0..7, weights by the rows of channel(), whose pairs are 8 apart. Rows a multiple of 8 further,
// or of 32 for weights, are a constant further.
__device__ __forceinline__ int pixel_place(int row, int chunk) { return row * kStep + ((chunk ^ (row >> 1)) & 3) * 8; }
__device__ __forceinline__ int weight_place(int row, int chunk) {
  return row * kStep + ((chunk ^ (row >> 3)) & 3) * 8;
}

// The channel, of a warp's 64, that column n of the product's tile j stands for. A thread holds columns 2q and 2q + 1
// of each tile: with this order eight neighbouring channels in tiles 0..3 and eight in 4..7, each written as 16 bytes.
__device__ __forceinline__ int channel(int j, int n) { return (j >> 2) * 32 + (n >> 1) * 8 + (j & 3) * 2 + (n & 1); }

// The pixels that a thread loads in one step: kCount pieces of V values, at one place of a patch, from tokens 4V apart.
template <class Pixel, int V>
struct Pieces {
  static constexpr int kPerRow = kStep / V;
  static constexpr int kCount = kTile * kPerRow / kThreads;
  RawOf<Pixel, V> raw[kCount];

  __device__ __forceinline__ void load(const VideoGather& video, const TokensStorage& shared, int step) {
    const uint32_t k = step * kStep + thread_index() % kPerRow * V;
    if (k < video.columns) {
      const int64_t place = video.place(k);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int64_t origin = load_shared(&shared.origin[thread_index() / kPerRow + i * (kThreads / kPerRow)]);
        raw[i] = load_global<RawOf<Pixel, V>>(static_cast<const Pixel*>(video.data) + (origin + place));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) raw[i] = RawOf<Pixel, V>{};
    }
  }

  template <class Compute>
  __device__ __forceinline__ void store(uint16_t* pixels) const {
    const int k = thread_index() % kPerRow * V;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int down = i * (kThreads / kPerRow), row = thread_index() / kPerRow + down % 8;
      uint16_t* const to = pixels + down / 8 * 8 * kStep + k % 8;
      if constexpr (std::is_same_v<Pixel, Compute>) {
        store_shared(to + pixel_place(row, k / 8), raw[i]);
      } else {
        const Encoded<Compute, V> values = convert<Pixel, Compute, V>(raw[i], 0.0F);
#pragma unroll
        for (int part = 0; part < values.kParts; ++part)
          store_shared(to + pixel_place(row, k / 8 + part), values.part(part));
      }
    }
  }
};

// The weights that a thread copies in one step: 16 bytes of each of four rows. Rows beyond the last are copies of it,
// whose products are not written; columns beyond the last are zeros (the pixels there are zeros too, not NaN).
struct Weights {
  const uint16_t* from;
  uint32_t rows[kTile / 32];

  __device__ __forceinline__ Weights(const TokensArguments& a, int64_t first)
      : from(a.weight + first * a.pitch + thread_index() % 4 * 8) {
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      const int64_t row = thread_index() / 4 + i * 32, last = a.width - 1 - first;
      rows[i] = static_cast<uint32_t>((row < last ? row : last) * a.pitch);
    }
  }

  __device__ __forceinline__ void copy(const TokensArguments& a, uint16_t* weights, int step) const {
    const uint32_t k = step * kStep;
    const bool valid = k + thread_index() % 4 * 8 < a.video.columns;
    uint16_t* const to = weights + weight_place(thread_index() / 4, thread_index() % 4);
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) copy_async(to + i * 32 * kStep, from + (valid ? rows[i] + k : 0), valid);
    commit_copies();
  }
};

// One k of 16: a warp's 64 tokens by its 64 channels.
template <class Compute>
__device__ __forceinline__ void multiply(
    float (&sums)[4][8][4], const uint16_t* pixels, const uint16_t* weights, int k) {
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  pixels += pixel_place(warp / 2 * 64 + lane % 16, k * 2 + lane / 16);
  weights += weight_place(warp % 2 * 64 + channel(lane / 16, lane % 8), k * 2 + lane / 8 % 2);
  uint32_t a[4][4], b[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) load_matrices(a[i], pixels + i * 16 * kStep);
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    load_matrices(b, weights + channel(j, 0) * kStep);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      multiply_add<Compute>(sums[i][j], a[i], b[0], b[1]);
      multiply_add<Compute>(sums[i][j + 1], a[i], b[2], b[3]);
    }
  }
}

// out[row, column .. column + 7] = values + pos[pos_row].
template <class Compute>
__device__ __forceinline__ void write_eight(
    const TokensArguments& a, float (&values)[8], int64_t row, int64_t pos_row, int64_t column) {
  uint16_t* const to = static_cast<uint16_t*>(a.out) + row * a.width + column;
  const float* const pos = a.pos + pos_row * a.width + column;
  if (a.aligned) {
    if (column >= a.width) return;
    if (a.pos != nullptr) {
      const uint4 low = load_global<uint4>(pos), high = load_global<uint4>(pos + 4);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] += __uint_as_float(word(i < 4 ? low : high, i % 4));
    }
    store_global(to, uint4{pack<Compute>(values[0], values[1]), pack<Compute>(values[2], values[3]),
                           pack<Compute>(values[4], values[5]), pack<Compute>(values[6], values[7])});
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (column + i >= a.width) return;
      if (a.pos != nullptr) values[i] += load_global<float>(pos + i);
      store_global(to + i, static_cast<uint16_t>(pack<Compute>(values[i], 0.0F)));
    }
  }
}

template <class Compute>
__device__ __forceinline__ void write_tokens(
    const TokensArguments& a, const TokensStorage& shared, const float (&sums)[4][8][4], int64_t first_row,
    int64_t first) {
  const int lane = thread_index() % 32, warp = thread_index() / 32;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int64_t column = first + warp % 2 * 64 + channel(part * 4, lane % 4 * 2);
    float bias[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) bias[e] = column + e < a.width ? load_global<float>(a.bias + column + e) : 0.0F;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = warp / 2 * 64 + i * 8 + lane / 4;
      if (first_row + row >= a.rows) break;
      const int64_t b = load_shared(&shared.sample[row]);
      const int64_t n = first_row + row - b * a.video.tokens.divisor;
      float values[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) values[e] = sums[i / 2][part * 4 + e / 2][i % 2 * 2 + e % 2] + bias[e];
      write_eight<Compute>(a, values, first_row + row + (b + 1) * a.has_cls, n + a.has_cls, column);
    }
  }
}

// The CLS row of each sample whose first token is here, one channel a thread.
template <class Compute>
__device__ __forceinline__ void write_cls(
    const TokensArguments& a, const TokensStorage& shared, int64_t first_row, int64_t first) {
  const int64_t column = first + thread_index();
  if (column >= a.width) return;
  float value = load_global<float>(a.cls + column);
  if (a.pos != nullptr) value += load_global<float>(a.pos + column);
  const int64_t tokens = a.video.tokens.divisor;
  const int64_t end = first_row + kTile < a.rows ? first_row + kTile : a.rows;
  int64_t b = load_shared(&shared.sample[0]);
  if (b * tokens < first_row) ++b;
  for (; b * tokens < end; ++b)
    store_global(static_cast<uint16_t*>(a.out) + b * (tokens + 1) * a.width + column,
                 static_cast<uint16_t>(pack<Compute>(value, 0.0F)));
}

template <class Pixel, class Compute, int V>
__global__ void __launch_bounds__(kThreads, 2) tokens_kernel(const TokensArguments a) {
  TokensStorage& shared = shared_storage<TokensStorage>();
  const int64_t first_row = block_index() / a.tiles * kTile;  // neighbours share their tokens, which stay in the L2
  const int64_t first = block_index() % a.tiles * kTile;
  const int steps = (a.video.columns + kStep - 1) / kStep;
  {
    const int64_t row = first_row + thread_index();
    const Token token = a.video.token(row < a.rows ? row : a.rows - 1);  // rows beyond the last are not written
    store_shared(&shared.origin[thread_index()], token.origin);
    store_shared(&shared.sample[thread_index()], token.sample);
  }
  const Weights weights(a, first);
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) weights.copy(a, shared.weights[step], step);
  barrier();  // origins are written

  Pieces<Pixel, V> pieces;
  pieces.load(a.video, shared, 0);
  pieces.template store<Compute>(shared.pixels[0]);
  pieces.load(a.video, shared, 1);
  float sums[4][8][4] = {};
  int stage = 0;
  for (int step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    barrier();  // this step's pixels and weights are written; the previous step's buffers are free
    multiply<Compute>(sums, shared.pixels[step % 2], shared.weights[stage], 0);
    const int free = stage == 0 ? kStages - 1 : stage - 1;
    weights.copy(a, shared.weights[free], step + kStages - 1);
    pieces.template store<Compute>(shared.pixels[(step + 1) % 2]);
    pieces.load(a.video, shared, step + 2);
    multiply<Compute>(sums, shared.pixels[step % 2], shared.weights[stage], 1);
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  wait_copies<0>();
  write_tokens<Compute>(a, shared, sums, first_row, first);
  if (a.has_cls != 0) write_cls<Compute>(a, shared, first_row, first);
}

// V neighbours of a run: at once, or each by itself.
template <class Pixel, int V, bool Wide>
__device__ __forceinline__ auto load_values(const VideoGather& video, const Pixel* from) {
  if constexpr (Wide) {
    return load_global<RawOf<Pixel, V>>(from);
  } else {
    Separate<RawOf<Pixel, 1>, V> values;
#pragma unroll
    for (int i = 0; i < V; ++i) values.raw[i] = load_global<RawOf<Pixel, 1>>(from + i * video.stride_x);
    return values;
  }
}

template <class Pixel, class Out, int V, bool Wide>
__global__ void __launch_bounds__(kTokensPerBlock * 32)
    patches_kernel(const VideoGather video, const int64_t rows, const float shift, void* const out) {
  const int64_t row = block_index() * kTokensPerBlock + thread_index() / 32;
  if (row >= rows) return;
  const Pixel* const from = static_cast<const Pixel*>(video.data) + video.token(row).origin;
  Out* const to = static_cast<Out*>(out) + row * video.columns;
  for (uint32_t k = thread_index() % 32 * V; k < video.columns; k += 32 * V) {
    const auto raw = load_values<Pixel, V, Wide>(video, from + video.place(k));
    const Encoded<Out, V> values = convert<Pixel, Out, V>(raw, shift);
#pragma unroll
    for (int part = 0; part < values.kParts; ++part) store_global(to + k + part * values.kPerPart, values.part(part));
  }
}

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream, const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Calls with the first of the widths that divides `width`; the last must be 1.
template <int First, int... Rest, class Call>
int with_width(int64_t width, const Call& call) {
  if constexpr (sizeof...(Rest) > 0) {
    if (width % First != 0) return with_width<Rest...>(width, call);
  }
  return call(std::integral_constant<int, First>{});
}

template <class Pixel, class Compute, int... Widths>
int launch_tokens(const Tokens& t, void* stream) {
  TokensArguments a = {};
  a.video = VideoGather(t.video, t.video.channels_last());
  a.rows = t.video.sizes[0] * t.video.tokens();
  a.width = t.width;
  a.tiles = (t.width + kTile - 1) / kTile;
  a.weight = static_cast<const uint16_t*>(t.weight);
  a.pitch = t.pitch;
  a.bias = t.bias;
  a.cls = t.cls;
  a.pos = t.pos;
  a.has_cls = t.cls != nullptr;
  a.aligned = t.width % 8 == 0 && is_aligned(t.pos) && is_aligned(t.out);
  a.out = t.out;
  const int64_t blocks = (a.rows + kTile - 1) / kTile * a.tiles;
  return with_width<Widths...>(a.video.vector(sizeof(Pixel)), [&](auto width) {
    return launch(tokens_kernel<Pixel, Compute, width>, blocks, kThreads, stream, a);
  });
}

template <class Pixel, class Out, int... Widths>
int launch_patches(const Patches& p, void* stream) {
  const VideoGather video(p.video, false);
  const int64_t rows = p.video.sizes[0] * p.video.tokens();
  const int64_t blocks = (rows + kTokensPerBlock - 1) / kTokensPerBlock;
  const auto run = [&](auto kernel) {
    return launch(kernel, blocks, kTokensPerBlock * 32, stream, video, rows, p.shift, p.out);
  };
  const int64_t width = video.vector(sizeof(Pixel));
  if (width == 1)
    return with_width<4, 2, 1>(video.length.divisor, [&](auto v) { return run(patches_kernel<Pixel, Out, v, false>); });
  return with_width<Widths...>(width, [&](auto v) { return run(patches_kernel<Pixel, Out, v, true>); });
}

// Indices are below 2^31 within a sample, and within 128 rows of weights; offsets and rows are 64 bits wide.
bool fits(const Video& video) { return video.tokens() < int64_t{1} << 31 && video.columns() < 1 << 24; }

template <class Compute>
int tokens_of(const Tokens& tokens, void* stream) {
  switch (tokens.video.type) {
    case Type::uint8:
      return launch_tokens<uint8_t, Compute, 16, 8, 4, 2, 1>(tokens, stream);
    case Type::float32:
      return launch_tokens<float, Compute, 4, 1>(tokens, stream);
    default:
      return tokens.video.type == tokens.type ? launch_tokens<Compute, Compute, 8, 2, 1>(tokens, stream)
                                              : cudaErrorInvalidValue;
  }
}

template <class Out>
int patches_of(const Patches& patches, void* stream) {
  switch (patches.video.type) {
    case Type::uint8:
      return launch_patches<uint8_t, Out, 16, 8, 4, 2>(patches, stream);
    case Type::float16:
      return launch_patches<half_t, Out, 8, 2>(patches, stream);
    case Type::bfloat16:
      return launch_patches<bfloat16_t, Out, 8, 2>(patches, stream);
    default:
      return launch_patches<float, Out, 4, 2>(patches, stream);
  }
}

}  // namespace

int tubelet_tokens(const Tokens& tokens, void* stream) {
  if (!fits(tokens.video)) return cudaErrorInvalidValue;
  if (tokens.type == Type::bfloat16) return tokens_of<bfloat16_t>(tokens, stream);
  return tokens.type == Type::float16 ? tokens_of<half_t>(tokens, stream) : cudaErrorInvalidValue;
}

int tubelet_patches(const Patches& patches, void* stream) {
  if (!fits(patches.video)) return cudaErrorInvalidValue;
  if (patches.type == Type::bfloat16) return patches_of<bfloat16_t>(patches, stream);
  if (patches.type == Type::float16) return patches_of<half_t>(patches, stream);
  return patches.type == Type::float32 ? patches_of<float>(patches, stream) : cudaErrorInvalidValue;
}

const char* tubelet_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace hsta_fast
