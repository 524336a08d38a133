// Loops over rows of values that lie side by side, for one dtype, activation and form.
//
// Coefficients are one for each row (channels_first) or one for each value (channels_last).
#pragma once

#include "values.h"

namespace normscope {

constexpr int ROWS = 8;  // that a loop takes at a time

// The tensors of a call. Rows begin at the same places in all of them.
template <class T>
struct Data {
  const T *x, *dy, *residual;
  T *out, *dresidual;
  bool streams;  // results are written past the caches
};

// u = (x - m) a + b, and in backward dx = g a + (x - m) gb + gc.
template <class W>
struct Coefficients {
  const W *m, *a, *b, *gb, *gc;
};

// A loop over n values of each of some rows, which begin at `starts`. Sums are added to s and q.
template <class T>
using Loop = void (*)(const Data<T>& data, const int64_t* starts, int rows, int64_t n,
                      const Coefficients<Wide<T>>& by, double* s, double* q);

template <class T>
struct Loops {
  Loop<T> sums;           // of x - m and of its square
  Loop<T> exact_sums;     // the same, all in float64
  Loop<T> map;            // out = act(u + residual)
  Loop<T> gradient_sums;  // of g = dy act'(u + residual) and of g (x - m)
  Loop<T> gradient_map;   // out = dx, dresidual = g
};

// f(row, first, size) over all values, at most TILE at a time, a known number where that is so
// many. Streamed tiles begin with a line of the cache.
template <class T, class F>
inline void in_tiles(const Data<T>& data, const int64_t* starts, int rows, int64_t n, F f) {
  for (int r = 0; r < rows; ++r) {
    int64_t at = 0;
    if (data.streams) {
      const auto place = reinterpret_cast<uintptr_t>(data.out + starts[r]);
      at = std::min<int64_t>(n, -place % 64 / sizeof(T));
      if (at > 0) f(r, int64_t(0), at);
    }
    for (; at + TILE <= n; at += TILE) f(r, at, std::integral_constant<int64_t, TILE>());
    if (at < n) f(r, at, n - at);
  }
}

// f(first, size) over n values, PART at a time.
template <class F>
inline void in_parts(int64_t n, F f) {
  for (int64_t i = 0; i < n; i += PART) f(i, std::min<int64_t>(PART, n - i));
}

// In functions of their own: inlined beside a buffer, GCC leaves the loop with a branch per value.
template <class P, class W>
__attribute__((noinline)) void add_sums(const W* x, int64_t n, P m, double& s, double& q) {
  P part = 0, square = 0;
#pragma omp simd reduction(+ : part, square)
  for (int64_t i = 0; i < n; ++i) {
    const P d = P(x[i]) - m;
    part += d;
    square += d * d;
  }
  s += part;
  q += square;
}

// Of R rows at a time, so that s and q are seldom read.
template <int R, class P, class T, class W = Wide<T>>
void add_column_sums(const T* x, const int64_t* starts, int64_t n, const W* m, double* __restrict s,
                     double* __restrict q) {
  for (int64_t at = 0; at < n; at += PART) {
    const int64_t size = std::min<int64_t>(PART, n - at);
    Tile<T, PART> tiles[R];
    const W* xs[R];
    for (int r = 0; r < R; ++r) xs[r] = tiles[r].read(x + starts[r] + at, size);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      P part = 0, square = 0;
      for (int r = 0; r < R; ++r) {
        const P d = P(xs[r][i]) - P(m[at + i]);
        part += d;
        square += d * d;
      }
      s[at + i] += part;
      q[at + i] += square;
    }
  }
}

template <bool PerValue, class P, class T, class W = Wide<T>>
void sums(const Data<T>& data, const int64_t* starts, int rows, int64_t n,
          const Coefficients<W>& by, double* s, double* q) {
  int r = 0;
  if constexpr (PerValue) {
    for (; r + ROWS <= rows; r += ROWS) {
      add_column_sums<ROWS, P>(data.x, starts + r, n, by.m, s, q);
    }
    for (; r < rows; ++r) add_column_sums<1, P>(data.x, starts + r, n, by.m, s, q);
    return;
  }
  for (; r < rows; ++r) {
    in_parts(n, [&](int64_t at, int64_t size) {
      Tile<T, PART> tile;
      add_sums<P>(tile.read(data.x + starts[r] + at, size), size, P(by.m[r]), s[r], q[r]);
    });
  }
}

template <Act A, bool Added, bool PerValue, class T, class W = Wide<T>>
void map(const Data<T>& data, const int64_t* starts, int rows, int64_t n,
         const Coefficients<W>& by, double*, double*) {
  in_tiles(data, starts, rows, n, [&](int r, int64_t first, auto size) {
    const int64_t at = starts[r] + first, c = PerValue ? first : r;
    Tile<T, TILE> in, beside;
    Results<T> results;
    const W *x = in.read(data.x + at, size), *added = nullptr;
    if constexpr (Added) added = beside.read(data.residual + at, size);
    const W *m = by.m + c, *a = by.a + c, *b = by.b + c;
    W* __restrict into = results.place(data.out + at, data.streams);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const int64_t j = PerValue ? i : 0;
      const W u = (x[i] - m[j]) * a[j] + b[j];
      into[i] = activate<A>(Added ? u + added[i] : u);
    }
    results.write(size, data.out + at, data.streams);
  });
}

template <Act A, bool Added, class W>
__attribute__((noinline)) void add_gradients(const W* x, const W* dy, const W* residual, int64_t n,
                                             W m, W a, W b, double& s, double& q) {
  W part = 0, product = 0;
#pragma omp simd reduction(+ : part, product)
  for (int64_t i = 0; i < n; ++i) {
    const W d = x[i] - m, u = d * a + b;
    const W g = through<A>(dy[i], Added ? u + residual[i] : u);
    part += g;
    product += g * d;
  }
  s += part;
  q += product;
}

template <int R, Act A, bool Added, class T, class W = Wide<T>>
void add_column_gradients(const Data<T>& data, const int64_t* starts, int64_t n,
                          const Coefficients<W>& by, double* __restrict s, double* __restrict q) {
  for (int64_t at = 0; at < n; at += TILE) {
    const int64_t size = std::min<int64_t>(TILE, n - at);
    Tile<T, TILE> in[R], from[R], beside[R];
    const W *x[R], *dy[R], *added[R];
    for (int r = 0; r < R; ++r) {
      x[r] = in[r].read(data.x + starts[r] + at, size);
      dy[r] = from[r].read(data.dy + starts[r] + at, size);
      added[r] = Added ? beside[r].read(data.residual + starts[r] + at, size) : nullptr;
    }
    const W *m = by.m + at, *a = by.a + at, *b = by.b + at;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      W part = 0, product = 0;
      for (int r = 0; r < R; ++r) {
        const W d = x[r][i] - m[i], u = d * a[i] + b[i];
        const W g = through<A>(dy[r][i], Added ? u + added[r][i] : u);
        part += g;
        product += g * d;
      }
      s[at + i] += part;
      q[at + i] += product;
    }
  }
}

template <Act A, bool Added, bool PerValue, class T, class W = Wide<T>>
void gradient_sums(const Data<T>& data, const int64_t* starts, int rows, int64_t n,
                   const Coefficients<W>& by, double* s, double* q) {
  int r = 0;
  if constexpr (PerValue) {
    for (; r + ROWS / 2 <= rows; r += ROWS / 2) {
      add_column_gradients<ROWS / 2, A, Added>(data, starts + r, n, by, s, q);
    }
    for (; r < rows; ++r) add_column_gradients<1, A, Added>(data, starts + r, n, by, s, q);
    return;
  }
  for (; r < rows; ++r) {
    in_parts(n, [&](int64_t first, int64_t size) {
      const int64_t at = starts[r] + first;
      Tile<T, PART> in, from, beside;
      const W *x = in.read(data.x + at, size), *dy = from.read(data.dy + at, size);
      const W* added = nullptr;
      if constexpr (Added) added = beside.read(data.residual + at, size);
      add_gradients<A, Added>(x, dy, added, size, by.m[r], by.a[r], by.b[r], s[r], q[r]);
    });
  }
}

template <Act A, bool Added, bool PerValue, class T, class W = Wide<T>>
void gradient_map(const Data<T>& data, const int64_t* starts, int rows, int64_t n,
                  const Coefficients<W>& by, double*, double*) {
  in_tiles(data, starts, rows, n, [&](int r, int64_t first, auto size) {
    const int64_t at = starts[r] + first, c = PerValue ? first : r;
    Tile<T, TILE> in, from, beside;
    Results<T> results, results_beside;
    const W *x = in.read(data.x + at, size), *dy = from.read(data.dy + at, size);
    const W *m = by.m + c, *a = by.a + c, *b = by.b + c, *gb = by.gb + c, *gc = by.gc + c;
    const W* added = nullptr;
    W *__restrict into = results.place(data.out + at, data.streams), *__restrict gs = nullptr;
    if constexpr (Added) {
      added = beside.read(data.residual + at, size);
      gs = results_beside.place(data.dresidual + at, data.streams);
    }
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const int64_t j = PerValue ? i : 0;
      const W d = x[i] - m[j], u = d * a[j] + b[j];
      const W g = through<A>(dy[i], Added ? u + added[i] : u);
      into[i] = g * a[j] + d * gb[j] + gc[j];
      if constexpr (Added) gs[i] = g;
    }
    results.write(size, data.out + at, data.streams);
    if constexpr (Added) results_beside.write(size, data.dresidual + at, data.streams);
  });
}

template <bool PerValue, class T, Act A, bool Added>
constexpr Loops<T> loops_of{sums<PerValue, Wide<T>, T>, sums<PerValue, double, T>,
                            map<A, Added, PerValue, T>, gradient_sums<A, Added, PerValue, T>,
                            gradient_map<A, Added, PerValue, T>};

template <bool PerValue, class T, Act A>
const Loops<T>& loops(bool added) {
  return added ? loops_of<PerValue, T, A, true> : loops_of<PerValue, T, A, false>;
}

template <bool PerValue, class T>
const Loops<T>& loops_for(Act act, bool added) {
  switch (act) {
    case Act::relu: return loops<PerValue, T, Act::relu>(added);
    case Act::leaky_relu: return loops<PerValue, T, Act::leaky_relu>(added);
    case Act::silu: return loops<PerValue, T, Act::silu>(added);
    default: return loops<PerValue, T, Act::none>(added);
  }
}

}  // namespace normscope
