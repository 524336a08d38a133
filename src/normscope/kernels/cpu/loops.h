// Loops over rows of values that lie side by side, for one dtype, activation and form.
//
// Coefficients are one for each row (channels_first) or one for each value (channels_last).
#pragma once

#include "values.h"

namespace normscope {

constexpr int ROWS = 8;      // that a loop takes at most
constexpr int TOGETHER = 4;  // rows that are mapped together where coefficients differ in a row

// The tensors of a call. Rows begin at the same places in all of them.
template <class T>
struct Data {
  const T *x, *dy, *residual;
  T *out, *dresidual;
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

// Values that are summed in float32. Across such parts sums are float64.
constexpr int PART = 128;

// f(first, size) over n values: all, or TILE at a time, which the compiler then knows.
template <class T, class F>
inline void in_tiles(int64_t n, F f) {
  int64_t i = 0;
  if constexpr (!std::is_same_v<T, Wide<T>>) {
    for (; i + TILE <= n; i += TILE) f(i, std::integral_constant<int64_t, TILE>());
  }
  if (i < n) f(i, n - i);
}
template <class F>
inline void in_parts(int64_t n, F f) {
  for (int64_t i = 0; i < n; i += PART) f(i, std::min<int64_t>(PART, n - i));
}

// f(first row, how many) over some rows: Together, which share what is read of the tables, then
// those that remain.
template <int Together, class F>
inline void in_groups(int rows, F f) {
  int r = 0;
  for (; r + Together <= rows; r += Together) f(r, std::integral_constant<int, Together>());
  for (; r < rows; ++r) f(r, std::integral_constant<int, 1>());
}

// What the activation gets.
template <bool Added, class W>
inline W argument(W d, W a, W b, const W* added, int64_t i) {
  if constexpr (Added) return d * a + b + added[i];
  return d * a + b;
}

// So many values side by side, which are added as a tree: the same bits on every processor. Left to
// a reduction of the compiler, they are added one after the other.
constexpr int LANES = 16;
template <class P, int N>
struct Side {
  typedef P Vector __attribute__((vector_size(N * sizeof(P))));
};
template <class P, int N>
inline P total(const typename Side<P, N>::Vector& v) {
  if constexpr (N == 2) return v[0] + v[1];
  if constexpr (N > 2) {
    typename Side<P, N / 2>::Vector halves[2];
    std::memcpy(halves, &v, sizeof v);
    return total<P, N / 2>(halves[0] + halves[1]);
  }
}

// Sums of d = x - m and of its square; in backward of g and of g d.
//
// In a function of its own: inlined beside a buffer, GCC leaves the loop with a branch per value.
template <bool Backward, Act A, bool Added, class P, class W>
__attribute__((noinline)) void add_row(const W* x, const W* dy, const W* added, int64_t n, P m,
                                       P a, P b, double& s, double& q) {
  const auto at = [&](int64_t i, P& g, P& product) {
    const P d = P(x[i]) - m;
    g = d;
    if constexpr (Backward) g = through<A>(dy[i], argument<Added>(d, a, b, added, i));
    product = g * d;
  };
  typename Side<P, LANES>::Vector sums[2]{}, more[2];
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    alignas(64) P values[2][LANES];
#pragma omp simd
    for (int l = 0; l < LANES; ++l) at(i + l, values[0][l], values[1][l]);
    std::memcpy(more, values, sizeof more);
    for (int k = 0; k < 2; ++k) sums[k] += more[k];
  }
  P rest = 0, rest_of_products = 0;
  for (; i < n; ++i) {
    P g, product;
    at(i, g, product);
    rest += g;
    rest_of_products += product;
  }
  s += total<P, LANES>(sums[0]) + rest;
  q += total<P, LANES>(sums[1]) + rest_of_products;
}

// The same of R rows, of each value's column.
template <int R, bool Backward, Act A, bool Added, class P, class T, class W = Wide<T>>
void add_columns(const Data<T>& data, const int64_t* starts, int64_t n, const Coefficients<W>& by,
                 double* __restrict s, double* __restrict q) {
  in_tiles<T>(n, [&](int64_t at, auto size) {
    Tile<T, TILE> in[R], from[R], beside[R];
    const W *x[R], *dy[R], *added[R];
    for (int r = 0; r < R; ++r) {
      x[r] = in[r].read(data.x + starts[r] + at, size);
      if constexpr (Backward) dy[r] = from[r].read(data.dy + starts[r] + at, size);
      if constexpr (Added) added[r] = beside[r].read(data.residual + starts[r] + at, size);
    }
    const W *m = by.m + at, *a = by.a + at, *b = by.b + at;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      P part = 0, product = 0;
      for (int r = 0; r < R; ++r) {
        const P d = P(x[r][i]) - P(m[i]);
        P g = d;
        if constexpr (Backward) {
          g = through<A>(dy[r][i], argument<Added>(d, a[i], b[i], added[r], i));
        }
        part += g;
        product += g * d;
      }
      s[at + i] += part;
      q[at + i] += product;
    }
  });
}

template <bool Backward, Act A, bool Added, bool PerValue, class P, class T, class W = Wide<T>>
void sums(const Data<T>& data, const int64_t* starts, int rows, int64_t n,
          const Coefficients<W>& by, double* s, double* q) {
  if constexpr (PerValue) {
    return in_groups<ROWS>(rows, [&](int r, auto together) {
      add_columns<together, Backward, A, Added, P>(data, starts + r, n, by, s, q);
    });
  }
  for (int r = 0; r < rows; ++r) {
    in_parts(n, [&](int64_t first, int64_t size) {
      const int64_t at = starts[r] + first;
      Tile<T, PART> in, from, beside;
      const W *x = in.read(data.x + at, size), *dy = nullptr, *added = nullptr;
      if constexpr (Backward) dy = from.read(data.dy + at, size);
      if constexpr (Added) added = beside.read(data.residual + at, size);
      const P m = by.m[r], a = Backward ? by.a[r] : 0, b = Backward ? by.b[r] : 0;
      add_row<Backward, A, Added>(x, dy, added, size, m, a, b, s[r], q[r]);
    });
  }
}

// out = act(u); in backward out = dx and dresidual = g.
template <bool Backward, Act A, bool Added, bool PerValue, class T, class W = Wide<T>>
void map(const Data<T>& data, const int64_t* starts, int rows, int64_t n,
         const Coefficients<W>& by, double*, double*) {
  in_groups<PerValue ? TOGETHER : 1>(rows, [&](int row, auto together) {
    in_tiles<T>(n, [&](int64_t first, auto size) {
      constexpr int R = together;
      constexpr bool Two = Backward && Added;
      Tile<T, TILE> in[R], from[R], beside[R], results[R], results_beside[R];
      const W *x[R], *dy[R], *added[R];
      W *into[R], *gs[R];
      for (int r = 0; r < R; ++r) {
        const int64_t at = starts[row + r] + first;
        x[r] = in[r].read(data.x + at, size);
        into[r] = results[r].place(data.out + at);
        if constexpr (Backward) dy[r] = from[r].read(data.dy + at, size);
        if constexpr (Added) added[r] = beside[r].read(data.residual + at, size);
        if constexpr (Two) gs[r] = results_beside[r].place(data.dresidual + at);
      }
      const int64_t c = PerValue ? first : row;
      const W *ms = by.m + c, *as = by.a + c, *bs = by.b + c, *gbs = by.gb + c, *gcs = by.gc + c;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        const int64_t j = PerValue ? i : 0;
        const W m = ms[j], a = as[j], b = bs[j];
        W g[R], out[R];  // all are read before any is written
        for (int r = 0; r < R; ++r) {
          const W d = x[r][i] - m, u = argument<Added>(d, a, b, added[r], i);
          if constexpr (Backward) {
            g[r] = through<A>(dy[r][i], u);
            out[r] = g[r] * a + d * gbs[j] + gcs[j];
          } else {
            out[r] = activate<A>(u);
          }
        }
        for (int r = 0; r < R; ++r) {
          into[r][i] = out[r];
          if constexpr (Two) gs[r][i] = g[r];
        }
      }
      for (int r = 0; r < R; ++r) {
        const int64_t at = starts[row + r] + first;
        results[r].write(size, data.out + at);
        if constexpr (Two) results_beside[r].write(size, data.dresidual + at);
      }
    });
  });
}

template <bool PerValue, class T, Act A, bool Added>
constexpr Loops<T> loops_of{sums<false, Act::none, false, PerValue, Wide<T>, T>,
                            sums<false, Act::none, false, PerValue, double, T>,
                            map<false, A, Added, PerValue, T>,
                            sums<true, A, Added, PerValue, Wide<T>, T>,
                            map<true, A, Added, PerValue, T>};

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
