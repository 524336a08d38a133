// Loops over values that lie side by side, for one dtype of arithmetic, activation and form.
//
// Coefficients are one number for all values (channels_first) or one for each (channels_last).
#pragma once

#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "call.h"

namespace normscope {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

// What single values are calculated in.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline void widen(const bf16* from, int64_t n, float* into) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = uint32_t(from[i].bits) << 16;
    std::memcpy(into + i, &bits, 4);
  }
}

#if defined(__F16C__)
inline float widened(fp16 value) { return _cvtsh_ss(value.bits); }
inline fp16 narrowed(float value) { return {_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)}; }
#else
inline float widened(fp16 value) { return c10::Half(value.bits, c10::Half::from_bits()); }
inline fp16 narrowed(float value) { return {c10::Half(value).x}; }
#endif

inline void widen(const fp16* from, int64_t n, float* into) {
  int64_t i = 0;
#if defined(__AVX512F__)  // as wide as the loops read: two stores do not serve one load in time
  for (; i + 16 <= n; i += 16) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    _mm512_storeu_ps(into + i, _mm512_cvtph_ps(half));
  }
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(into + i, _mm256_cvtph_ps(half));
  }
#endif
  for (; i < n; ++i) into[i] = widened(from[i]);
}

inline void narrow(const float* from, int64_t n, bf16* into) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest even
    into[i].bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);  // NaN stays
  }
}

inline void narrow(const float* from, int64_t n, fp16* into) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __m256i half =
        _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(into + i), half);
  }
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half =
        _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(into + i), half);
  }
#endif
  for (; i < n; ++i) into[i] = narrowed(from[i]);
}

// 16-bit values are converted so many at a time, beside the loop that reads them: whole rows
// would push each other out of the nearest cache.
constexpr int TILE = 64;   // where every value is written
constexpr int PART = 1024;  // where they are summed, as the end of a sum takes its time

// f(begin, size) over n values: all, or TILE at a time, which the compiler then knows.
template <class T, class F>
inline void in_tiles(int64_t n, F f) {
  int64_t i = 0;
  if constexpr (!std::is_same_v<T, Wide<T>>) {
    for (; i + TILE <= n; i += TILE) f(i, std::integral_constant<int64_t, TILE>());
  }
  if (i < n) f(i, n - i);
}
template <class T, class F>
inline void in_parts(int64_t n, F f) {
  const int64_t step = std::is_same_v<T, Wide<T>> ? n : PART;
  for (int64_t i = 0; i < n; i += step) f(i, std::min(step, n - i));
}

// Some values as they are calculated with: where they are, or in a buffer.
template <class T, int Size>
struct Tile {
  alignas(64) Wide<T> held[Size];
  const Wide<T>* read(const T* from, int64_t n) {
    widen(from, n, held);
    return held;
  }
  Wide<T>* place(T*) { return held; }
  void write(int64_t n, T* into) const { narrow(held, n, into); }
};
template <class W, int Size>
  requires std::is_same_v<W, Wide<W>>
struct Tile<W, Size> {
  static const W* read(const W* from, int64_t) { return from; }
  static W* place(W* into) { return into; }
  static void write(int64_t, W*) {}
};

// One value.
template <class T>
double number(const T* from) {
  Tile<T, 1> tile;
  return *tile.read(from, 1);
}

template <class T>
void store(double value, T* into) {
  Tile<T, 1> tile;
  *tile.place(into) = Wide<T>(value);
  tile.write(1, into);
}

// exp of a float32 to 2 ulp, clamped at -87, inf from 88.4 on; no call, so loops vectorise.
// Cody and Waite 1980: x = n log 2 + r, with log 2 in two parts, and a polynomial in r.
inline float exponential(float x) {
  x = x > -87.0f ? x : -87.0f;  // NaN too; it returns with the factor u
  x = x < 89.0f ? x : 89.0f;
  const float n = std::floor(x * 1.44269504f + 0.5f);
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.98756915e-4f;
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345191e-3f;
  p = p * r + 4.16657959e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 0.5f;
  const int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return ((p * r) * r + r + 1.0f) * power;
}
inline double exponential(double x) { return std::exp(x); }

template <Act A, class W>
inline W activate(W u) {
  if constexpr (A == Act::relu) return u <= 0 ? W(0) : u;  // so NaN passes
  if constexpr (A == Act::leaky_relu) return u > 0 ? u : u * W(0.01);
  if constexpr (A == Act::silu) return u * (W(1) / (W(1) + exponential(-u)));
  return u;
}

// g times the derivative of the activation at u.
template <Act A, class W>
inline W through(W g, W u) {
  if constexpr (A == Act::relu) return u <= 0 ? W(0) : g;
  if constexpr (A == Act::leaky_relu) return u > 0 ? g : g * W(0.01);
  if constexpr (A == Act::silu) {
    const W s = W(1) / (W(1) + exponential(-u));
    return g * (s * (W(1) + u * (W(1) - s)));
  }
  return g;
}

// u = (x - m) a + b, and in backward dx = g a + (x - m) gb + gc.
template <class W>
struct Coefficients {
  const W *m, *a, *b, *gb, *gc;
};

// One coefficient for all values, or the i-th.
template <bool PerValue, class W>
struct Number {
  const W* table;
  W first;
  explicit Number(const W* t) : table(t), first(PerValue || t == nullptr ? W(0) : *t) {}
  W operator[](int64_t i) const { return PerValue ? table[i] : first; }
};

// What a value gives: its distance from m, and u, which the activation gets.
template <Act A, bool Added, bool PerValue, class W>
struct Linear {
  Number<PerValue, W> m, a, b;
  explicit Linear(const Coefficients<W>& by) : m(by.m), a(by.a), b(by.b) {}
  W u(W d, const W* residual, int64_t i, int64_t column) const {
    const W u = d * a[column] + b[column];
    return Added ? u + residual[i] : u;
  }
};

// The sum of (x - shift) and of its square.
// In a function of its own: inlined beside a buffer, GCC leaves the loop with a branch per value.
template <class W>
__attribute__((noinline)) void add_sums(const W* x, int64_t n, double shift, double& s, double& q) {
  double part = 0, square = 0;
#pragma omp simd reduction(+ : part, square)
  for (int64_t i = 0; i < n; ++i) {
    const double d = double(x[i]) - shift;
    part += d;
    square += d * d;
  }
  s += part;
  q += square;
}
template <class T>
void sums(const T* x, int64_t n, double shift, double& s, double& q) {
  in_parts<T>(n, [&](int64_t at, int64_t size) {
    Tile<T, PART> tile;
    add_sums(tile.read(x + at, size), size, shift, s, q);
  });
}

// The same for each column: of R rows at a time, so that s and q are seldom read.
template <int R, class T>
inline void column_sums(const T* const* rows, int64_t width, const double* shift,
                        double* __restrict s, double* __restrict q) {
  in_tiles<T>(width, [&](int64_t at, auto size) {
    Tile<T, TILE> tiles[R];
    const Wide<T>* from[R];
    for (int r = 0; r < R; ++r) from[r] = tiles[r].read(rows[r] + at, size);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      double part = 0, square = 0;
      for (int r = 0; r < R; ++r) {
        const double d = double(from[r][i]) - shift[at + i];
        part += d;
        square += d * d;
      }
      s[at + i] += part;
      q[at + i] += square;
    }
  });
}

// The loops of one dtype, activation and form, as addresses.
template <class T>
struct Loops {
  using By = Coefficients<Wide<T>>;
  // y = act((x - m) a + b + residual)
  void (*map)(const T* x, const T* residual, T* y, int64_t n, const By& by);
  // sum of g and of g (x - m) over some rows: added to s[0], q[0], or to one for each column
  void (*gradient_sums)(const T* const* x, const T* const* dy, const T* const* residual, int rows,
                        int64_t n, const By& by, double* s, double* q);
  // dx = g a + (x - m) gb + gc, dresidual = g
  void (*gradient_map)(const T* x, const T* dy, const T* residual, T* dx, T* dresidual, int64_t n,
                       const By& by);
};

template <Act A, bool Added, bool PerValue, class T, class W = Wide<T>>
void map(const T* x, const T* residual, T* __restrict y, int64_t n, const Coefficients<W>& by) {
  const Linear<A, Added, PerValue, W> linear(by);
  in_tiles<T>(n, [&](int64_t at, auto size) {
    Tile<T, TILE> in, beside, result;
    const W *xs = in.read(x + at, size), *added = nullptr;
    if constexpr (Added) added = beside.read(residual + at, size);
    W* __restrict into = result.place(y + at);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      into[i] = activate<A>(linear.u(xs[i] - linear.m[at + i], added, i, at + i));
    }
    result.write(size, y + at);
  });
}

template <Act A, bool Added, class W>
__attribute__((noinline)) void add_gradients(const W* x, const W* dy, const W* residual, int64_t n,
                                             const Linear<A, Added, false, W>& linear, double& s,
                                             double& q) {
  const W m = linear.m[0];
  double part = 0, product = 0;
#pragma omp simd reduction(+ : part, product)
  for (int64_t i = 0; i < n; ++i) {
    const W d = x[i] - m;
    const W g = through<A>(dy[i], linear.u(d, residual, i, i));
    part += double(g);
    product += double(g) * double(d);
  }
  s += part;
  q += product;
}

// Of R rows at a time, so that s and q are seldom read.
template <int R, Act A, bool Added, class T, class W = Wide<T>>
void add_gradients(const T* const* x, const T* const* dy, const T* const* residual, int64_t n,
                   const Coefficients<W>& by, double* __restrict s, double* __restrict q) {
  const Linear<A, Added, true, W> linear(by);
  in_tiles<T>(n, [&](int64_t at, auto size) {
    Tile<T, TILE> in[R], from[R], beside[R];
    const W *xs[R], *dys[R], *added[R];
    for (int r = 0; r < R; ++r) {
      xs[r] = in[r].read(x[r] + at, size);
      dys[r] = from[r].read(dy[r] + at, size);
      added[r] = Added ? beside[r].read(residual[r] + at, size) : nullptr;
    }
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      double part = 0, product = 0;
      for (int r = 0; r < R; ++r) {
        const W d = xs[r][i] - linear.m[at + i];
        const W g = through<A>(dys[r][i], linear.u(d, added[r], i, at + i));
        part += double(g);
        product += double(g) * double(d);
      }
      s[at + i] += part;
      q[at + i] += product;
    }
  });
}

template <Act A, bool Added, bool PerValue, class T, class W = Wide<T>>
void gradient_sums(const T* const* x, const T* const* dy, const T* const* residual, int rows,
                   int64_t n, const Coefficients<W>& by, double* s, double* q) {
  int r = 0;
  if constexpr (PerValue) {
    for (; r + 4 <= rows; r += 4) {
      add_gradients<4, A, Added>(x + r, dy + r, residual + r, n, by, s, q);
    }
    for (; r < rows; ++r) add_gradients<1, A, Added>(x + r, dy + r, residual + r, n, by, s, q);
    return;
  }
  const Linear<A, Added, false, W> linear(by);
  for (; r < rows; ++r) {
    in_parts<T>(n, [&](int64_t at, int64_t size) {
      Tile<T, PART> in, from, beside;
      const W *xs = in.read(x[r] + at, size), *dys = from.read(dy[r] + at, size), *added = nullptr;
      if constexpr (Added) added = beside.read(residual[r] + at, size);
      add_gradients(xs, dys, added, size, linear, *s, *q);
    });
  }
}

template <Act A, bool Added, bool PerValue, class T, class W = Wide<T>>
void gradient_map(const T* x, const T* dy, const T* residual, T* __restrict dx,
                  T* __restrict dresidual, int64_t n, const Coefficients<W>& by) {
  const Linear<A, Added, PerValue, W> linear(by);
  const Number<PerValue, W> gb(by.gb), gc(by.gc);
  in_tiles<T>(n, [&](int64_t at, auto size) {
    Tile<T, TILE> in, from, beside, result, result_beside;
    const W *xs = in.read(x + at, size), *dys = from.read(dy + at, size), *added = nullptr;
    W *__restrict into = result.place(dx + at), *__restrict gs = nullptr;
    if constexpr (Added) {
      added = beside.read(residual + at, size);
      gs = result_beside.place(dresidual + at);
    }
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const W d = xs[i] - linear.m[at + i];
      const W g = through<A>(dys[i], linear.u(d, added, i, at + i));
      into[i] = g * linear.a[at + i] + d * gb[at + i] + gc[at + i];
      if constexpr (Added) gs[i] = g;
    }
    result.write(size, dx + at);
    if constexpr (Added) result_beside.write(size, dresidual + at);
  });
}

template <Act A, bool Added, bool PerValue, class T>
constexpr Loops<T> loops_of{map<A, Added, PerValue, T>, gradient_sums<A, Added, PerValue, T>,
                            gradient_map<A, Added, PerValue, T>};

template <bool PerValue, class T>
const Loops<T>& loops(Act act, bool added) {
  switch (act) {
    case Act::relu:
      return added ? loops_of<Act::relu, true, PerValue, T> : loops_of<Act::relu, false, PerValue, T>;
    case Act::leaky_relu:
      return added ? loops_of<Act::leaky_relu, true, PerValue, T>
                   : loops_of<Act::leaky_relu, false, PerValue, T>;
    case Act::silu:
      return added ? loops_of<Act::silu, true, PerValue, T> : loops_of<Act::silu, false, PerValue, T>;
    default:
      return added ? loops_of<Act::none, true, PerValue, T> : loops_of<Act::none, false, PerValue, T>;
  }
}

// Calls f with a null pointer of the dtype of x.
template <class F>
void with_type(Type type, F f) {
  switch (type) {
    case Type::float32: return f(static_cast<const float*>(nullptr));
    case Type::float64: return f(static_cast<const double*>(nullptr));
    case Type::bfloat16: return f(static_cast<const bf16*>(nullptr));
    case Type::float16: return f(static_cast<const fp16*>(nullptr));
  }
}

}  // namespace normscope
