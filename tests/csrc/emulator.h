// Runs a kernel's blocks on the host, one at a time, with a fibre per thread, and checks every memory access.
//
// A thread runs until a warp-wide operation or a barrier; warps run in turn up to the next barrier, in an order that
// changes from barrier to barrier. Mistakes that a GPU would not report are errors here: shared memory read before it
// is written, or accessed by two threads between two barriers if one of them writes; an asynchronous copy used before
// its thread waited for it and the block passed a barrier (until then its destination holds NaN); global memory outside
// the operands, misaligned, or written twice.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bitset>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

namespace emulator {

constexpr int kWarp = 32, kSharedBytes = 48 << 10;  // available to a kernel by default
constexpr size_t kStack = 64 << 10;
constexpr int kFault = 700;  // cudaErrorIllegalAddress

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
struct Byte {  // the last accesses to a byte of shared memory, and in which interval between barriers
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

// The whole warp meets here; the last lane to arrive runs `operation` on the arguments of all.
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

// 0, or an error of CUDA's.
inline int run(int64_t blocks, int threads_per_block, void* stream, std::function<void()> kernel) {
  body = std::move(kernel);
  last_stream = stream;
  written.clear();
  if (_setjmp(failure) != 0) return kFault;
  for (current_block = first_block; current_block < std::min(blocks, last_block); ++current_block)
    run_block(threads_per_block);
  return 0;
}

}  // namespace emulator

