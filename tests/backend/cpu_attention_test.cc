#include <algorithm>
#include <numeric>

#include "cpu_test_support.h"
#include "tensor/half.h"

namespace qiao::cpu_test {
namespace {

struct Shape {
  int64_t heads, kv_heads, dim;
  int64_t window = 0;
  float soft_cap = 0;
  DType dtype = DType::kF16;
};

float stored(float value, DType dtype) {
  if (dtype == DType::kF16) return f16_to_float(float_to_f16(value));
  if (dtype == DType::kBF16) return bf16_to_float(float_to_bf16(value));
  return value;
}

// Sequences of tokens whose q, k, v are known, and what attention makes of them.
struct Sequences {
  Shape shape;
  std::vector<int64_t> lengths;
  std::vector<std::vector<float>> q, k, v;  // of a sequence: [length, H or G, D]

  Sequences(const Shape& of, std::vector<int64_t> how_long) : shape(of), lengths(std::move(how_long)) {
    for (size_t s = 0; s < lengths.size(); ++s) {
      const auto seed = static_cast<uint32_t>(10 * s);
      q.push_back(normal_values(lengths[s] * shape.heads * shape.dim, seed + 1, 2.0f));
      k.push_back(normal_values(lengths[s] * shape.kv_heads * shape.dim, seed + 2));
      v.push_back(normal_values(lengths[s] * shape.kv_heads * shape.dim, seed + 3));
    }
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.dim)); }

  // Token p of sequence s, float64 throughout; *bound as the contract states it.
  std::vector<double> expected(size_t s, int64_t p, int64_t head, std::vector<double>* bound) const {
    const int64_t kv = head / (shape.heads / shape.kv_heads), dim = shape.dim;
    const int64_t from = shape.window > 0 ? std::max<int64_t>(0, p - shape.window + 1) : 0;
    const float* query = &q[s][static_cast<size_t>((p * shape.heads + head) * dim)];
    std::vector<double> scores;
    double size = 0;
    for (int64_t j = from; j <= p; ++j) {
      double dot = 0, magnitude = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double x = stored(k[s][static_cast<size_t>((j * shape.kv_heads + kv) * dim + d)], shape.dtype);
        dot += query[d] * x;
        magnitude += std::abs(query[d] * x);
      }
      double score = dot * static_cast<double>(scale());
      if (shape.soft_cap > 0) score = shape.soft_cap * std::tanh(score / shape.soft_cap);
      scores.push_back(score);
      size = std::max(size, magnitude * static_cast<double>(scale()));
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - largest);
    std::vector<double> out(static_cast<size_t>(dim)), magnitude(static_cast<size_t>(dim));
    for (int64_t j = from; j <= p; ++j) {
      for (int64_t d = 0; d < dim; ++d) {
        const double x = stored(v[s][static_cast<size_t>((j * shape.kv_heads + kv) * dim + d)], shape.dtype);
        out[static_cast<size_t>(d)] += scores[static_cast<size_t>(j - from)] / sum * x;
        magnitude[static_cast<size_t>(d)] += scores[static_cast<size_t>(j - from)] / sum * std::abs(x);
      }
    }
    const double terms = 2.0 * static_cast<double>(p - from + 1) + 16;
    const double relative = std::expm1(2 * static_cast<double>(dim + 16) * kUnit * size) + terms * kUnit;
    bound->assign(magnitude.begin(), magnitude.end());
    for (double& value : *bound) value *= relative;
    return out;
  }
};

// Runs the sequences through pages in steps: each step, each sequence takes its next `chunk` tokens. Pages
// are dealt in a shuffled order and hold NaN before they are written. Returns [length, H, D] of each
// sequence.
std::vector<std::vector<float>> run(const Sequences& sequences, int64_t page_tokens, int64_t chunk,
                                    int threads, bool alone = false) {
  const auto backend = cpu_with(threads);
  const Shape& shape = sequences.shape;
  const size_t count = sequences.lengths.size();
  const int64_t longest = *std::max_element(sequences.lengths.begin(), sequences.lengths.end());
  const int64_t columns = (longest + page_tokens - 1) / page_tokens;
  const int64_t pages = columns * static_cast<int64_t>(count) + 1;
  const auto memory = backend->make_kv_pages({pages, page_tokens, shape.kv_heads, shape.dim, shape.dtype});
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<uint32_t>(page_tokens)));
  {
    std::vector<float> garbage(static_cast<size_t>(pages * page_tokens * shape.kv_heads * shape.dim), kNan);
    std::vector<int32_t> slots(static_cast<size_t>(pages * page_tokens));
    std::iota(slots.begin(), slots.end(), 0);
    KvWrite write;
    write.k = view(garbage, {pages * page_tokens, shape.kv_heads, shape.dim});
    std::vector<float> more(garbage);
    write.v = view(more, {pages * page_tokens, shape.kv_heads, shape.dim});
    write.slots = view(slots, {pages * page_tokens});
    write.pages = memory.get();
    backend->kv_write(write);
  }
  std::vector<std::vector<float>> results;
  for (const int64_t length : sequences.lengths) {
    results.emplace_back(static_cast<size_t>(length * shape.heads * shape.dim));
  }
  std::vector<int64_t> done(count, 0);
  const auto step = [&](const std::vector<size_t>& members) {
    std::vector<float> q, k, v;
    std::vector<int32_t> table, lengths, starts{0}, slots;
    for (const size_t s : members) {
      const int64_t n = std::min(chunk, sequences.lengths[s] - done[s]);
      const auto append = [&](std::vector<float>* to, const std::vector<float>& from, int64_t width) {
        to->insert(to->end(), from.begin() + done[s] * width, from.begin() + (done[s] + n) * width);
      };
      append(&q, sequences.q[s], shape.heads * shape.dim);
      append(&k, sequences.k[s], shape.kv_heads * shape.dim);
      append(&v, sequences.v[s], shape.kv_heads * shape.dim);
      const size_t first = s * static_cast<size_t>(columns);
      for (int64_t j = done[s]; j < done[s] + n; ++j) {
        slots.push_back(static_cast<int32_t>(
            order[first + static_cast<size_t>(j / page_tokens)] * page_tokens + j % page_tokens));
      }
      const int64_t used = (done[s] + n + page_tokens - 1) / page_tokens;
      for (int64_t c = 0; c < columns; ++c) {
        table.push_back(c < used ? order[first + static_cast<size_t>(c)] : -7);
      }
      lengths.push_back(static_cast<int32_t>(done[s] + n));
      starts.push_back(starts.back() + static_cast<int32_t>(n));
    }
    const int64_t tokens = starts.back(), batch = static_cast<int64_t>(members.size());
    KvWrite write;
    write.k = view(k, {tokens, shape.kv_heads, shape.dim});
    write.v = view(v, {tokens, shape.kv_heads, shape.dim});
    write.slots = view(slots, {tokens});
    write.pages = memory.get();
    backend->kv_write(write);
    AttentionPaged op;
    op.q = op.out = view(q, {tokens, shape.heads, shape.dim});  // in place
    op.pages = memory.get();
    op.page_table = view(table, {batch, columns});
    op.lengths = view(lengths, {batch});
    op.query_starts = view(starts, {batch + 1});
    op.window = shape.window;
    op.scale = sequences.scale();
    op.soft_cap = shape.soft_cap;
    const Workspace workspace(*backend, &op);
    backend->attention_paged(op);
    const int64_t width = shape.heads * shape.dim;
    for (size_t i = 0; i < members.size(); ++i) {
      std::copy(q.begin() + starts[i] * width, q.begin() + starts[i + 1] * width,
                results[members[i]].begin() + done[members[i]] * width);
      done[members[i]] += starts[i + 1] - starts[i];
    }
  };
  while (true) {
    std::vector<size_t> members;
    for (size_t s = 0; s < count && !(alone && !members.empty()); ++s) {
      if (done[s] < sequences.lengths[s]) members.push_back(s);
    }
    if (members.empty()) return results;
    step(members);
  }
}

constexpr int64_t kAll = int64_t{1} << 20;

void expect_within_bound(const Sequences& sequences, const std::vector<std::vector<float>>& results) {
  const Shape& shape = sequences.shape;
  for (size_t s = 0; s < results.size(); ++s) {
    for (int64_t p = 0; p < sequences.lengths[s]; p += 1 + p / 40) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        std::vector<double> bound;
        const std::vector<double> expected = sequences.expected(s, p, h, &bound);
        for (int64_t d = 0; d < shape.dim; ++d) {
          const double got = results[s][static_cast<size_t>((p * shape.heads + h) * shape.dim + d)];
          const auto at = static_cast<size_t>(d);
          ASSERT_FALSE(!(std::abs(got - expected[at]) <= bound[at]))
              << "sequence " << s << " token " << p << " head " << h << " dim " << d << ": " << got
              << ", expected " << expected[at] << " within " << bound[at];
        }
      }
    }
  }
}

TEST(CpuAttention, WithinTheContractsBound) {
  for (const Shape& shape :
       {Shape{9, 3, 64}, Shape{12, 2, 128}, Shape{4, 1, 256, 100}, Shape{4, 4, 40, 0, 20.0f},
        Shape{7, 1, 33, 17, 0, DType::kF32}, Shape{2, 1, 80, 0, 0, DType::kBF16}}) {
    const Sequences sequences(shape, {150, 1, 67});
    expect_within_bound(sequences, run(sequences, 32, kAll, 2));
  }
}

TEST(CpuAttention, LongContextWithinTheContractsBound) {
  const Sequences sequences({3, 1, 16, 0, 0, DType::kF32}, {1300});
  expect_within_bound(sequences, run(sequences, 64, 700, 2));
}

TEST(CpuAttention, TwoKeysByHand) {
  // Scores ln 3 and 0: weights 3/4 and 1/4 of values 4 and 8.
  const auto backend = cpu_with(1);
  const auto pages = backend->make_kv_pages({2, 1, 1, 1, DType::kF32});
  std::vector<float> k{std::log(3.0f), 0.0f}, v{4.0f, 8.0f}, q{1.0f}, out{0.0f};
  std::vector<int32_t> slots{1, 0}, table{1, 0}, lengths{2}, starts{0, 1};
  KvWrite write;
  write.k = view(k, {2, 1, 1});
  write.v = view(v, {2, 1, 1});
  write.slots = view(slots, {2});
  write.pages = pages.get();
  backend->kv_write(write);
  AttentionPaged op;
  op.q = view(q, {1, 1, 1});
  op.out = view(out, {1, 1, 1});
  op.pages = pages.get();
  op.page_table = view(table, {1, 2});
  op.lengths = view(lengths, {1});
  op.query_starts = view(starts, {2});
  const Workspace workspace(*backend, &op);
  backend->attention_paged(op);
  EXPECT_NEAR(out[0], 5.0f, 1e-6f);
}

// The same bytes however the tokens are cut into steps, whatever the pages, the threads and the company.
TEST(CpuAttention, NothingButTheRowDecides) {
  for (const Shape& shape :
       {Shape{6, 2, 32}, Shape{4, 1, 24, 70, 30.0f, DType::kBF16}, Shape{3, 3, 16, 530, 0, DType::kF32}}) {
    const Sequences sequences(shape, {600, 40, 530});
    const auto expected = run(sequences, 16, kAll, 1);
    const auto check = [&](int64_t page_tokens, int64_t chunk, int threads, bool alone) {
      const auto results = run(sequences, page_tokens, chunk, threads, alone);
      for (size_t s = 0; s < results.size(); ++s) {
        EXPECT_TRUE(same_bytes(results[s], expected[s]))
            << "sequence " << s << ", pages of " << page_tokens << ", steps of " << chunk << ", " << threads
            << " threads";
      }
    };
    check(1, kAll, 2, false);
    check(7, 16, 1, false);
    check(32, 1, 2, false);
    check(32, 7, 2, false);
    check(64, 16, 3, false);
    check(64, 5, 2, true);
    check(48, 100, 2, true);
  }
}

TEST(CpuAttention, KeysOutsideTheWindowMayBeGarbage) {
  const Shape shape{2, 1, 16, 5, 0, DType::kF32};
  const Sequences clean(shape, {90});
  Sequences dirty(shape, {90});
  for (size_t i = 0; i < static_cast<size_t>(80 * shape.dim); ++i) dirty.k[0][i] = dirty.v[0][i] = kNan;
  const auto expected = run(clean, 16, kAll, 1)[0], got = run(dirty, 16, kAll, 1)[0];
  for (size_t i = static_cast<size_t>(84 * 2 * 16); i < got.size(); ++i) ASSERT_EQ(got[i], expected[i]) << i;
}

TEST(CpuAttention, ASequenceWithoutQueriesIsLeftAlone) {
  const auto backend = cpu_with(2);
  const auto pages = backend->make_kv_pages({1, 16, 1, 8, DType::kF16});
  std::vector<float> k = normal_values(8, 1), v = normal_values(8, 2), q = normal_values(8, 3), out(8, 0.0f);
  std::vector<int32_t> slots{0}, table{0, 0, 0}, lengths{0, 1, 1}, starts{0, 0, 1, 1};
  KvWrite write{view(k, {1, 1, 8}), view(v, {1, 1, 8}), view(slots, {1}), pages.get()};
  backend->kv_write(write);
  AttentionPaged op;
  op.q = view(q, {1, 1, 8});
  op.out = view(out, {1, 1, 8});
  op.pages = pages.get();
  op.page_table = view(table, {3, 1});
  op.lengths = view(lengths, {3});
  op.query_starts = view(starts, {4});
  const Workspace workspace(*backend, &op);
  backend->attention_paged(op);
  for (size_t d = 0; d < 8; ++d) EXPECT_EQ(out[d], f16_to_float(float_to_f16(v[d])));
}

}  // namespace
}  // namespace qiao::cpu_test
