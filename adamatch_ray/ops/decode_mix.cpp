// What lies between the two matrix products of a folded GPT-NeoX layer when one token a row is decoded, in fp32 on a
// CPU: rotary positions, the new key and value into the cache, attention over the cache, and GELU.
//
// A head's keys and values are read once, in order, which is all that this costs: a batch's cache is far larger than
// the processor's. A row's result does not depend on the rows beside it, nor on the threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr int kLanes = 8;
constexpr int64_t kShared = 1 << 20;  // cached numbers from which starting threads pays

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef float VectorAt __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));

inline Vector load(const float* at) { return *reinterpret_cast<const VectorAt*>(at); }
inline void store(float* at, Vector value) { *reinterpret_cast<VectorAt*>(at) = value; }

inline float sum(Vector v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

inline Vector exponential(Vector x) {
  // 2^n e^r with |r| <= ln 2 / 2; the large constant rounds to the nearest integer
  const float round = 12582912.f;
  const Vector low = Vector{} - 87.f, high = Vector{} + 88.f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  Vector n = (x * 1.44269504f + round) - round;
  Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = ((((r * 1.9875691500e-4f + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
              1.6666665459e-1f) * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  return p * reinterpret_cast<Vector&>(power);
}

// x (1 + erf(x / sqrt 2)) / 2 by Abramowitz and Stegun 7.1.26, whose error of erf is below 1.5e-7.
inline Vector gelu(Vector x) {
  Vector z = x * 0.70710678f;
  z = z < 0.f ? -z : z;
  Vector t = 1.f / (1.f + 0.3275911f * z);
  Vector p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  Vector upper = 1.f - 0.5f * p * exponential(-z * z);
  return x * (x < 0.f ? 1.f - upper : upper);
}

inline int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

struct Sizes {
  int64_t rows, heads, head, rotary, inner, capacity, slot;
};

// x cos + turned sin on the rotary part of a head, the rest as it is.
void turn(const Sizes& n, const float* x, const float* turned, const float* cos, const float* sin, float* out) {
  for (int64_t i = 0; i < n.rotary; ++i) out[i] = x[i] * cos[i] + turned[i] * sin[i];
  std::copy(x + n.rotary, x + n.head, out + n.rotary);
}

// Softmax attention of one query over the slots so far; kVectors is the head's size in vectors.
template <int kVectors>
void attend(const Sizes& n, const float* query, const float* keys, const float* values, const float* mask,
            float* score, float* out) {
  constexpr int kHead = kVectors * kLanes;
  const float scale = 1.f / std::sqrt(static_cast<float>(kHead));
  Vector q[kVectors], blend[kVectors] = {};
  for (int i = 0; i < kVectors; ++i) q[i] = load(query + i * kLanes) * scale;
  float highest = -INFINITY;
  for (int64_t slot = 0; slot <= n.slot; ++slot, keys += kHead) {
    Vector even = {}, odd = {};
    for (int i = 0; i < kVectors; i += 2) even += q[i] * load(keys + i * kLanes);
    for (int i = 1; i < kVectors; i += 2) odd += q[i] * load(keys + i * kLanes);
    float dot = sum(even + odd);
    score[slot] = mask ? dot + mask[slot] : dot;
    highest = std::max(highest, score[slot]);
  }
  std::fill(score + n.slot + 1, score + padded(n.slot + 1), -INFINITY);
  Vector total = {};
  for (int64_t slot = 0; slot <= n.slot; slot += kLanes) {
    Vector weight = exponential(load(score + slot) - highest);
    store(score + slot, weight);
    total += weight;
  }
  for (int64_t slot = 0; slot <= n.slot; ++slot, values += kHead)
    for (int i = 0; i < kVectors; ++i) blend[i] += score[slot] * load(values + i * kLanes);
  const float share = 1.f / sum(total);
  for (int i = 0; i < kVectors; ++i) store(out + i * kLanes, blend[i] * share);
}

auto attention_for(int64_t head) -> decltype(&attend<2>) {
  switch (head) {
    case 16: return attend<2>;
    case 32: return attend<4>;
    case 64: return attend<8>;
    case 80: return attend<10>;
    case 96: return attend<12>;
    case 128: return attend<16>;
  }
  return nullptr;
}

}  // namespace

extern "C" int decode_mix_takes(int64_t head, int64_t inner) { return attention_for(head) && inner % kLanes == 0; }

// wide [rows, query|key|value|turned query|turned key|up] to joined [rows, attended|activated]; kv is one layer's
// [key or value, rows, heads, capacity, head], cos and sin are [rows, rotary], mask [rows, capacity] or null.
extern "C" void decode_mix(const float* wide, float* kv, const float* cos, const float* sin, const float* mask,
                           float* joined, int64_t rows, int64_t heads, int64_t head, int64_t rotary, int64_t inner,
                           int64_t capacity, int64_t slot, int threads) {
  const Sizes n{rows, heads, head, rotary, inner, capacity, slot};
  const int64_t hidden = heads * head, width = 3 * hidden + 2 * heads * rotary + inner;
  const auto attention = attention_for(head);
  std::atomic<int64_t> next{0};
  auto work = [&] {
    std::vector<float> score(padded(slot + 1)), query(head);
    for (int64_t row; (row = next.fetch_add(1)) < rows;) {
      const float *in = wide + row * width, *turned = in + 3 * hidden, *up = turned + 2 * heads * rotary;
      float* out = joined + row * (hidden + inner);
      for (int64_t h = 0; h < heads; ++h) {
        float* keys = kv + (row * heads + h) * capacity * head;
        float* values = keys + rows * heads * capacity * head;
        const float *c = cos + row * rotary, *s = sin + row * rotary, *own = in + h * head;
        turn(n, own, turned + h * rotary, c, s, query.data());
        turn(n, own + hidden, turned + (heads + h) * rotary, c, s, keys + slot * head);
        std::copy(own + 2 * hidden, own + 2 * hidden + head, values + slot * head);
        attention(n, query.data(), keys, values, mask ? mask + row * capacity : nullptr, score.data(), out + h * head);
      }
      for (int64_t i = 0; i < inner; i += kLanes) store(out + hidden + i, gelu(load(up + i)));
    }
  };
  std::vector<std::thread> others;
  if (rows * hidden * slot < kShared) threads = 1;
  for (int i = 1; i < std::min<int64_t>(threads, rows); ++i) others.emplace_back(work);
  work();
  for (auto& other : others) other.join();
}
