// Takes the place of csrc/device.cuh on a host compiler: the same functions, run by fibres, a block at a time.
//
// A thread runs until it meets a warp-wide operation or a barrier; warps run in turn as far as the next barrier, in an
// order that changes from barrier to barrier. What a GPU would let pass unseen is an error here: shared memory read
// before it is written, or touched by two threads between two barriers, one of them writing; an asynchronous copy
// used before its thread waited for it and the block met a barrier (until it lands, its place holds NaN); global
// memory outside the operands, misaligned, or written twice.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <bitset>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

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

namespace emulator {

constexpr int kWarp = 32, kSharedBytes = 48 << 10;  // what a kernel gets without asking for more
constexpr size_t kStack = 64 << 10;

enum Operation { kMatrixLoads, kStores, kCopies, kOperations };
struct Counts {  // cycles of shared memory, and the fewest for those bytes; matrix products
  int64_t wavefronts[kOperations], least[kOperations], products, blocks;
};

struct Copy {
  unsigned char* to;
  const void* from;  // null: zeros
};
struct Thread {
  ucontext_t start;
  jmp_buf at;
  std::vector<char> stack;
  bool started, done, at_barrier;
  std::vector<std::vector<Copy>> groups;  // the last one is not yet committed
};
struct Warp {
  void* requests[kWarp];
  const void* operation;  // that its lanes are at
  int arrived;
  int64_t generation;
};
struct Byte {  // what was last done to a byte of shared memory, in which interval between barriers
  int written_in = -1, written_by = -1, read_in = -1, read_by = -1;
  bool in_flight = false, seen = false;
};
struct Range {
  uintptr_t begin, end;
  bool writable;
};

inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline int current, interval;
inline int64_t current_block, first_block, last_block = INT64_MAX;
inline uint64_t seed = 1;
inline jmp_buf scheduler, failure;
inline std::string fault;
inline Counts counts;
inline std::vector<Range> ranges;
inline std::unordered_map<uintptr_t, std::bitset<4096>> written;
inline std::vector<Byte> shadow(kSharedBytes);
inline std::function<void()> body;
inline void* last_stream;
alignas(1024) inline unsigned char shared[kSharedBytes];

[[noreturn]] inline void fail(const std::string& what) {
  fault = what + " (block " + std::to_string(current_block) + ", thread " + std::to_string(current) + ", interval " +
          std::to_string(interval) + ")";
  _longjmp(failure, 1);
}

inline void pause() {
  if (_setjmp(threads[current].at) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
  body();
  Thread& self = threads[current];
  for (const auto& group : self.groups)
    if (!group.empty()) fail("a copy outlives its block");
  self.done = true;
  _longjmp(scheduler, 1);
}

inline void resume(int index) {
  current = index;
  if (_setjmp(scheduler) != 0) return;
  if (threads[index].started) _longjmp(threads[index].at, 1);
  threads[index].started = true;
  setcontext(&threads[index].start);
}

// The whole warp meets here; the last to come runs `operation` on what all of them brought.
template <class Request, class Run>
void together(Request& request, const Run& operation) {
  static const char name = 0;
  Warp& warp = warps[current / kWarp];
  if (warp.arrived > 0 && warp.operation != &name) fail("lanes of a warp part before a warp-wide operation");
  warp.operation = &name;
  warp.requests[current % kWarp] = &request;
  if (++warp.arrived == kWarp) {
    operation(reinterpret_cast<Request**>(warp.requests));
    warp.arrived = 0;
    ++warp.generation;
    return;
  }
  for (const int64_t generation = warp.generation; warp.generation == generation;) pause();
}

inline void check_global(const void* address, size_t bytes, bool write) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  if (begin % bytes != 0) fail("misaligned access to global memory");
  const auto inside = [&](const Range& r) {
    return begin >= r.begin && begin + bytes <= r.end && (r.writable || !write);
  };
  if (std::none_of(ranges.begin(), ranges.end(), inside)) fail(write ? "write outside" : "read outside the operands");
  if (!write) return;
  for (uintptr_t byte = begin; byte < begin + bytes; ++byte) {
    auto bit = written[byte / 4096][byte % 4096];
    if (bit) fail("global memory written twice");
    bit = true;
  }
}

inline Byte* shadow_of(const void* address, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(address);
  if (at < shared || at + bytes > shared + kSharedBytes) fail("access outside shared memory");
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) fail("misaligned access to shared memory");
  return &shadow[at - shared];
}
inline void on_read(const void* address, size_t bytes, int thread) {
  Byte* const byte = shadow_of(address, bytes);
  for (size_t i = 0; i < bytes; ++i) {
    if (byte[i].in_flight) fail("read of a copy not waited for");
    if (!byte[i].seen) fail("shared memory read before it is written");
    if (byte[i].written_in == interval && byte[i].written_by != thread) fail("race: read after write");
    byte[i].read_by = byte[i].read_in == interval && byte[i].read_by != thread ? -2 : thread;  // -2: several
    byte[i].read_in = interval;
  }
}
inline void on_write(const void* address, size_t bytes, int thread, bool in_flight) {
  Byte* const byte = shadow_of(address, bytes);
  for (size_t i = 0; i < bytes; ++i) {
    if (byte[i].in_flight) fail("write over a copy in flight");
    if (byte[i].written_in == interval && byte[i].written_by != thread) fail("race: write after write");
    if (byte[i].read_in == interval && byte[i].read_by != thread) fail("race: write after read");
    byte[i].written_in = interval, byte[i].written_by = thread;
    byte[i].seen = true, byte[i].in_flight = in_flight;
  }
}

// Cycles a warp's access takes: 128 bytes at a time, lanes in groups of that many; a bank serves one word a cycle.
inline void count_banks(Operation operation, unsigned char* const (&lanes)[kWarp], int bytes) {
  const int group = std::min(kWarp, 128 / bytes);
  for (int first = 0; first < kWarp; first += group) {
    std::vector<size_t> words;
    for (int lane = first; lane < first + group; ++lane)
      for (int byte = 0; byte < bytes; ++byte) words.push_back((lanes[lane] - shared + byte) / 4);
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int banks[32] = {};
    for (const size_t w : words) ++banks[w % 32];
    counts.wavefronts[operation] += *std::max_element(banks, banks + 32);
    counts.least[operation] += (static_cast<int64_t>(words.size()) + 31) / 32;
  }
}

// Runs a warp's lanes in turn until each is done or at a barrier.
inline void run_warp(int warp) {
  for (bool any = true; any;) {
    any = false;
    for (int index = warp * kWarp; index < (warp + 1) * kWarp; ++index)
      if (!threads[index].done && !threads[index].at_barrier) resume(index), any = true;
    const auto begin = threads.begin() + warp * kWarp;
    if (warps[warp].arrived > 0 &&
        std::any_of(begin, begin + kWarp, [](const Thread& t) { return t.done || t.at_barrier; }))
      fail("lanes of a warp part before a warp-wide operation");
  }
}

inline void run_block(int size) {
  threads.resize(size);
  warps.assign(size / kWarp, Warp{});
  shadow.assign(kSharedBytes, Byte{});
  std::memset(shared, 0xFF, kSharedBytes);
  interval = 0;
  for (Thread& thread : threads) {
    thread.started = thread.done = thread.at_barrier = false;
    thread.groups.assign(1, {});
    thread.stack.resize(kStack);
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack.data();
    thread.start.uc_stack.ss_size = kStack;
    makecontext(&thread.start, enter, 0);
  }
  std::vector<int> order(warps.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  while (!std::all_of(threads.begin(), threads.end(), [](const Thread& t) { return t.done; })) {
    for (size_t i = order.size(); i > 1; --i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      std::swap(order[i - 1], order[(seed >> 33) % i]);
    }
    for (const int warp : order) run_warp(warp);
    ++interval;
    const auto waits = std::count_if(threads.begin(), threads.end(), [](const Thread& t) { return t.at_barrier; });
    if (waits != 0 && waits != size) fail("a thread left before a barrier that others meet");
    for (Thread& thread : threads) thread.at_barrier = false;
  }
  ++counts.blocks;
}

inline cudaError_t run(const cudaLaunchConfig_t& config, std::function<void()> kernel) {
  body = std::move(kernel);
  last_stream = config.stream;
  written.clear();
  if (config.blockDim.x % kWarp != 0 || config.dynamicSmemBytes != 0) return cudaErrorInvalidConfiguration;
  if (_setjmp(failure) != 0) return static_cast<cudaError_t>(700);
  const int64_t blocks = config.gridDim.x;
  for (current_block = first_block; current_block < std::min(blocks, last_block); ++current_block)
    run_block(static_cast<int>(config.blockDim.x));
  return cudaSuccess;
}

}  // namespace emulator

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Arguments&... arguments) {
  return emulator::run(*config, [&] { kernel(arguments...); });
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == 700 ? emulator::fault.c_str() : "invalid value";
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

// ldmatrix .x4: lane l names row l % 8 of matrix l / 8; register i of lane l is that pair of matrix i at row l / 4,
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
