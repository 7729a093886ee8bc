// The kernels' own source on the emulated device, behind plain C functions.
#include "tubelet_embed.cu"

extern "C" {

// How the caller's mirror of the structures is checked.
int64_t emulated_sizes(int which) { return which == 0 ? sizeof(hsta_fast::Tokens) : sizeof(hsta_fast::Patches); }

void emulated_reset() {
  emulator::ranges.clear();
  emulator::counts = {};
  emulator::fault.clear();
  emulator::first_block = 0;
  emulator::last_block = INT64_MAX;
}
void emulated_allow(const void* data, int64_t bytes, int writable) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  emulator::ranges.push_back({begin, begin + static_cast<uintptr_t>(bytes), writable != 0});
}
void emulated_only_blocks(int64_t first, int64_t last) {
  emulator::first_block = first;
  emulator::last_block = last;
}
int emulated_tokens(const hsta_fast::Tokens* tokens) { return hsta_fast::tubelet_tokens(*tokens, nullptr); }
int emulated_patches(const hsta_fast::Patches* patches) { return hsta_fast::tubelet_patches(*patches, nullptr); }
const char* emulated_error(int error) { return hsta_fast::tubelet_error(error); }
const void* emulated_stream() { return emulator::last_stream; }
void emulated_counts(int64_t* counts) { std::memcpy(counts, &emulator::counts, sizeof(emulator::counts)); }

}  // extern "C"
