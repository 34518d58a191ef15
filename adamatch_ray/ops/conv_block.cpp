// The two halves of a residual block on a CPU in fp32, channels last: GroupNorm with swish, and a 3 x 3 convolution of
// stride 1 by Winograd's F(4 x 4, 3 x 3), which multiplies a quarter as often as the direct sum (PERFORMANCE 3).
//
// A work item is kTiles output tiles of 4 x 4 pixels: their 6 x 6 inputs are transformed into 36 small matrices
// [tiles, inputs], each is multiplied by its own weight matrix, and the products are transformed back and stored with
// bias and shortcut. Both buffers of an item stay in the cache. A tile's result does not depend on its neighbours in
// the item, so neither batch nor threads change it.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 4;
#else
constexpr int kLanes = 4, kRows = 4;
#endif
constexpr int kPanel = 2 * kLanes;  // output channels of one product tile
constexpr int kTiles = 32;          // a multiple of every kRows
constexpr int kPixels = 64;         // pixels summed in single precision before they join the double sum

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef float VectorAt __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));

inline Vector load(const float* at) { return *reinterpret_cast<const VectorAt*>(at); }
inline void store(float* at, Vector value) { *reinterpret_cast<VectorAt*>(at) = value; }

template <typename Work>
void share(int64_t items, int threads, Work work) {
  std::atomic<int64_t> next{0};
  auto loop = [&] {
    for (int64_t item; (item = next.fetch_add(1)) < items;) work(item);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < std::min<int64_t>(threads, items); ++i) others.emplace_back(loop);
  loop();
  for (auto& other : others) other.join();
}

// Six samples to six, along one direction; interpolation points 0, 1, -1, 2, -2 and infinity.
inline void forward(const Vector d[6], Vector out[6]) {
  Vector even = d[4] - 4.f * d[2], odd = d[3] - 4.f * d[1];
  Vector wide = d[4] - d[2], tall = 2.f * (d[3] - d[1]);
  out[0] = 4.f * d[0] - 5.f * d[2] + d[4];
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = wide + tall;
  out[4] = wide - tall;
  out[5] = 4.f * d[1] - 5.f * d[3] + d[5];
}

// Six products to four output samples, along one direction.
inline void backward(const Vector m[6], Vector out[4]) {
  Vector sum1 = m[1] + m[2], gap1 = m[1] - m[2], sum2 = m[3] + m[4], gap2 = m[3] - m[4];
  out[0] = m[0] + sum1 + sum2;
  out[1] = gap1 + 2.f * gap2;
  out[2] = sum1 + 4.f * sum2;
  out[3] = gap1 + 8.f * gap2 + m[5];
}

// kRows x kPanel of the product of rows [kRows, inputs] and one packed panel [inputs, kPanel].
inline void multiply(const float* rows, const float* panel, float* out, int64_t inputs, int64_t outputs) {
  Vector sum[kRows][2] = {};
  for (int64_t k = 0; k < inputs; ++k) {
    Vector left = load(panel + k * kPanel), right = load(panel + k * kPanel + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      float value = rows[r * inputs + k];
      sum[r][0] += value * left;
      sum[r][1] += value * right;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    store(out + r * outputs, sum[r][0]);
    store(out + r * outputs + kLanes, sum[r][1]);
  }
}

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

}  // namespace

extern "C" {

int winograd_panel() { return kPanel; }

// image [batch, height, width, inputs], packed [36, outputs / kPanel, inputs, kPanel], bias [outputs], shortcut and
// out [batch, height, width, outputs]; shortcut may be null, and may be out. Sides are multiples of 4.
void winograd_convolve(const float* image, const float* packed, const float* bias, const float* shortcut, float* out,
                       int64_t batch, int64_t height, int64_t width, int64_t inputs, int64_t outputs, int threads) {
  const int64_t across = width / 4, per_image = across * (height / 4), tiles = batch * per_image;
  share((tiles + kTiles - 1) / kTiles, threads, [&](int64_t item) {
    thread_local std::vector<float> source, product;
    source.resize(36 * kTiles * inputs);
    product.resize(36 * kTiles * outputs);
    const int64_t first = item * kTiles;
    const int count = int(std::min<int64_t>(kTiles, tiles - first));
    for (int t = 0; t < count; ++t) {
      const int64_t tile = (first + t) % per_image, y = tile / across * 4 - 1, x = tile % across * 4 - 1;
      const float* base = image + (first + t) / per_image * height * width * inputs;
      for (int64_t c = 0; c < inputs; c += kLanes) {
        Vector half[6][6], column[6], whole[6];
        for (int j = 0; j < 6; ++j) {
          for (int i = 0; i < 6; ++i) {
            const bool inside = y + i >= 0 && y + i < height && x + j >= 0 && x + j < width;
            column[i] = inside ? load(base + ((y + i) * width + x + j) * inputs + c) : Vector{};
          }
          forward(column, half[j]);
        }
        for (int i = 0; i < 6; ++i) {
          for (int j = 0; j < 6; ++j) column[j] = half[j][i];
          forward(column, whole);
          for (int j = 0; j < 6; ++j) store(&source[((i * 6 + j) * kTiles + t) * inputs + c], whole[j]);
        }
      }
    }
    for (int f = 0; f < 36; ++f)
      for (int64_t o = 0; o < outputs; o += kPanel)
        for (int t = 0; t < count; t += kRows)
          multiply(&source[(f * kTiles + t) * inputs], packed + (f * outputs + o) * inputs,
                   &product[(f * kTiles + t) * outputs + o], inputs, outputs);
    for (int t = 0; t < count; ++t) {
      const int64_t tile = (first + t) % per_image, y = tile / across * 4, x = tile % across * 4;
      const int64_t base = (first + t) / per_image * height * width;
      for (int64_t o = 0; o < outputs; o += kLanes) {
        Vector half[6][4], column[6], whole[4];
        for (int j = 0; j < 6; ++j) {
          for (int i = 0; i < 6; ++i) column[i] = load(&product[((i * 6 + j) * kTiles + t) * outputs + o]);
          backward(column, half[j]);
        }
        for (int i = 0; i < 4; ++i) {
          for (int j = 0; j < 6; ++j) column[j] = half[j][i];
          backward(column, whole);
          for (int j = 0; j < 4; ++j) {
            const int64_t at = (base + (y + i) * width + x + j) * outputs + o;
            Vector value = whole[j] + load(bias + o);
            store(out + at, shortcut ? value + load(shortcut + at) : value);
          }
        }
      }
    }
  });
}

// swish(GroupNorm(image)) for image and out [batch, pixels, channels]; they may be the same.
void norm_swish(const float* image, const float* weight, const float* bias, float* out, int64_t batch, int64_t pixels,
                int64_t channels, int64_t groups, double eps, int threads) {
  const int64_t blocks = (pixels + kPixels - 1) / kPixels, width = channels / groups;
  std::vector<double> part(blocks * 2 * groups);
  std::vector<float> scale(channels), shift(channels), origin(channels);
  for (int64_t b = 0; b < batch; ++b, image += pixels * channels, out += pixels * channels) {
    // moments about one value of each group: a mean far from zero then costs no digits of the variance
    for (int64_t c = 0; c < channels; ++c) origin[c] = image[c / width * width];
    share(blocks, threads, [&](int64_t block) {
      std::vector<float> sums(2 * channels);
      const int64_t end = std::min(pixels, (block + 1) * kPixels);
      for (int64_t c = 0; c < channels; c += kLanes) {
        Vector sum{}, square{};
        for (int64_t p = block * kPixels; p < end; ++p) {
          Vector value = load(image + p * channels + c) - load(&origin[c]);
          sum += value;
          square += value * value;
        }
        store(&sums[c], sum);
        store(&sums[channels + c], square);
      }
      for (int64_t c = 0; c < channels; ++c) {
        part[(block * 2) * groups + c / width] += sums[c];
        part[(block * 2 + 1) * groups + c / width] += sums[channels + c];
      }
    });
    for (int64_t g = 0; g < groups; ++g) {
      double sum = 0, square = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        sum += part[(block * 2) * groups + g];
        square += part[(block * 2 + 1) * groups + g];
      }
      const double count = double(pixels * width), mean = sum / count;
      const double inverse = 1.0 / std::sqrt(std::max(0.0, square / count - mean * mean) + eps);
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        scale[c] = float(weight[c] * inverse);
        shift[c] = float(bias[c] - (origin[c] + mean) * weight[c] * inverse);
      }
    }
    std::fill(part.begin(), part.end(), 0.0);
    share(blocks, threads, [&](int64_t block) {
      const int64_t end = std::min(pixels, (block + 1) * kPixels);
      for (int64_t p = block * kPixels; p < end; ++p)
        for (int64_t c = 0; c < channels; c += kLanes) {
          Vector value = load(image + p * channels + c) * load(&scale[c]) + load(&shift[c]);
          store(out + p * channels + c, value / (1.f + exponential(-value)));
        }
    });
  }
}

}  // extern "C"
