// Attention pooling on the CPU: pooled_r = sum_j softmax_j(u_r . z_j) z_j with z the layer-normed rows, and its backward.
//
// One pass over the tokens in each direction, TILE rows at a time. A row is centred once, into a tile that stays in
// the cache for the scores and the weighted sum. It is not divided by its deviation: scores and weights are. N is
// split into segments whose number depends only on N, so the order of the sums is the same for any number of threads.
//
// B batch, N tokens, C width, R queries; columns padded to whole blocks, queries to a multiple of QUERIES, by zeros.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "vectors.h"

namespace hsta_fast {
namespace {

constexpr int64_t SEGMENT = 160;  // tokens, at least

// The sizes of one call. Rows of `queries` and of `gradients` have `columns` elements, zeros from C on.
template <typename T>
struct Shape {
  int64_t C, columns, queries;
  bool normalize;
  double eps;
};

// Copies rows [0, count) of x into the tile, minus their mean if `normalize`. Computes mean (relative to the row's
// first element) and rstd unless `known`. Pads the tile with zeros to a whole block of rows.
template <typename T>
void centre(const Shape<T>& shape, const T* x, int64_t stride, int64_t count, bool known, T* mean, T* rstd, T* tile) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t C = shape.C, whole = C / L * L;
  for (int64_t j = 0; j < count; ++j, x += stride, tile += shape.columns) {
    std::fill(tile + whole, tile + shape.columns, T(0));
    const T first = shape.normalize ? x[0] : T(0);
    const Vector<T> pivot = first - Vector<T>{};
    if (shape.normalize && !known) {
      Vector<T> sums[BLOCK] = {};
      int64_t c = 0;
      for (; c + BLOCK * L <= whole; c += BLOCK * L) {
        for (int64_t i = 0; i < BLOCK; ++i) sums[i] += load(x + c + i * L) - pivot;
      }
      for (; c < whole; c += L) sums[0] += load(x + c) - pivot;
      T total = sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
      for (; c < C; ++c) total += x[c] - first;
      mean[j] = total / static_cast<T>(C);
    }
    const T rest = shape.normalize ? mean[j] : T(0);
    const Vector<T> away = rest - Vector<T>{};
    Vector<T> squares[2] = {};
    int64_t c = 0;
    for (; c + 2 * L <= whole; c += 2 * L) {
      for (int64_t i = 0; i < 2; ++i) {
        const Vector<T> d = (load(x + c + i * L) - pivot) - away;
        store(tile + c + i * L, d);
        squares[i] += d * d;
      }
    }
    for (; c < whole; c += L) {
      const Vector<T> d = (load(x + c) - pivot) - away;
      store(tile + c, d);
      squares[0] += d * d;
    }
    T square = sum<T>(squares[0] + squares[1]);
    for (; c < C; ++c) {
      tile[c] = (x[c] - first) - rest;
      square += tile[c] * tile[c];
    }
    if (shape.normalize && !known) rstd[j] = T(1) / std::sqrt(square / static_cast<T>(C) + static_cast<T>(shape.eps));
  }
  std::fill(tile, tile + (padded(count, BLOCK) - count) * shape.columns, T(0));
}

// The rows of each sample in segments of tiles. The extra row, if any, comes first in the first segment.
struct Segments {
  int64_t B, N, extra, number, length;  // of each sample: `number` segments of `length` tokens

  // The sums of all segments, R rows of C each, take at most 4 R N numbers. An even number of segments keeps two
  // threads equally busy.
  Segments(int64_t B, int64_t N, int64_t C, bool extra) : B(B), N(N), extra(extra) {
    const int64_t most = std::min(4 * N / C, (N + SEGMENT - 1) / SEGMENT);
    number = std::max(most / 2 * 2, int64_t{1});
    length = std::max(padded((N + number - 1) / number, TILE), TILE);
    number = std::max((N + length - 1) / length, int64_t{1});
  }

  // run(sample, segment)
  template <typename Run>
  void parallel(const Run& run) const {
    at::parallel_for(0, B * number, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) run(i / number, i % number);
    });
  }

  // run(first row, its token or EXTRA, number of rows); row numbers include the extra row.
  static constexpr int64_t EXTRA = -1;
  template <typename Run>
  void tiles(int64_t segment, const Run& run) const {
    if (extra && segment == 0) run(int64_t{0}, EXTRA, int64_t{1});
    const int64_t end = std::min((segment + 1) * length, N);
    for (int64_t token = segment * length; token < end; token += TILE) {
      run(token + extra, token, std::min(TILE, end - token));
    }
  }
};

// Copies x (B, R, C), any strides, into zeros `room` (B, padded R, padded C), minus the rows' means if `normalize`.
at::Tensor place(const at::Tensor& x, bool normalize, const at::Tensor& room) {
  const at::Tensor out = room.narrow(1, 0, x.size(1)).narrow(2, 0, x.size(2));
  out.copy_(x);
  if (normalize) out.sub_(x.mean(-1, true));
  return out;
}

template <typename T>
T* data(const std::optional<at::Tensor>& x) {
  return x.has_value() ? x->data_ptr<T>() : nullptr;
}

void check(const at::Tensor& query, const at::Tensor& tokens, const std::optional<at::Tensor>& extra) {
  TORCH_CHECK(query.dim() == 3 && tokens.dim() == 3 && query.size(0) == tokens.size(0) &&
                  query.size(2) == tokens.size(2) && query.scalar_type() == tokens.scalar_type(),
              "query and tokens expected shapes (B, R, C), (B, N, C) and one dtype, got ",
              query.sizes(), " ",
              query.scalar_type(), " and ", tokens.sizes(), " ", tokens.scalar_type());
  TORCH_CHECK(tokens.stride(2) == 1 || tokens.size(2) == 1, "tokens expected last stride 1, got ", tokens.strides());
  TORCH_CHECK(query.size(1) > 0 && query.size(2) > 0, "query expected elements, got ", query.sizes());
  TORCH_CHECK(tokens.size(1) > 0 || extra.has_value(),
              "tokens expected at least one row, or extra, got N = 0 and no extra");
  if (extra.has_value()) {
    TORCH_CHECK(extra->dim() == 2 && extra->size(0) == query.size(0) && extra->size(1) == query.size(2) &&
                    extra->scalar_type() == query.scalar_type() && (extra->stride(1) == 1 || extra->size(1) == 1),
                "extra expected shape (B, C), the query's dtype and last stride 1, got ", extra->sizes(), " ",
                extra->scalar_type(), " ", extra->strides());
  }
}

// The address of a token's row, or of the extra row.
template <typename T>
const T* row_at(const at::Tensor& tokens, const std::optional<at::Tensor>& extra, int64_t b, int64_t token) {
  return token == Segments::EXTRA ? extra->const_data_ptr<T>() + b * extra->stride(0)
                                  : tokens.const_data_ptr<T>() + b * tokens.stride(0) + token * tokens.stride(1);
}

template <typename T>
void forward(const Shape<T>& shape, const Segments& segments, const at::Tensor& u, const at::Tensor& tokens,
             const std::optional<at::Tensor>& extra, int64_t R, T* mean, T* rstd, T* scores, T* pooled, T* lse) {
  const int64_t columns = shape.columns, queries = shape.queries, M = segments.N + segments.extra;
  at::Tensor partial = at::empty({segments.B * segments.number, queries, columns}, u.options());
  at::Tensor ends = at::empty({2, segments.B * segments.number, queries}, u.options());
  T* sums = partial.data_ptr<T>();
  T* tops = ends.data_ptr<T>();
  T* totals = tops + segments.B * segments.number * queries;
  segments.parallel([&](int64_t b, int64_t segment) {
    const T* query = u.const_data_ptr<T>() + b * queries * columns;
    const int64_t place = b * segments.number + segment;
    T *acc = sums + place * queries * columns, *top = tops + place * queries, *total = totals + place * queries;
    std::fill(top, top + queries, -std::numeric_limits<T>::infinity());
    std::fill(total, total + queries, T(0));
    at::Tensor room = at::empty({TILE * columns + queries * (TILE + 1)}, u.options());
    T *tile = room.data_ptr<T>(), *p = tile + TILE * columns, *factor = p + queries * TILE;
    T m[TILE], r[TILE];
    std::fill(r, r + TILE, T(1));
    bool first = true;
    segments.tiles(segment, [&](int64_t row, int64_t token, int64_t rows) {
      centre(shape, row_at<T>(tokens, extra, b, token), tokens.stride(1), rows, false, m, r, tile);
      if (shape.normalize) {
        std::copy(m, m + rows, mean + b * M + row);
        std::copy(r, r + rows, rstd + b * M + row);
      }
      products(query, queries, tile, rows, columns, p);
      for (int64_t q = 0; q < queries; ++q) {
        T* s = p + q * TILE;
        T highest = top[q];
        for (int64_t i = 0; i < rows; ++i) s[i] *= r[i];
        if (scores != nullptr && q < R) std::copy(s, s + rows, scores + (b * R + q) * M + row);
        for (int64_t i = 0; i < rows; ++i) highest = s[i] > highest ? s[i] : highest;
        const T base = highest == -std::numeric_limits<T>::infinity() ? T(0) : highest;
        factor[q] = top[q] - base;
        top[q] = highest;
        for (int64_t i = 0; i < rows; ++i) s[i] -= base;
        std::fill(s + rows, s + TILE, -std::numeric_limits<T>::infinity());
      }
      exponentials(p, queries * TILE);
      exponentials(factor, queries);
      for (int64_t q = 0; q < queries; ++q) {
        T weight = 0;
        for (int64_t i = 0; i < TILE; ++i) weight += p[q * TILE + i];
        total[q] = total[q] * factor[q] + weight;
        for (int64_t i = 0; i < TILE; ++i) p[q * TILE + i] *= r[i];
      }
      accumulate(p, queries, tile, rows, columns, first ? nullptr : factor, acc);
      first = false;
    });
  });
  at::parallel_for(0, segments.B * R, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / R, q = i % R, first = b * segments.number;
      T top = -std::numeric_limits<T>::infinity(), total = 0;
      for (int64_t k = 0; k < segments.number; ++k) top = std::max(top, tops[(first + k) * queries + q]);
      if (top == -std::numeric_limits<T>::infinity()) top = 0;
      T* out = pooled + i * shape.C;
      std::fill(out, out + shape.C, T(0));
      for (int64_t k = 0; k < segments.number; ++k) {
        const int64_t at = (first + k) * queries + q;
        const T weight = std::exp(tops[at] - top);
        total += weight * totals[at];
        for (int64_t c = 0; c < shape.C; ++c) out[c] += weight * sums[at * columns + c];
      }
      for (int64_t c = 0; c < shape.C; ++c) out[c] /= total;
      lse[i] = top + std::log(total);
    }
  });
}

// What is added to the gradients of the rows, and where they are written; null for none.
template <typename T>
struct Gradients {
  const T* base;
  T *rows, *extra;
  int64_t base_strides[2], strides[2];
};

// to[c..] = base[c..] + (dx - along tile[c..]), of a row of C columns.
template <typename T>
void write(Vector<T> dx, T along, const T* tile, const T* base, int64_t c, int64_t C, T* to) {
  constexpr int64_t L = Lanes<T>::count;
  dx -= along * load(tile + c);
  if (c + L <= C) {
    store(to + c, base == nullptr ? dx : load(base + c) + dx);
  } else {
    for (int64_t i = 0; c + i < C; ++i) to[c + i] = base == nullptr ? dx[i] : base[c + i] + dx[i];
  }
}

// `both` holds the queries of a sample, then the gradients of its pooled rows.
template <typename T>
void backward(const Shape<T>& shape, const Segments& segments, const at::Tensor& both, const at::Tensor& tokens,
              const std::optional<at::Tensor>& extra, int64_t R, const T* mean, const T* rstd, const T* lse,
              const T* delta, const Gradients<T>& gradients, T* dquery) {
  const int64_t C = shape.C, columns = shape.columns, queries = shape.queries, M = segments.N + segments.extra;
  at::Tensor partial = at::empty({segments.B * segments.number, queries, columns}, both.options());
  T* sums = partial.data_ptr<T>();
  segments.parallel([&](int64_t b, int64_t segment) {
    const T* query = both.const_data_ptr<T>() + b * 2 * queries * columns;
    T* acc = sums + (b * segments.number + segment) * queries * columns;
    at::Tensor room = at::empty({TILE * columns + queries * (3 * TILE + 1)}, both.options());
    T *tile = room.data_ptr<T>(), *s = tile + TILE * columns;
    T *t = s + queries * TILE, *p = t + queries * TILE, *ones = p + queries * TILE;
    std::fill(ones, ones + queries, T(1));
    T m[TILE], r[TILE], along[TILE];
    std::fill(m, m + TILE, T(0));
    std::fill(r, r + TILE, T(1));
    bool first = true;
    segments.tiles(segment, [&](int64_t row, int64_t token, int64_t rows) {
      if (shape.normalize) {
        std::copy_n(mean + b * M + row, rows, m);
        std::copy_n(rstd + b * M + row, rows, r);
      }
      centre(shape, row_at<T>(tokens, extra, b, token), tokens.stride(1), rows, true, m, r, tile);
      products(query, 2 * queries, tile, rows, columns, s);  // and t, which follows
      for (int64_t q = 0; q < queries; ++q) {
        for (int64_t i = 0; i < TILE; ++i) {
          const bool counts = q < R && i < rows;
          const int64_t at = q * TILE + i;
          s[at] = counts ? s[at] * r[i] : T(0);
          t[at] = counts ? t[at] * r[i] : T(0);
          p[at] = counts ? s[at] - lse[b * R + q] : -std::numeric_limits<T>::infinity();
        }
      }
      exponentials(p, queries * TILE);
      std::fill(along, along + TILE, T(0));
      for (int64_t q = 0; q < queries; ++q) {
        const T balance = q < R ? delta[b * R + q] : T(0);
        for (int64_t i = 0; i < TILE; ++i) {
          const int64_t at = q * TILE + i;
          const T ds = p[at] * (t[at] - balance);
          along[i] += p[at] * t[at] + ds * s[at];
          s[at] = ds * r[i];     // what d counts in dquery, and the query in dx,
          t[at] = p[at] * r[i];  // and the gradient of pooled in dx
        }
      }
      accumulate(s, queries, tile, rows, columns, first ? nullptr : ones, acc);
      first = false;
      const bool is_extra = token == Segments::EXTRA;
      const T* base = is_extra || gradients.base == nullptr
                          ? nullptr
                          : gradients.base + b * gradients.base_strides[0] + token * gradients.base_strides[1];
      T* to = is_extra                    ? gradients.extra + b * C
              : gradients.rows == nullptr ? nullptr
                                          : gradients.rows + b * gradients.strides[0] + token * gradients.strides[1];
      if (to == nullptr) return;
      for (int64_t i = 0; i < rows; ++i) {
        along[i] = shape.normalize ? along[i] * r[i] * r[i] / static_cast<T>(C) : T(0);
      }
      weighted_sums(
          s, int64_t{1}, TILE, padded(rows, QUERIES), query, 2 * queries, columns,
          [](int64_t, int64_t) { return Vector<T>{}; },
          [&](int64_t i, int64_t c, Vector<T> dx) {
            if (i >= rows || c >= C) return;
            write(dx, along[i], tile + i * columns, base == nullptr ? nullptr : base + i * gradients.base_strides[1], c,
                  C, to + i * gradients.strides[1]);
          });
    });
  });
  at::parallel_for(0, segments.B * R, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* out = dquery + i * C;
      std::fill(out, out + C, T(0));
      for (int64_t k = 0; k < segments.number; ++k) {
        const T* acc = sums + ((i / R * segments.number + k) * queries + i % R) * columns;
        for (int64_t c = 0; c < C; ++c) out[c] += acc[c];
      }
    }
  });
}

template <typename T>
Shape<T> shape_of(const at::Tensor& query, bool normalize, double eps) {
  return {query.size(2), padded(query.size(2), BLOCK * Lanes<T>::count), padded(query.size(1), QUERIES), normalize,
          eps};
}

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Results attention_pool_fwd(const at::Tensor& query, const at::Tensor& tokens, const std::optional<at::Tensor>& extra,
                           bool normalize, double eps, const std::optional<at::Tensor>& scores) {
  check(query, tokens, extra);
  const int64_t B = query.size(0), R = query.size(1), rows = tokens.size(1) + extra.has_value();
  at::Tensor pooled = at::empty({B, R, query.size(2)}, query.options()), lse = at::empty({B, R}, query.options());
  at::Tensor mean = at::empty({B, normalize ? rows : 0}, query.options()), rstd = at::empty_like(mean);
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "attention_pool_fwd", [&] {
    const auto shape = shape_of<scalar_t>(query, normalize, eps);
    const at::Tensor u = at::zeros({B, shape.queries, shape.columns}, query.options());
    place(query, normalize, u);
    forward(shape, Segments(B, tokens.size(1), query.size(2), extra.has_value()), u, tokens, extra, R,
            mean.data_ptr<scalar_t>(), rstd.data_ptr<scalar_t>(), data<scalar_t>(scores),
            pooled.data_ptr<scalar_t>(), lse.data_ptr<scalar_t>());
  });
  return {pooled, lse, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor> attention_pool_bwd(
    const at::Tensor& dpooled, const at::Tensor& query, const at::Tensor& tokens,
    const std::optional<at::Tensor>& extra, bool normalize, double eps, const at::Tensor& pooled,
    const at::Tensor& lse, const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& rstd,
    const std::optional<at::Tensor>& dtokens, const std::optional<at::Tensor>& accumulate) {
  check(query, tokens, extra);
  for (const auto& x : {dtokens, accumulate}) {
    TORCH_CHECK(!x.has_value() || (x->sizes() == tokens.sizes() && x->scalar_type() == tokens.scalar_type() &&
                                   (x->stride(2) == 1 || x->size(2) == 1)),
                "dtokens and accumulate expected the tokens' shape and dtype, and last stride 1, got ", x->sizes(), " ",
                x->scalar_type(), " ", x->strides());
  }
  const int64_t B = query.size(0), R = query.size(1), C = query.size(2);
  at::Tensor dquery = at::empty({B, R, C}, query.options());
  at::Tensor dextra = at::empty({extra.has_value() ? B : 0, C}, query.options());
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "attention_pool_bwd", [&] {
    const auto shape = shape_of<scalar_t>(query, normalize, eps);
    const at::Tensor both = at::zeros({B, 2 * shape.queries, shape.columns}, query.options());
    place(query, normalize, both.narrow(1, 0, shape.queries));
    const at::Tensor delta = place(dpooled, normalize, both.narrow(1, shape.queries, shape.queries)).mul(pooled).sum(-1);
    Gradients<scalar_t> gradients{data<scalar_t>(accumulate), data<scalar_t>(dtokens), dextra.data_ptr<scalar_t>(),
                                  {}, {}};
    for (int i = 0; i < 2; ++i) {
      if (accumulate.has_value()) gradients.base_strides[i] = accumulate->stride(i);
      if (dtokens.has_value()) gradients.strides[i] = dtokens->stride(i);
    }
    backward(shape, Segments(B, tokens.size(1), C, extra.has_value()), both, tokens, extra, R, data<scalar_t>(mean),
             data<scalar_t>(rstd), lse.const_data_ptr<scalar_t>(), delta.const_data_ptr<scalar_t>(), gradients,
             dquery.data_ptr<scalar_t>());
  });
  return {dquery, dextra};
}

}  // namespace

TORCH_LIBRARY_IMPL(hsta_fast, CPU, m) {
  m.impl("attention_pool_fwd", attention_pool_fwd);
  m.impl("attention_pool_bwd", attention_pool_bwd);
}

}  // namespace hsta_fast
