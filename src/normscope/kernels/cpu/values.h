// Single values: dtypes of 16 bits, tiles that are read and written, activations.
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

// 16-bit values are converted so many at a time, beside the loop that reads them: whole rows would
// push each other out of the nearest cache.
constexpr int TILE = 64;

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

// f(T()) for the type of single values.
template <class F>
void with_type(Type type, F f) {
  switch (type) {
    case Type::float32: return f(float());
    case Type::float64: return f(double());
    case Type::bfloat16: return f(bf16());
    case Type::float16: return f(fp16());
  }
}

}  // namespace normscope
