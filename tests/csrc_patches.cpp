// Gathers patches and transposes matrices of many sizes in buffers that fit exactly, and compares with plain loops:
// for the address sanitizer, which sees one element too many.
#include "transpose.h"
#include "video_patches.h"

#include <cstdio>
#include <vector>

using namespace hsta_fast;

namespace {

int failures = 0;

template <typename In, typename Out>
void check_gather(int64_t T, int64_t H, int64_t W, int64_t t, int64_t p, bool channels_last) {
  std::vector<In> pixels(3 * T * H * W);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<In>((i * 37 + i / 11) % 256);
  VideoPatches video{pixels.data(), {T * H * W, H * W, W, 1}, {t, p, p}, {T / t, H / p, W / p}};
  if (channels_last) {
    const int64_t strides[4] = {1, H * W * 3, W * 3, 3};
    std::copy_n(strides, 4, video.strides);
  }
  const Affine affine{{1, 2, 3}, {0.5f, 2, 4}};
  const int64_t N = video.tokens(), planes = video.planes();
  for (const Part& part : {Part{0, N, 0, planes}, Part{N / 3, N, planes / 2, planes}, Part{0, N - N / 2, 0, 1}}) {
    const int64_t columns = (part.last_plane - part.plane) * p * p;
    std::vector<Out> out((part.last_token - part.token) * columns, Out(-1));
    gather<In>(video, part, affine, out.data());
    for (int64_t token = part.token; token < part.last_token; ++token) {
      const int64_t w = token % (W / p), h = token / (W / p) % (H / p), f = token / (W / p) / (H / p);
      for (int64_t k = 0; k < columns; ++k) {
        const int64_t plane = part.plane + k / (p * p), c = plane / t;
        const int64_t place[4] = {c, f * t + plane % t, h * p + k / p % p, w * p + k % p};
        int64_t index = 0;
        for (int i = 0; i < 4; ++i) index += place[i] * video.strides[i];
        const Out wanted = (static_cast<Out>(pixels[index]) - affine.shift[c]) * affine.scale[c];
        failures += out[(token - part.token) * columns + k] != wanted;
      }
    }
  }
}

void check_transpose(int64_t rows, int64_t columns, int64_t gap) {
  std::vector<float> in(rows * (columns + gap) - gap), out(rows * columns, -1);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  transpose(in.data(), rows, columns, columns + gap, out.data(), rows);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < columns; ++k) failures += out[k * rows + i] != in[i * (columns + gap) + k];
  }
}

}  // namespace

int main() {
  for (int64_t p : {1, 3, 8, 12, 14, 16, 17, 24}) {
    for (int64_t t : {1, 2, 4}) {
      for (bool channels_last : {false, true}) {
        check_gather<uint8_t, float>(2 * t + (t > 1), 2 * p, 3 * p + p / 2, t, p, channels_last);
        check_gather<uint8_t, double>(t, 2 * p + p / 3, 2 * p, t, p, channels_last);
        check_gather<float, float>(t, p, 2 * p + p / 2, t, p, channels_last);
      }
    }
  }
  for (int64_t rows : {1, 15, 16, 17, 48, 64}) {
    for (int64_t columns : {1, 16, 31, 64}) {
      for (int64_t gap : {0, 5}) check_transpose(rows, columns, gap);
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
