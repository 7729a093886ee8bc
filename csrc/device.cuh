// Everything that the kernels need from the hardware beyond plain C++; sm_80 and later. Apart from __global__ and the
// launch nothing else in csrc/ is CUDA-specific, so the kernels also run on a host that provides these functions.
#pragma once

#include <cstdint>

namespace hsta_fast {

struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int64_t block_index() { return blockIdx.x; }
__device__ __forceinline__ void barrier() { __syncthreads(); }

// One per block and type.
template <class Storage>
__device__ __forceinline__ Storage& shared_storage() {
  __shared__ Storage storage;
  return storage;
}

template <class T>
__device__ __forceinline__ T load_global(const void* address) {
  return __ldg(static_cast<const T*>(address));
}
template <class T>
__device__ __forceinline__ void store_global(void* address, T value) {
  *static_cast<T*>(address) = value;
}
template <class T>
__device__ __forceinline__ T load_shared(const T* address) {
  return *address;
}
template <class T>
__device__ __forceinline__ void store_shared(void* address, T value) {
  *static_cast<T*>(address) = value;
}

// 16 bytes into shared memory, zeros if not `valid`; they are there after wait_copies, for others after a barrier too.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but this thread's newest `Pending` groups have landed.
template <int Pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Four 8 x 8 matrices of 16 bits: lane l gives the address of row l % 8 of matrix l / 8. In to[i] it gets columns
// 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* shared) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// sum (16 x 8) += a (16 x 16) b (16 x 8), in the fragments of mma.m16n8k16.
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<bfloat16_t>(
    float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_add<half_t>(
    float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats rounded to nearest, `low` in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<bfloat16_t>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
__device__ __forceinline__ uint32_t pack<half_t>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ float to_float(half_t value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}

}  // namespace hsta_fast
