// Both directions of the late interaction (docs/method.md 1.4, eqs. 5-6) on a CPU, forward and backward.
//
// Patches and words arrive as rows of two float matrices; `rows` and `start` list the valid rows of every image and
// text, so padding is never multiplied. A work item is a group of images against a range of texts: its patches are
// transposed once into panels whose lanes run across patches, one text at a time is multiplied against them into a
// buffer that stays in the cache, and both maxima are read from that buffer before the next text overwrites it.
//
// Every product is summed over the joint dimension in the same order wherever it falls in a tile, so a score does not
// depend on the batch around it. All comparisons are strict: of equal scores the first index wins.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

// Lanes of one vector register, and the words of one tile: words x 2 accumulators must fit the register file.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kWords = 14;
#elif defined(__AVX__)
constexpr int kLanes = 8, kWords = 6;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kWords = 12;
#else
constexpr int kLanes = 4, kWords = 6;
#endif
constexpr int kVectors = 2;               // vectors of patches in one panel
constexpr int kPanel = kLanes * kVectors;  // patches in one panel
constexpr int64_t kForwardRows = 512;      // images join a group until it has this many patches
constexpr int64_t kBackwardRows = 512;     // items join a block until it has this many rows
constexpr int kPulls = 4;                   // counterparts added to a gradient row in one visit

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef float VectorAt __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Index32 __attribute__((vector_size(kLanes * 4)));
typedef int32_t Index32At __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vector load(const float* at) { return *reinterpret_cast<const VectorAt*>(at); }
inline void store(float* at, Vector value) { *reinterpret_cast<VectorAt*>(at) = value; }

inline Index32 ramp() {
  Index32 lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  return lanes;
}

// One side of the batch: the flat matrix, its valid rows, and where each item's rows start (items + 1 entries).
struct Side {
  const float* data;
  const int64_t* rows;
  const int64_t* start;
  int64_t items;
  int64_t size(int64_t item) const { return start[item + 1] - start[item]; }
  int64_t total() const { return start[items]; }
};

// Runs work(0) .. work(count - 1) on `threads` threads; results must not depend on which thread takes which.
template <typename Work>
void parallel(int64_t count, int threads, const Work& work) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t item; (item = next.fetch_add(1)) < count;) work(item);
  };
  std::vector<std::thread> helpers;
  for (int64_t t = 1; t < std::min<int64_t>(threads, count); ++t) helpers.emplace_back(run);
  run();
  for (auto& helper : helpers) helper.join();
}

// Items joined until they have `rows` rows: entry b and b + 1 of the answer are block b's first and last item.
std::vector<int64_t> blocks_of(const Side& side, int64_t rows) {
  std::vector<int64_t> bounds{0};
  for (int64_t i = 0; i < side.items; ++i)
    if (i + 1 == side.items || side.start[i + 1] - side.start[bounds.back()] >= rows) bounds.push_back(i + 1);
  return bounds;
}

// ---- forward -------------------------------------------------------------------------------------------------------

// scores[word][patch] for W words and V vectors of patches; panel is [dim][kPanel], words is [dim][kWords].
template <int W, int V>
void tile(const float* panel, const float* words, int64_t dim, float* scores, int64_t stride) {
  Vector sum[W][V] = {};
  for (int64_t d = 0; d < dim; ++d, panel += kPanel, words += kWords) {
    Vector patches[V];
    for (int v = 0; v < V; ++v) patches[v] = load(panel + v * kLanes);
    for (int w = 0; w < W; ++w)
      for (int v = 0; v < V; ++v) sum[w][v] += words[w] * patches[v];
  }
  for (int w = 0; w < W; ++w)
    for (int v = 0; v < V; ++v) store(scores + w * stride + v * kLanes, sum[w][v]);
}

template <int V, int W = kWords>
void tile_of(int64_t words_left, const float* panel, const float* words, int64_t dim, float* scores, int64_t stride) {
  if constexpr (W > 1) {
    if (words_left < W) return tile_of<V, W - 1>(words_left, panel, words, dim, scores, stride);
  }
  tile<W, V>(panel, words, dim, scores, stride);
}

// Transposes rows [first, first + count) into panels of `width` rows: out[panel][dim][width], zeros past the end.
void pack(const Side& side, int64_t first, int64_t count, int64_t dim, int64_t width, float* out) {
  for (int64_t panel = 0; panel < count; panel += width, out += dim * width)
    for (int64_t lane = 0; lane < width; ++lane) {
      const float* row = panel + lane < count ? side.data + side.rows[first + panel + lane] * dim : nullptr;
      for (int64_t d = 0; d < dim; ++d) out[d * width + lane] = row ? row[d] : 0.0f;
    }
}

void multiply(const float* panels, int64_t patches, const float* words, int64_t count, int64_t dim, float* scores,
              int64_t stride) {
  for (int64_t p = 0; p < patches; p += kPanel)
    for (int64_t w = 0; w < count; w += kWords) {
      const float *panel = panels + p * dim, *tile_words = words + w * dim;
      float* out = scores + w * stride + p;
      if (patches - p > kLanes)
        tile_of<kVectors>(count - w, panel, tile_words, dim, out, stride);
      else
        tile_of<1>(count - w, panel, tile_words, dim, out, stride);
    }
}

// For each patch of the group: its best word (value and index), down the columns of scores[words][stride].
void best_words(const float* scores, int64_t words, int64_t stride, float* value, int32_t* index) {
  for (int64_t p = 0; p < stride; p += kLanes) {
    Vector best = load(scores + p);
    Index32 at = {};
    for (int64_t w = 1; w < words; ++w) {
      Vector score = load(scores + w * stride + p);
      Index32 better = score > best;
      best = better ? score : best;
      at = better ? Index32{} + static_cast<int32_t>(w) : at;
    }
    store(value + p, best);
    *reinterpret_cast<Index32At*>(index + p) = at;
  }
}

struct Best {
  float value;
  int32_t index;
};

// The best of `count` contiguous scores. Lanes keep their own first maximum; the lowest index among them wins.
Best best_of(const float* scores, int64_t count, Index32 lanes) {
  Best best{scores[0], 0};
  int64_t p = 1;
  if (count >= kLanes) {
    Vector value = load(scores);
    Index32 block = {};
    for (p = kLanes; p + kLanes <= count; p += kLanes) {
      Vector score = load(scores + p);
      Index32 better = score > value;
      value = better ? score : value;
      block = better ? Index32{} + static_cast<int32_t>(p) : block;
    }
    Index32 index = block + lanes;
    best = {value[0], index[0]};
    for (int lane = 1; lane < kLanes; ++lane)
      if (value[lane] > best.value || (value[lane] == best.value && index[lane] < best.index))
        best = {value[lane], index[lane]};
  }
  for (; p < count; ++p)
    if (scores[p] > best.value) best = {scores[p], static_cast<int32_t>(p)};
  return best;
}

template <typename Saved>
struct Forward {
  Side images, texts;
  int64_t dim;
  float* image_to_text;  // [images][texts]
  float* text_to_image;  // [texts][images]
  Saved* word_of_patch;  // [texts][patches of all images], or null
  Saved* patch_of_word;  // [images][words of all texts], or null

  struct Scratch {
    std::vector<float> panels, words, scores, value;
    std::vector<int32_t> index;
  };

  void run(int64_t image, int64_t image_end, int64_t text, int64_t text_end, Scratch& s) const {
    const int64_t first = images.start[image], patches = images.start[image_end] - first;
    const int64_t stride = (patches + kLanes - 1) / kLanes * kLanes;
    s.panels.resize((patches + kPanel - 1) / kPanel * kPanel * dim);
    s.value.resize(stride), s.index.resize(stride);
    pack(images, first, patches, dim, kPanel, s.panels.data());
    for (; text < text_end; ++text) {
      const int64_t words = texts.size(text);
      s.words.resize((words + kWords - 1) / kWords * kWords * dim);
      s.scores.resize(words * stride);
      pack(texts, texts.start[text], words, dim, kWords, s.words.data());
      multiply(s.panels.data(), stride, s.words.data(), words, dim, s.scores.data(), stride);
      best_words(s.scores.data(), words, stride, s.value.data(), s.index.data());
      if (word_of_patch) std::copy_n(s.index.data(), patches, word_of_patch + text * images.total() + first);
      for (int64_t i = image; i < image_end; ++i) reduce(i, text, stride, images.start[i] - first, s);
    }
  }

  // Sums in double: 196 maxima of one sign lose nothing and need no fixed vector order.
  void reduce(int64_t image, int64_t text, int64_t stride, int64_t offset, const Scratch& s) const {
    const int64_t patches = images.size(image), words = texts.size(text);
    const Index32 lanes = ramp();
    double sum = 0;
    for (int64_t p = 0; p < patches; ++p) sum += s.value[offset + p];
    image_to_text[image * texts.items + text] = static_cast<float>(sum / patches);
    Saved* saved = patch_of_word ? patch_of_word + image * texts.total() + texts.start[text] : nullptr;
    sum = 0;
    for (int64_t w = 0; w < words; ++w) {
      const Best best = best_of(s.scores.data() + w * stride + offset, patches, lanes);
      sum += best.value;
      if (saved) saved[w] = static_cast<Saved>(best.index);
    }
    text_to_image[text * images.items + image] = static_cast<float>(sum / words);
  }
};

template <typename Saved>
void forward(const Forward<Saved>& op, int threads) {
  const std::vector<int64_t> group = blocks_of(op.images, kForwardRows);
  // Few images (a query against many reports) leave too few groups for the threads: the texts are then divided too.
  const int64_t groups = static_cast<int64_t>(group.size()) - 1;
  const int64_t ranges = std::clamp<int64_t>((4 * threads + groups - 1) / groups, 1, op.texts.items);
  const int64_t length = (op.texts.items + ranges - 1) / ranges;
  parallel(groups * ranges, threads, [&](int64_t item) {
    thread_local typename Forward<Saved>::Scratch scratch;
    const int64_t g = item / ranges, text = item % ranges * length;
    op.run(group[g], group[g + 1], text, std::min(text + length, op.texts.items), scratch);
  });
}

// ---- backward ------------------------------------------------------------------------------------------------------

template <int K>
inline void add_scaled(float* __restrict out, const float* const* from, const float* share, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) {
    float sum = out[d];
    for (int k = 0; k < K; ++k) sum += share[k] * from[k][d];
    out[d] = sum;
  }
}

// Gradient of one side's rows. Every own row pulls the row of `other` that was its maximum, and every row of `other`
// pushes itself onto its own maximum; one thread owns an item, so the order of sums is fixed.
template <typename Saved>
struct Backward {
  Side own, other;
  int64_t dim;
  const Saved* own_best;    // [other items][own rows]
  const Saved* other_best;  // [own items][other rows]
  const float* own_grad;    // [own items][other items]
  const float* other_grad;  // [other items][own items]
  float* grad;              // laid out as own.data

  // Items [first, last), whose gradients stay in the cache while the other side streams past once.
  void run(int64_t first, int64_t last) const {
    for (int64_t o = 0; o < other.items; o += kPulls)
      for (int64_t item = first; item < last; ++item) {
        const int64_t end = std::min(o + kPulls, other.items);
        pull(item, o, end);
        for (int64_t each = o; each < end; ++each) push(item, each);
      }
  }

  // Several others at a time, so that a gradient row is read and written once for all of them.
  void pull(int64_t item, int64_t o, int64_t end) const {
    const int64_t* rows = own.rows + own.start[item];
    const int64_t size = own.size(item);
    for (int64_t r = 0; r < size; ++r) {
      const float* from[kPulls];
      float share[kPulls];
      for (int64_t k = 0; k < end - o; ++k) {
        const Saved best = own_best[(o + k) * own.total() + own.start[item] + r];
        from[k] = other.data + other.rows[other.start[o + k] + best] * dim;
        share[k] = own_grad[item * other.items + o + k] / size;
      }
      float* out = grad + rows[r] * dim;
      if (end - o == kPulls)
        add_scaled<kPulls>(out, from, share, dim);
      else
        for (int64_t k = 0; k < end - o; ++k) add_scaled<1>(out, from + k, share + k, dim);
    }
  }

  void push(int64_t item, int64_t o) const {
    const int64_t *rows = own.rows + own.start[item], *other_rows = other.rows + other.start[o];
    const int64_t size = other.size(o);
    const float share = other_grad[o * own.items + item] / size;
    const Saved* best = other_best + item * other.total() + other.start[o];
    for (int64_t r = 0; r < size; ++r) {
      const float* from = other.data + other_rows[r] * dim;
      add_scaled<1>(grad + rows[best[r]] * dim, &from, &share, dim);
    }
  }
};

template <typename Saved>
void run_forward(const Side& images, const Side& texts, int64_t dim, int threads, float* image_to_text,
                 float* text_to_image, void* word_of_patch, void* patch_of_word) {
  forward(Forward<Saved>{images, texts, dim, image_to_text, text_to_image, static_cast<Saved*>(word_of_patch),
                         static_cast<Saved*>(patch_of_word)},
          threads);
}

template <typename Saved>
void run_backward(const Side& own, const Side& other, int64_t dim, int threads, const void* own_best,
                  const void* other_best, const float* own_grad, const float* other_grad, float* grad) {
  const Backward<Saved> op{own, other, dim, static_cast<const Saved*>(own_best), static_cast<const Saved*>(other_best),
                           own_grad, other_grad, grad};
  const std::vector<int64_t> block = blocks_of(own, kBackwardRows);
  parallel(static_cast<int64_t>(block.size()) - 1, threads, [&](int64_t b) { op.run(block[b], block[b + 1]); });
}

}  // namespace

// Pointers are to contiguous memory that the caller keeps alive; `index_bytes` is 1, 2 or 4 (unsigned).
extern "C" void late_interaction_forward(const float* patches, const int64_t* patch_rows, const int64_t* patch_start,
                                         int64_t images, const float* words, const int64_t* word_rows,
                                         const int64_t* word_start, int64_t texts, int64_t dim, int threads,
                                         int index_bytes, float* image_to_text, float* text_to_image,
                                         void* word_of_patch, void* patch_of_word) {
  const Side image_side{patches, patch_rows, patch_start, images}, text_side{words, word_rows, word_start, texts};
  const auto run = index_bytes == 1   ? run_forward<uint8_t>
                   : index_bytes == 2 ? run_forward<uint16_t>
                                      : run_forward<uint32_t>;
  run(image_side, text_side, dim, threads, image_to_text, text_to_image, word_of_patch, patch_of_word);
}

// Adds one side's gradient into `grad`; call it once for images and once, roles exchanged, for texts.
extern "C" void late_interaction_backward(const float* own, const int64_t* own_rows, const int64_t* own_start,
                                          int64_t own_items, const float* other, const int64_t* other_rows,
                                          const int64_t* other_start, int64_t other_items, int64_t dim, int threads,
                                          int index_bytes, const void* own_best, const void* other_best,
                                          const float* own_grad, const float* other_grad, float* grad) {
  const Side own_side{own, own_rows, own_start, own_items}, other_side{other, other_rows, other_start, other_items};
  const auto run = index_bytes == 1   ? run_backward<uint8_t>
                   : index_bytes == 2 ? run_backward<uint16_t>
                                      : run_backward<uint32_t>;
  run(own_side, other_side, dim, threads, own_best, other_best, own_grad, other_grad, grad);
}
