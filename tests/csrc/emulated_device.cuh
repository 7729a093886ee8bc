// Replaces csrc/device.cuh on a host compiler: the same functions on the emulator, and the few functions of CUDA's
// runtime and built-ins that the kernels' source uses.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(bytes >> ((selector >> 4 * i & 7) * 8) & 0xFF) << 8 * i;
  return out;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (config->blockDim.x % emulator::kWarp != 0 || config->dynamicSmemBytes != 0) return cudaErrorInvalidConfiguration;
  return static_cast<cudaError_t>(emulator::run(
      config->gridDim.x, static_cast<int>(config->blockDim.x), config->stream, [&] { kernel(arguments...); }));
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == emulator::kFault ? emulator::fault.c_str() : "invalid value";
}

namespace hsta_fast {

struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};

inline int thread_index() { return emulator::current; }
inline int64_t block_index() { return emulator::current_block; }
inline void barrier() {
  emulator::threads[emulator::current].at_barrier = true;
  emulator::pause();
}

template <class Storage>
Storage& shared_storage() {
  static_assert(sizeof(Storage) <= emulator::kSharedBytes);
  return *reinterpret_cast<Storage*>(emulator::shared);
}

template <class T>
T load_global(const void* address) {
  emulator::check_global(address, sizeof(T), false);
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}
template <class T>
void store_global(void* address, T value) {
  emulator::check_global(address, sizeof(T), true);
  std::memcpy(address, &value, sizeof(T));
}
template <class T>
T load_shared(const T* address) {
  emulator::on_read(address, sizeof(T), emulator::current);
  return *address;
}
template <class T>
void store_shared(void* address, T value) {
  struct Request {
    void* to;
    T value;
  } request{address, value};
  const int first = emulator::current / emulator::kWarp * emulator::kWarp;
  emulator::together(request, [&](Request** lanes) {
    unsigned char* to[emulator::kWarp];
    for (int lane = 0; lane < emulator::kWarp; ++lane) {
      to[lane] = static_cast<unsigned char*>(lanes[lane]->to);
      emulator::on_write(to[lane], sizeof(T), first + lane, false);
      std::memcpy(to[lane], &lanes[lane]->value, sizeof(T));
    }
    emulator::count_banks(emulator::kStores, to, sizeof(T));
  });
}

inline void copy_async(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) emulator::fail("misaligned copy");
  if (valid) emulator::check_global(global, 16, false);
  unsigned char* to = static_cast<unsigned char*>(shared);
  emulator::on_write(to, 16, emulator::current, true);
  std::memset(to, 0xFF, 16);
  emulator::threads[emulator::current].groups.back().push_back({to, valid ? global : nullptr});
  emulator::together(to, [](unsigned char*** lanes) {
    unsigned char* all[emulator::kWarp];
    for (int lane = 0; lane < emulator::kWarp; ++lane) all[lane] = *lanes[lane];
    emulator::count_banks(emulator::kCopies, all, 16);
  });
}
inline void commit_copies() { emulator::threads[emulator::current].groups.emplace_back(); }
template <int Pending>
void wait_copies() {
  auto& groups = emulator::threads[emulator::current].groups;
  while (groups.size() > Pending + 1) {
    for (const emulator::Copy& copy : groups.front()) {
      for (int i = 0; i < 16; ++i) emulator::shadow_of(copy.to, 16)[i].in_flight = false;
      emulator::on_write(copy.to, 16, emulator::current, false);
      if (copy.from == nullptr)
        std::memset(copy.to, 0, 16);
      else
        std::memcpy(copy.to, copy.from, 16);
    }
    groups.erase(groups.begin());
  }
}

// ldmatrix .x4: lane l addresses row l % 8 of matrix l / 8; register i of lane l is that pair of matrix i at row l / 4,
// columns 2 (l % 4) and the next.
inline void load_matrices(uint32_t (&to)[4], const void* shared) {
  struct Request {
    const unsigned char* row;
    uint32_t* to;
  } request{static_cast<const unsigned char*>(shared), to};
  const int first = emulator::current / emulator::kWarp * emulator::kWarp;
  emulator::together(request, [&](Request** lanes) {
    unsigned char* rows[emulator::kWarp];
    for (int lane = 0; lane < emulator::kWarp; ++lane) {
      rows[lane] = const_cast<unsigned char*>(lanes[lane]->row);
      emulator::on_read(rows[lane], 16, first + lane);
    }
    for (int lane = 0; lane < emulator::kWarp; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix)
        std::memcpy(&lanes[lane]->to[matrix], rows[matrix * 8 + lane / 4] + lane % 4 * 4, 4);
    emulator::count_banks(emulator::kMatrixLoads, rows, 16);
  });
}

inline float to_float(half_t value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float size = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                     : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return (value.bits >> 15) != 0 ? -size : size;
}
template <class T>
uint16_t round_to(float value);
template <>
inline uint16_t round_to<half_t>(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(size)) return 0x7FFF;
  if (size >= 65520.0F) return sign | 0x7C00;
  const int exponent = size < 0x1p-14F ? -14 : std::ilogb(size);
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + std::lrint(std::ldexp(size, 10 - exponent)));
}
template <>
inline uint16_t round_to<bfloat16_t>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
template <class T>
uint32_t pack(float low, float high) {
  return uint32_t{round_to<T>(high)} << 16 | round_to<T>(low);
}

// mma.m16n8k16: with g = lane / 4 and q = lane % 4, registers a0..a3 hold rows g, g + 8, g, g + 8 at columns 2q (+ 8 in
// the last two), b0 and b1 rows 2q (+ 8) of column g, sums rows g, g, g + 8, g + 8 at columns 2q, 2q + 1.
template <class T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Request {
    float* sum;
    const uint32_t* a;
    uint32_t b[2];
  } request{sum, a, {b0, b1}};
  emulator::together(request, [](Request** lanes) {
    float left[16][16], right[16][8];
    const auto half = [](uint32_t pair, int e) {
      const uint16_t bits = static_cast<uint16_t>(pair >> 16 * e);
      if constexpr (std::is_same_v<T, half_t>) return to_float(half_t{bits});
      return std::bit_cast<float>(uint32_t{bits} << 16);
    };
    for (int lane = 0; lane < emulator::kWarp; ++lane) {
      const int g = lane / 4, q = lane % 4;
      for (int e = 0; e < 2; ++e) {
        for (int i = 0; i < 4; ++i) left[g + i % 2 * 8][2 * q + e + i / 2 * 8] = half(lanes[lane]->a[i], e);
        for (int i = 0; i < 2; ++i) right[2 * q + e + i * 8][g] = half(lanes[lane]->b[i], e);
      }
    }
    float out[16][8] = {};
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < 16; ++k)
        for (int column = 0; column < 8; ++column) out[row][column] += left[row][k] * right[k][column];
    for (int lane = 0; lane < emulator::kWarp; ++lane)
      for (int i = 0; i < 4; ++i)
        lanes[lane]->sum[i] += out[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    ++emulator::counts.products;
  });
}

}  // namespace hsta_fast
