// kv_write and attention_paged: each pages' dtype; mixed batches, windows, soft-caps, page sizes, placements.
#include "backend/ops/attention.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"
#include "tensor/half.h"

namespace qiao::conformance {
namespace {

bool has_scales(DType dtype) { return dtype == DType::kQ8_0 || dtype == DType::kF8_E4M3; }

// Whether attention may compute in kBF16 over pages of this dtype.
bool takes_bf16(DType dtype) {
  return dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF8_E4M3;
}

// A width of rows.
int64_t pick_width(Harness& h, DType dtype) {
  if (dtype == DType::kQ8_0) return h.pick<int64_t>({32, 64, 96});
  if (dtype == DType::kF8_E4M3) return h.pick<int64_t>({16, 48, 64, 80, 128, 256});
  return h.pick<int64_t>({1, 3, 16, 33, 64});
}

struct Pages {
  KvPagesSpec spec;
  std::unique_ptr<KvPages> chip, law;
};

Pages make_pages(Harness& h, const KvPagesSpec& spec) {
  return {spec, h.chip().make_kv_pages(spec), h.law().make_kv_pages(spec)};
}

// Writes rows [begin, begin + slots.size()) of k and v at these slots, on both sides.
void write(Harness& h, size_t line, const Pages& pages, const Guarded& k, const Guarded& v, int64_t begin,
           const std::vector<int32_t>& slots) {
  const auto count = static_cast<int64_t>(slots.size());
  Guarded where(h, DType::kI32, {count});
  for (int64_t i = 0; i < count; ++i) where.host_at<int32_t>(i) = slots[static_cast<size_t>(i)];
  where.upload();
  KvWrite op{k.device().slice(begin, count), v.device().slice(begin, count), where.device(),
             pages.chip.get()};
  h.chip().kv_write(op);
  where.download(line, "slots", false);
  op = {k.host().slice(begin, count), v.host().slice(begin, count), where.host(), pages.law.get()};
  h.law().kv_write(op);
}

// NaN in every slot: a kernel that lets an unseen key weigh 0 instead of not at all shows.
void poison(Harness& h, size_t line, const Pages& pages) {
  const int64_t slots = pages.spec.pages * pages.spec.page_tokens;
  Guarded nan(h, DType::kF32, {slots, pages.spec.kv_heads, pages.spec.head_dim});
  std::vector<int32_t> all(static_cast<size_t>(slots));
  std::iota(all.begin(), all.end(), 0);
  write(h, line, pages, nan, nan, 0, all);  // Guarded's canary is a NaN
}

// A batch of sequences in pages of a random order.
struct Batch {
  std::vector<int64_t> lengths, queries;
  std::vector<std::vector<int32_t>> tables;  // pages of each sequence
  int64_t tokens() const { return std::accumulate(queries.begin(), queries.end(), int64_t{0}); }
  std::vector<int32_t> slots(size_t sequence, int64_t page_tokens) const {
    std::vector<int32_t> result;
    for (int64_t j = 0; j < lengths[sequence]; ++j) {
      const int32_t page = tables[sequence][static_cast<size_t>(j / page_tokens)];
      result.push_back(static_cast<int32_t>(page * page_tokens + j % page_tokens));
    }
    return result;
  }
};

// Gives each sequence pages; returns how many pages there must be.
int64_t place(Harness& h, int64_t page_tokens, Batch* batch) {
  int64_t count = 1;  // one that nobody owns
  for (const int64_t length : batch->lengths) count += (length + page_tokens - 1) / page_tokens;
  std::vector<int32_t> pages(static_cast<size_t>(count));
  std::iota(pages.begin(), pages.end(), 0);
  for (size_t i = pages.size(); i > 1; --i) {
    std::swap(pages[i - 1], pages[static_cast<size_t>(h.between(0, static_cast<int64_t>(i) - 1))]);
  }
  size_t next = 0;
  batch->tables.clear();
  for (const int64_t length : batch->lengths) {
    const auto owned = static_cast<size_t>((length + page_tokens - 1) / page_tokens);
    batch->tables.emplace_back(pages.begin() + static_cast<std::ptrdiff_t>(next),
                               pages.begin() + static_cast<std::ptrdiff_t>(next + owned));
    next += owned;
  }
  return count;
}

// The op's index tensors on both sides.
struct Indices {
  Guarded table, lengths, starts;
  Indices(Harness& h, const Batch& batch) {
    const auto sequences = static_cast<int64_t>(batch.lengths.size());
    size_t most = 1;
    for (const auto& pages : batch.tables) most = std::max(most, pages.size());
    table = Guarded(h, DType::kI32, {sequences, static_cast<int64_t>(most)}, h.between(0, 2));
    lengths = Guarded(h, DType::kI32, {sequences});
    starts = Guarded(h, DType::kI32, {sequences + 1});
    int32_t start = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      const auto& pages = batch.tables[static_cast<size_t>(s)];
      for (size_t i = 0; i < pages.size(); ++i) {
        table.host_at<int32_t>(s * static_cast<int64_t>(most) + static_cast<int64_t>(i)) = pages[i];
      }
      lengths.host_at<int32_t>(s) = static_cast<int32_t>(batch.lengths[static_cast<size_t>(s)]);
      starts.host_at<int32_t>(s) = start;
      start += static_cast<int32_t>(batch.queries[static_cast<size_t>(s)]);
    }
    starts.host_at<int32_t>(sequences) = start;
    table.upload();
    lengths.upload();
    starts.upload();
  }
  // No page is there for what ends before the first query's window.
  void drop_unseen(const Batch& batch, int64_t window, int64_t page_tokens) {
    for (size_t s = 0; s < batch.lengths.size() && window > 0; ++s) {
      const int64_t hidden = std::max<int64_t>(0, batch.lengths[s] - batch.queries[s] - window + 1);
      const int64_t row = static_cast<int64_t>(s) * table.host().shape[1];
      for (int64_t page = 0; page < hidden / page_tokens; ++page) table.host_at<int32_t>(row + page) = -1;
    }
    table.upload();
  }
  void to(AttentionPaged* chip, AttentionPaged* law) const {
    chip->page_table = table.device(), chip->lengths = lengths.device(), chip->query_starts = starts.device();
    law->page_table = table.host(), law->lengths = lengths.host(), law->query_starts = starts.host();
  }
};

// The contract's bound (ops/attention.h) of an element, `at` of its row of heads.
double attention_bound(const AttentionPaged& law, const reference::AttentionTerms& terms, size_t at) {
  const auto heads = static_cast<size_t>(law.q.shape[1]), width = static_cast<size_t>(law.q.shape[2]);
  const size_t row = at / width;
  const double of_score = gamma(static_cast<double>(width) + 16) * terms.score[row];
  const double of_sum = gamma(2 * static_cast<double>(terms.keys[row / heads]) + 16);
  const DType dtype = law.pages->spec().dtype;
  if (law.compute == Compute::kF32 || !takes_bf16(dtype)) {
    return (std::expm1(2 * of_score) + of_sum) * terms.magnitude[at] + 0x1p-126;
  }
  const bool narrow = dtype == DType::kF16;
  const double rounding = narrow ? 0x1p-11 : 0x1p-8, tiny = narrow ? 0x1p-24 : 0;
  const double score = of_score + rounding * (terms.score[row] + of_score) + tiny * terms.spread[row];
  return (std::exp(2 * score) * (1 + rounding) * (1 + of_sum) - 1) * terms.magnitude[at] +
         tiny * terms.values[at] + 0x1p-126;
}

void compare_attention(Harness& h, size_t line, const AttentionPaged& law, const Guarded& out) {
  const reference::AttentionTerms terms = reference::exact_attention(law);
  const int64_t width = law.q.shape[2];
  for (int64_t i = 0; i < out.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    h.element(line, out.result_at(i), terms.out[at], attention_bound(law, terms, at), i / width, i % width);
  }
}

struct Heads {
  int64_t query, kv, width;
};

Heads random_heads(Harness& h, DType dtype) {
  const int64_t kv = h.pick<int64_t>({1, 2, 3, 4});
  const int64_t query = kv * h.pick<int64_t>({1, 1, 2, 4, 7});
  if (dtype == DType::kQ8_0) return {query, kv, h.pick<int64_t>({64, 64, 128, 96, 256, 32})};
  if (dtype == DType::kF8_E4M3) return {query, kv, h.pick<int64_t>({64, 128, 80, 96, 256, 16})};
  return {query, kv, h.pick<int64_t>({64, 64, 128, 80, 96, 256, 33, 8, 1})};
}

void random_rule(Harness& h, int64_t width, AttentionPaged* op) {
  op->window = h.pick<int64_t>({0, 0, 1, 7, 33});
  op->soft_cap = h.pick({0.0f, 0.0f, 2.0f, 50.0f});
  op->scale = h.pick({1.0f / std::sqrt(static_cast<float>(width)), 1.0f, 0.0f, -0.3f});
}

void attention_case(Harness& h, size_t line, DType dtype, Compute compute) {
  const Heads heads = random_heads(h, dtype);
  Batch batch;
  const int64_t longest = h.options().quick ? 70 : 300;
  for (int64_t s = h.between(1, 5); s > 0; --s) {
    batch.lengths.push_back(h.pick<int64_t>({1, 2, 15, 16, 17, 33, h.between(1, longest)}));
    const int64_t length = batch.lengths.back();
    batch.queries.push_back(h.pick<int64_t>({0, 1, 1, length, h.between(0, length)}));
  }
  KvPagesSpec spec;
  spec.page_tokens = h.pick<int64_t>({1, 5, 16, 32});
  spec.kv_heads = heads.kv;
  spec.head_dim = heads.width;
  spec.dtype = dtype;
  spec.pages = place(h, spec.page_tokens, &batch);
  const Pages pages = make_pages(h, spec);
  poison(h, line, pages);
  for (size_t s = 0; s < batch.lengths.size(); ++s) {
    Guarded k(h, DType::kF32, {batch.lengths[s], heads.kv, heads.width}, h.between(0, 3));
    Guarded v(h, DType::kF32, {batch.lengths[s], heads.kv, heads.width}, h.between(0, 3));
    const float size = h.pick({0.0f, 1.0f, 1.0f, 30.0f});
    k.fill([&] { return size * h.normal(); });
    v.fill([&] { return h.normal(); });
    write(h, line, pages, k, v, 0, batch.slots(s, spec.page_tokens));
    k.download(line, "k", false);
    v.download(line, "v", false);
  }
  Guarded q(h, DType::kF32, {batch.tokens(), heads.query, heads.width}, h.between(0, 3));
  Guarded out(h, DType::kF32, {batch.tokens(), heads.query, heads.width}, h.between(0, 3));
  q.fill([&] { return h.normal(); });
  Indices indices(h, batch);
  AttentionPaged op, law;
  random_rule(h, heads.width, &op);
  op.compute = compute;
  law = op;
  if (h.chance(0.7)) indices.drop_unseen(batch, op.window, spec.page_tokens);
  indices.to(&op, &law);
  law.q = q.host(), law.out = out.host(), law.pages = pages.law.get();
  op.q = q.device(), op.out = out.device(), op.pages = pages.chip.get();
  const bool aliased = h.chance(0.3);
  if (aliased) op.out = op.q;
  h.give_workspace(&op);
  h.chip().attention_paged(op);
  (aliased ? q : out).download(line, "out");
  if (!aliased) q.download(line, "q", false);
  compare_attention(h, line, law, aliased ? q : out);
}

// One sequence of n tokens, computed in chunks as its keys arrive, beside `others` sequences; its outputs.
std::vector<float> in_chunks(Harness& h, size_t line, const Guarded& q, const Guarded& k, const Guarded& v,
                             const KvPagesSpec& shape, const AttentionPaged& rule, int64_t chunk,
                             int64_t others) {
  const int64_t length = q.host().shape[0];
  Batch batch;
  batch.lengths.assign(static_cast<size_t>(others + 1), length);
  batch.queries.assign(batch.lengths.size(), 1);
  KvPagesSpec spec = shape;
  spec.pages = place(h, spec.page_tokens, &batch);
  const Pages pages = make_pages(h, spec);
  const auto mine = static_cast<size_t>(h.between(0, others));
  for (size_t s = 0; s < batch.lengths.size(); ++s) {
    if (s != mine) write(h, line, pages, v, k, 0, batch.slots(s, spec.page_tokens));
  }
  const std::vector<int32_t> slots = batch.slots(mine, spec.page_tokens);
  std::vector<float> outputs;
  for (int64_t begin = 0; begin < length; begin += chunk) {
    const int64_t count = std::min(chunk, length - begin);
    write(h, line, pages, k, v, begin, {slots.begin() + begin, slots.begin() + begin + count});
    batch.lengths[mine] = begin + count;
    for (size_t s = 0; s < batch.queries.size(); ++s) batch.queries[s] = s == mine ? count : h.between(0, 3);
    Indices indices(h, batch);
    indices.drop_unseen(batch, rule.window, spec.page_tokens);
    Guarded step_q(h, DType::kF32, {batch.tokens(), q.host().shape[1], q.host().shape[2]});
    Guarded out(h, DType::kF32, {batch.tokens(), q.host().shape[1], q.host().shape[2]});
    step_q.fill([&] { return h.normal(); });
    const int64_t row = q.host().shape[1] * q.host().shape[2];
    const int64_t first = indices.starts.host().as<int32_t>()[mine];
    std::memcpy(&step_q.host_at(first * row), q.host().as<float>() + begin * row,
                static_cast<size_t>(count * row) * sizeof(float));
    step_q.upload();
    AttentionPaged op = rule, unused;
    indices.to(&op, &unused);
    op.q = step_q.device(), op.out = out.device(), op.pages = pages.chip.get();
    h.give_workspace(&op);
    h.chip().attention_paged(op);
    out.download(line, "out");
    const float* result = out.result().as<float>() + first * row;
    outputs.insert(outputs.end(), result, result + count * row);
  }
  return outputs;
}

// Chunks of 1, 7, 16 and all, page sizes and placements, alone and among others: the same bytes.
void attention_invariance(Harness& h, size_t line, DType dtype, Compute compute, const Heads& heads,
                          int64_t length) {
  Guarded q(h, DType::kF32, {length, heads.query, heads.width});
  Guarded k(h, DType::kF32, {length, heads.kv, heads.width}),
      v(h, DType::kF32, {length, heads.kv, heads.width});
  for (Guarded* tensor : {&q, &k, &v}) tensor->fill([&] { return h.normal(); });
  KvPagesSpec spec{0, 16, heads.kv, heads.width, dtype};
  AttentionPaged rule;
  random_rule(h, heads.width, &rule);
  rule.compute = compute;
  const std::vector<float> whole = in_chunks(h, line, q, k, v, spec, rule, length, 0);
  for (const int64_t chunk : {int64_t{1}, int64_t{7}, int64_t{16}, length}) {
    spec.page_tokens = h.pick<int64_t>({1, 16, 32});
    const int64_t others = h.between(0, 3);
    const std::vector<float> pieces = in_chunks(h, line, q, k, v, spec, rule, chunk, others);
    if (std::memcmp(pieces.data(), whole.data(), whole.size() * sizeof(float)) != 0) {
      h.fail(
          line,
          fmt::format(
              "{} tokens in chunks of {}, pages of {}, beside {} others, window {}: differs from all at once",
              length, chunk, spec.page_tokens, others, rule.window));
    }
  }
}

void attention_bench(Harness& h, size_t line, DType dtype, Compute compute, const Heads& heads,
                     int64_t sequences, int64_t length, int64_t queries) {
  if (!h.benches()) return;
  Batch batch;
  batch.lengths.assign(static_cast<size_t>(sequences), length);
  batch.queries.assign(batch.lengths.size(), queries);
  KvPagesSpec spec{0, 32, heads.kv, heads.width, dtype};
  spec.pages = place(h, spec.page_tokens, &batch);
  const Pages pages = make_pages(h, spec);
  Guarded kv(h, DType::kF32, {length, heads.kv, heads.width});
  kv.fill([&] { return h.normal(); });
  for (size_t s = 0; s < batch.lengths.size(); ++s)
    write(h, line, pages, kv, kv, 0, batch.slots(s, spec.page_tokens));
  Guarded q(h, DType::kF32, {batch.tokens(), heads.query, heads.width});
  Guarded out(h, DType::kF32, {batch.tokens(), heads.query, heads.width});
  q.fill([&] { return h.normal(); });
  const Indices indices(h, batch);
  AttentionPaged op, unused;
  indices.to(&op, &unused);
  op.scale = 0.088f;
  op.compute = compute;
  op.q = q.device(), op.out = out.device(), op.pages = pages.chip.get();
  h.give_workspace(&op);
  const int64_t pairs = sequences * (queries * length - queries * (queries - 1) / 2);
  h.bench(line,
          fmt::format("S={} length={} queries={} H={} G={} D={}", sequences, length, queries, heads.query,
                      heads.kv, heads.width),
          op.bytes(sequences * length), op.flops(pairs),
          compute == Compute::kBF16 ? Harness::Peak::kBF16 : Harness::Peak::kF32,
          [&] { h.chip().attention_paged(op); });
}

float rounded(DType dtype, float value) {
  if (dtype == DType::kF16) return f16_to_float(float_to_f16(value));
  if (dtype == DType::kBF16) return bf16_to_float(float_to_bf16(value));
  return value;
}

// A window of one key makes attention read back the value at a slot: 16 u is far finer than the pages' dtype.
void kv_write_case(Harness& h, size_t line, DType dtype) {
  const bool scales = has_scales(dtype);
  const int64_t heads = h.between(1, 3), length = h.between(1, 40);
  const int64_t width = pick_width(h, dtype);
  Batch batch;
  batch.lengths = {length};
  batch.queries = {length};
  KvPagesSpec spec{0, h.pick<int64_t>({1, 5, 16, 32}), heads, width, dtype};
  spec.pages = place(h, spec.page_tokens, &batch);
  const Pages pages = make_pages(h, spec);
  Guarded k(h, DType::kF32, {length, heads, width}),
      v(h, DType::kF32, {length, heads, width}, h.between(0, 3));
  Guarded q(h, DType::kF32, {length, heads, width}), out(h, DType::kF32, {length, heads, width});
  k.fill([&] { return h.normal(); });
  q.fill([&] { return h.normal(); });
  // Ties of rounding, zeros, the largest F16.
  v.fill([&] {
    return h.pick(
        {h.normal(), 1 + 0x1p-11f, 1 + 3 * 0x1p-11f, 1 + 0x1p-8f, 0.0f, -65504.0f, 1e-4f * h.normal()});
  });
  write(h, line, pages, k, v, 0, batch.slots(0, spec.page_tokens));
  const Indices indices(h, batch);
  AttentionPaged op, law;
  indices.to(&op, &law);
  law.window = op.window = 1;
  law.q = q.host(), law.out = out.host(), law.pages = pages.law.get();
  op.q = q.device(), op.out = out.device(), op.pages = pages.chip.get();
  h.give_workspace(&op);
  h.chip().attention_paged(op);
  out.download(line, "out");
  const std::vector<double> kept = reference::exact_attention(law).out;
  for (int64_t i = 0; i < out.elements(); ++i) {
    const double expected = scales ? kept[static_cast<size_t>(i)] : rounded(dtype, v.host_at(i));
    h.element(line, out.result_at(i), expected, 16 * kUnit * std::abs(expected), i / width, i % width);
  }
}

// A page written by the chip is, exported, the law's page bit for bit; imported elsewhere and exported again,
// it still is.
void kv_page_case(Harness& h, size_t line, DType dtype) {
  KvPagesSpec spec{3, h.pick<int64_t>({1, 5, 16, 32}), h.between(1, 3), 0, dtype};
  spec.head_dim = pick_width(h, dtype);
  const Pages pages = make_pages(h, spec), other = make_pages(h, spec);
  const int64_t slots = spec.pages * spec.page_tokens;
  Guarded k(h, DType::kF32, {slots, spec.kv_heads, spec.head_dim}, h.between(0, 3));
  Guarded v(h, DType::kF32, {slots, spec.kv_heads, spec.head_dim});
  // Rows of zeros, ties, and numbers too small or too large for a scale.
  for (Guarded* tensor : {&k, &v}) {
    float size = 1;
    tensor->fill([&] {
      if (h.chance(0.03))
        size = h.pick({0.0f, 1.0f, 127.0f, 448.0f, 1e-6f, 1e-9f, 1e-31f, 1e-38f, 1e4f, 1e9f, 1e37f});
      return size * h.pick({h.normal(), 0.5f, -1.0f, 0.25f});
    });
  }
  std::vector<int32_t> all(static_cast<size_t>(slots));
  std::iota(all.begin(), all.end(), 0);
  int64_t begin = 0;  // in runs, so that rows come alone and in whole groups
  while (begin < slots) {
    const int64_t count = std::min(slots - begin, h.pick<int64_t>({1, 7, 16, 40}));
    write(h, line, pages, k, v, begin, {all.begin() + begin, all.begin() + begin + count});
    begin += count;
  }
  const size_t bytes = pages.chip->page_bytes();
  std::vector<std::byte> from_chip(bytes), from_law(bytes);
  for (int64_t page = 0; page < spec.pages; ++page) {
    h.chip().export_kv_page(*pages.chip, page, from_chip.data());
    h.law().export_kv_page(*pages.law, page, from_law.data());
    if (from_chip != from_law) h.fail(line, fmt::format("page {}: exported bytes are not the law's", page));
    const int64_t moved = (page + 1) % spec.pages;
    h.chip().import_kv_page(*other.chip, moved, from_law.data());
    h.chip().export_kv_page(*other.chip, moved, from_chip.data());
    if (from_chip != from_law) h.fail(line, fmt::format("page {}: imported bytes change", page));
  }
}

void kv_write_bench(Harness& h, size_t line, DType dtype) {
  if (!h.benches()) return;
  const int64_t tokens = 512;
  const Pages pages = make_pages(h, {tokens / 32, 32, 8, 128, dtype});
  Guarded k(h, DType::kF32, {tokens, 8, 128}), slots(h, DType::kI32, {tokens});
  k.fill([&] { return h.normal(); });
  for (int64_t i = 0; i < tokens; ++i) slots.host_at<int32_t>(i) = static_cast<int32_t>(i);
  slots.upload();
  const KvWrite op{k.device(), k.device(), slots.device(), pages.chip.get()};
  h.bench(line, "T=512 G=8 D=128", op.bytes(), 0, Harness::Peak::kNone, [&] { h.chip().kv_write(op); });
}

}  // namespace

void conform_kv_write(Harness& h) {
  for (const DType dtype : kPageDTypes) {
    const size_t line = h.line("kv_write", traits(dtype).name);
    for (int i = 0; i < (h.options().quick ? 6 : 40); ++i)
      h.run_case(line, [&] { kv_write_case(h, line, dtype); });
    for (int i = 0; i < (h.options().quick ? 4 : 20); ++i)
      h.run_case(line, [&] { kv_page_case(h, line, dtype); });
    h.run_case(line, [&] { kv_write_bench(h, line, dtype); });
  }
}

void conform_attention_paged(Harness& h) {
  const auto conform = [&h](DType dtype, Compute compute) {
    const size_t line =
        h.line("attention_paged", compute == Compute::kF32 ? std::string(traits(dtype).name)
                                                           : fmt::format("{} bf16", traits(dtype).name));
    const bool quick = h.options().quick;
    for (int i = 0; i < (quick ? 12 : 80); ++i) {
      h.run_case(line, [&] { attention_case(h, line, dtype, compute); });
    }
    for (int i = 0; i < (quick ? 2 : 8); ++i) {
      h.run_case(line, [&] {
        attention_invariance(h, line, dtype, compute, random_heads(h, dtype),
                             h.between(20, quick ? 40 : 150));
      });
    }
    h.run_case(line, [&] {
      const Heads small{12, 2, 128}, large{32, 8, 128};
      attention_bench(h, line, dtype, compute, small, 32, 2048, 1);  // more than a last-level cache holds
      attention_bench(h, line, dtype, compute, large, 1, 2048, 1);
      attention_bench(h, line, dtype, compute, small, 1, 512, 512);
      if (compute != Compute::kBF16 || h.measured(Harness::Peak::kBF16).per_second < 1e14) return;
      for (const int64_t length : {2048, 8192}) {
        attention_bench(h, line, dtype, compute, large, 1, length, length);
      }
    });
  };
  for (const DType dtype : kPageDTypes) conform(dtype, Compute::kF32);
  for (const DType dtype : kPageDTypes) {
    if (takes_bf16(dtype)) conform(dtype, Compute::kBF16);
  }
}

}  // namespace qiao::conformance
