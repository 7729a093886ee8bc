// Space-time attention on the CPU: checks, and the work of attention_blocks.h shared among threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "attention_bfloat16.h"

namespace hsta_fast {
namespace {

void check(const char* name, const at::Tensor& x, const at::Tensor& q, int64_t rows) {
  TORCH_CHECK(x.dim() == 4 && x.size(0) == q.size(0) && x.size(1) == rows && x.size(2) == q.size(2) &&
                  x.size(3) == q.size(3) && x.scalar_type() == q.scalar_type(),
              name, " expected shape (", q.size(0), ", ", rows, ", ", q.size(2), ", ", q.size(3), ") and ",
              q.scalar_type(), ", got ", x.sizes(), " and ", x.scalar_type());
  TORCH_CHECK(x.stride(3) == 1 || x.size(3) == 1, name, " expected last stride 1, got ", x.strides());
}

Sizes sizes_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "q and k expected four dimensions, got ", q.sizes(), " and ", k.sizes());
  check("q", q, q, q.size(1));
  check("k", k, q, k.size(1));
  check("v", v, q, k.size(1));
  TORCH_CHECK(q.numel() > 0 && k.numel() > 0, "q and k expected elements, got ", q.sizes(), " and ", k.sizes());
  TORCH_CHECK(q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16,
              "q expected float32 or bfloat16, got ", q.scalar_type());
  return {q.size(1), k.size(1), q.size(3), static_cast<float>(scale)};
}

template <typename T>
Rows<const T> rows_of(const at::Tensor& x, int64_t b, int64_t h) {
  return {x.const_data_ptr<T>() + b * x.stride(0) + h * x.stride(2), x.stride(1)};
}

template <typename T>
Rows<T> rows_to(const at::Tensor& x, int64_t b, int64_t h) {
  return {x.data_ptr<T>() + b * x.stride(0) + h * x.stride(2), x.stride(1)};
}

// run(b, h, piece, first row, last row, scratch memory) for `pieces` parts of the rows of every head, of equal length.
template <typename ScratchOf, typename Run>
void for_pieces(const at::Tensor& q, const Sizes& sizes, int64_t rows, int64_t pieces, const Run& run) {
  const int64_t H = q.size(2);
  Scratch counted{nullptr};
  ScratchOf(counted, sizes);
  at::parallel_for(0, q.size(0) * H * pieces, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor memory = at::empty({counted.used}, q.options().dtype(at::kFloat));
    Scratch scratch{memory.data_ptr<float>()};
    const ScratchOf room(scratch, sizes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t piece = i % pieces;
      run(i / pieces / H, i / pieces % H, piece, rows * piece / pieces, rows * (piece + 1) / pieces, room);
    }
  });
}

// Pieces of each head, of `least` rows or more: few heads are split until all make up a multiple of `enough`, or many.
int64_t pieces_of(const at::Tensor& q, int64_t rows, int64_t least, int64_t enough) {
  const int64_t heads = q.size(0) * q.size(2), most = std::max<int64_t>(1, rows / least);
  int64_t pieces = 1;
  while (pieces < most && heads * pieces < 4 * enough && heads * pieces % enough) ++pieces;
  return pieces;
}

template <typename T, typename Room, typename Attend>
void forward(const Sizes& sizes, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
             const at::Tensor& stats, const Attend& attend) {
  for_pieces<Room>(q, sizes, sizes.N, pieces_of(q, sizes.N, BLOCK_ROWS, at::get_num_threads()),
                   [&](int64_t b, int64_t h, int64_t, int64_t first, int64_t last, const Room& room) {
                     attend(sizes, rows_of<T>(q, b, h), rows_of<T>(k, b, h), rows_of<T>(v, b, h), first, last,
                            rows_to<T>(out, b, h), stats.data_ptr<float>() + (b * q.size(2) + h) * 2 * sizes.N, room);
                   });
}

template <typename T>
void backward(const Sizes& sizes, const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
              const at::Tensor& v, const at::Tensor& out, const at::Tensor& stats, const at::Tensor& dq,
              const at::Tensor& dk, const at::Tensor& dv) {
  const int64_t H = q.size(2), D = sizes.D, columns = sizes.columns();
  // Not by the number of threads: the pieces' parts of dq are added up, and the sum would depend on it.
  const int64_t pieces = pieces_of(q, sizes.M, 2 * PANEL, 8);
  const auto write = [&](int64_t b, int64_t h, int64_t n, const float* row) {
    T* to = rows_to<T>(dq, b, h)[n];
    for (int64_t d = 0; d < D; ++d) to[d] = static_cast<T>(sizes.scale * row[d]);
  };
  const int64_t size = sizes.N * columns;
  const at::Tensor partial =
      at::empty({pieces > 1 ? q.size(0) * H * pieces * size : 0}, q.options().dtype(at::kFloat));
  for_pieces<BackwardScratch>(
      q, sizes, sizes.M, pieces,
      [&](int64_t b, int64_t h, int64_t piece, int64_t first, int64_t last, const BackwardScratch& room) {
        attend_backward<T>(sizes, rows_of<T>(q, b, h), rows_of<T>(k, b, h), rows_of<T>(v, b, h), rows_of<T>(out, b, h),
                           rows_of<T>(dout, b, h), stats.const_data_ptr<float>() + (b * H + h) * 2 * sizes.N, first,
                           last, rows_to<T>(dk, b, h), rows_to<T>(dv, b, h), room);
        if (pieces > 1) {
          std::copy_n(room.dq, size, partial.data_ptr<float>() + ((b * H + h) * pieces + piece) * size);
          return;
        }
        for (int64_t n = 0; n < sizes.N; ++n) write(b, h, n, room.dq + n * columns);
      });
  if (pieces == 1) return;
  at::parallel_for(0, q.size(0) * H * sizes.N, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / sizes.N, n = i % sizes.N;
      float* total = partial.data_ptr<float>() + head * pieces * size + n * columns;
      for (int64_t piece = 1; piece < pieces; ++piece) {
        for (int64_t d = 0; d < D; ++d) total[d] += total[piece * size + d];
      }
      write(head / H, head % H, n, total);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> space_time_attention_fwd(const at::Tensor& q, const at::Tensor& k,
                                                            const at::Tensor& v, double scale) {
  const Sizes sizes = sizes_of(q, k, v, scale);
  at::Tensor out = at::empty({q.size(0), q.size(1), q.size(2), q.size(3)}, q.options());
  at::Tensor stats = at::empty({q.size(0), q.size(2), 2, q.size(1)}, q.options().dtype(at::kFloat));
  if (q.scalar_type() == at::kFloat) {
    forward<float, ForwardScratch>(sizes, q, k, v, out, stats, attend<float>);
  } else if (multiplies_bfloat16()) {
    forward<Half, Bfloat16Scratch>(sizes, q, k, v, out, stats, attend_bfloat16);
  } else {
    forward<Half, ForwardScratch>(sizes, q, k, v, out, stats, attend<Half>);
  }
  return {out, stats};
}

void space_time_attention_bwd(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& out, const at::Tensor& stats, double scale, const at::Tensor& dq,
                              const at::Tensor& dk, const at::Tensor& dv) {
  const Sizes sizes = sizes_of(q, k, v, scale);
  for (const auto& x : {dout, out, dq}) check("dout, out and dq", x, q, q.size(1));
  for (const auto& x : {dk, dv}) check("dk and dv", x, q, k.size(1));
  TORCH_CHECK(stats.is_contiguous() && stats.scalar_type() == at::kFloat &&
                  stats.numel() == q.size(0) * q.size(2) * 2 * q.size(1),
              "stats expected (B, H, 2, N) float32, got ", stats.sizes(), " ", stats.scalar_type());
  if (q.scalar_type() == at::kFloat) {
    backward<float>(sizes, dout, q, k, v, out, stats, dq, dk, dv);
  } else {
    backward<at::BFloat16>(sizes, dout, q, k, v, out, stats, dq, dk, dv);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(hsta_fast, CPU, m) {
  m.impl("space_time_attention_fwd", space_time_attention_fwd);
  m.impl("space_time_attention_bwd", space_time_attention_bwd);
}

}  // namespace hsta_fast
