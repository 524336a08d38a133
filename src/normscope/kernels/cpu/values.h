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

inline void widen(const fp16* from, int64_t n, float* into) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(into + i, _mm256_cvtph_ps(half));
  }
#endif
  for (; i < n; ++i) into[i] = c10::Half(from[i].bits, c10::Half::from_bits());
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
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half =
        _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(into + i), half);
  }
#endif
  for (; i < n; ++i) into[i].bits = c10::Half(from[i]).x;
}

// n values in the dtype of arithmetic: where they are, or in a buffer.
template <class T>
const Wide<T>* wide(const T* from, int64_t n, Wide<T>* buffer) {
  if constexpr (std::is_same_v<T, Wide<T>>) {
    return from;
  } else {
    widen(from, n, buffer);
    return buffer;
  }
}

// Where to write n values, and the way from there to where they belong.
template <class T>
Wide<T>* writable(T* into, Wide<T>* buffer) {
  if constexpr (std::is_same_v<T, Wide<T>>) {
    return into;
  } else {
    return buffer;
  }
}
template <class T>
void written(const Wide<T>* buffer, int64_t n, T* into) {
  if constexpr (!std::is_same_v<T, Wide<T>>) narrow(buffer, n, into);
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
  W u(W d, const W* residual, int64_t i) const {
    const W u = d * a[i] + b[i];
    return Added ? u + residual[i] : u;
  }
};

// The sum of (x - shift) and of its square.
template <class W>
inline void sums(const W* x, int64_t n, double shift, double& s, double& q) {
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

// The same for each column of some rows; four rows at a time, so that s and q are seldom read.
template <class W>
inline void column_sums(const W* const* rows, int count, int64_t width, const double* shift,
                        double* s, double* q) {
  int j = 0;
  for (; j + 4 <= count; j += 4) {
    const W *r0 = rows[j], *r1 = rows[j + 1], *r2 = rows[j + 2], *r3 = rows[j + 3];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const double d0 = double(r0[i]) - shift[i], d1 = double(r1[i]) - shift[i];
      const double d2 = double(r2[i]) - shift[i], d3 = double(r3[i]) - shift[i];
      s[i] += (d0 + d1) + (d2 + d3);
      q[i] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
    }
  }
  for (; j < count; ++j) {
    const W* row = rows[j];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const double d = double(row[i]) - shift[i];
      s[i] += d;
      q[i] += d * d;
    }
  }
}

// The loops of one dtype of arithmetic, activation and form, as addresses.
template <class W>
struct Loops {
  // y = act((x - m) a + b + residual)
  void (*map)(const W* x, const W* residual, W* y, int64_t n, const Coefficients<W>& by);
  // sum of g and of g (x - m) over some rows: added to s[0], q[0], or to one for each column
  void (*gradient_sums)(const W* const* x, const W* const* dy, const W* const* residual, int rows,
                        int64_t n, const Coefficients<W>& by, double* s, double* q);
  // dx = g a + (x - m) gb + gc, dresidual = g
  void (*gradient_map)(const W* x, const W* dy, const W* residual, W* dx, W* dresidual, int64_t n,
                       const Coefficients<W>& by);
};

template <Act A, bool Added, bool PerValue, class W>
void map(const W* x, const W* residual, W* __restrict y, int64_t n, const Coefficients<W>& by) {
  const Linear<A, Added, PerValue, W> linear(by);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    y[i] = activate<A>(linear.u(x[i] - linear.m[i], residual, i));
  }
}

// The same for columns: of R rows at a time, so that s and q are seldom read.
template <int R, Act A, bool Added, class W>
void add_gradients(const W* const* x, const W* const* dy, const W* const* residual, int64_t n,
                   const Coefficients<W>& by, double* __restrict s, double* __restrict q) {
  const Linear<A, Added, true, W> linear(by);
  const W *xs[R], *dys[R], *added[R];
  for (int r = 0; r < R; ++r) xs[r] = x[r], dys[r] = dy[r], added[r] = Added ? residual[r] : nullptr;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    double part = 0, product = 0;
    for (int r = 0; r < R; ++r) {
      const W d = xs[r][i] - linear.m[i];
      const W g = through<A>(dys[r][i], linear.u(d, added[r], i));
      part += double(g);
      product += double(g) * double(d);
    }
    s[i] += part;
    q[i] += product;
  }
}

template <Act A, bool Added, bool PerValue, class W>
void gradient_sums(const W* const* x, const W* const* dy, const W* const* residual, int rows,
                   int64_t n, const Coefficients<W>& by, double* s, double* q) {
  int r = 0;
  if constexpr (PerValue) {
    for (; r + 4 <= rows; r += 4) {
      add_gradients<4, A, Added>(x + r, dy + r, residual + r, n, by, s, q);
    }
    for (; r < rows; ++r) add_gradients<1, A, Added>(x + r, dy + r, residual + r, n, by, s, q);
    return;
  }
  const Linear<A, Added, PerValue, W> linear(by);
  for (; r < rows; ++r) {
    const W *row = x[r], *from = dy[r], *added = Added ? residual[r] : nullptr;
    double part = 0, product = 0;
#pragma omp simd reduction(+ : part, product)
    for (int64_t i = 0; i < n; ++i) {
      const W d = row[i] - linear.m[i];
      const W g = through<A>(from[i], linear.u(d, added, i));
      part += double(g);
      product += double(g) * double(d);
    }
    *s += part;
    *q += product;
  }
}

template <Act A, bool Added, bool PerValue, class W>
void gradient_map(const W* x, const W* dy, const W* residual, W* __restrict dx,
                  W* __restrict dresidual, int64_t n, const Coefficients<W>& by) {
  const Linear<A, Added, PerValue, W> linear(by);
  const Number<PerValue, W> gb(by.gb), gc(by.gc);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const W d = x[i] - linear.m[i];
    const W g = through<A>(dy[i], linear.u(d, residual, i));
    dx[i] = g * linear.a[i] + d * gb[i] + gc[i];
    if constexpr (Added) dresidual[i] = g;
  }
}

template <Act A, bool Added, bool PerValue, class W>
constexpr Loops<W> loops_of{map<A, Added, PerValue, W>, gradient_sums<A, Added, PerValue, W>,
                            gradient_map<A, Added, PerValue, W>};

template <bool PerValue, class W>
const Loops<W>& loops(Act act, bool added) {
  switch (act) {
    case Act::relu:
      return added ? loops_of<Act::relu, true, PerValue, W> : loops_of<Act::relu, false, PerValue, W>;
    case Act::leaky_relu:
      return added ? loops_of<Act::leaky_relu, true, PerValue, W>
                   : loops_of<Act::leaky_relu, false, PerValue, W>;
    case Act::silu:
      return added ? loops_of<Act::silu, true, PerValue, W> : loops_of<Act::silu, false, PerValue, W>;
    default:
      return added ? loops_of<Act::none, true, PerValue, W> : loops_of<Act::none, false, PerValue, W>;
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
