// sample: greedy and drawn rows with every cut, penalty, list and mask; the same token alone and in a batch.
#include "backend/ops/sample.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

SampleRow random_row(Harness& h, bool greedy) {
  SampleRow row;
  row.seed = static_cast<uint64_t>(h.between(0, INT64_MAX - 1)) * 2 + 1;
  row.choice = static_cast<int32_t>(h.between(0, 3));
  row.position = static_cast<int32_t>(h.pick<int64_t>({0, 1, h.between(0, 1 << 20)}));
  if (h.chance(0.5)) {
    row.repetition_penalty = h.pick({1.1f, 1.5f, 0.9f});
    row.frequency_penalty = h.pick({0.0f, 0.3f, -0.5f});
    row.presence_penalty = h.pick({0.0f, 0.7f});
  }
  if (h.chance(0.4)) row.logprob_temperature = h.pick({0.7f, 2.0f, 1.3f});
  if (greedy) return row;
  row.temperature = h.pick({1.0f, 0.7f, 2.0f, 0.01f});
  if (h.chance(0.5)) row.top_k = static_cast<int32_t>(h.pick<int64_t>({1, 2, 40, 100000}));
  if (h.chance(0.5)) row.top_p = h.pick({0.0f, 0.1f, 0.9f, 0.99f});
  if (h.chance(0.4)) row.min_p = h.pick({0.05f, 0.5f, 1.0f});
  return row;
}

// A sparse list with ids of a row distinct: ids, values, offsets.
struct List {
  Guarded ids, values, offsets;
};

template <typename Value>
List random_list(Harness& h, DType dtype, int64_t rows, int64_t vocabulary,
                 const std::function<Value()>& value) {
  std::vector<int32_t> ids, starts{0};
  for (int64_t s = 0; s < rows; ++s) {
    const int64_t step = h.between(1, std::max<int64_t>(1, vocabulary / 4));
    if (!h.chance(0.2)) {
      for (int64_t id = h.between(0, step); id < vocabulary; id += step)
        ids.push_back(static_cast<int32_t>(id));
    }
    starts.push_back(static_cast<int32_t>(ids.size()));
  }
  const auto count = static_cast<int64_t>(ids.size());
  List list{{h, DType::kI32, {count}}, {h, dtype, {count}}, {h, DType::kI32, {rows + 1}}};
  for (size_t i = 0; i < ids.size(); ++i) list.ids.host_at<int32_t>(static_cast<int64_t>(i)) = ids[i];
  for (size_t i = 0; i < starts.size(); ++i)
    list.offsets.host_at<int32_t>(static_cast<int64_t>(i)) = starts[i];
  list.ids.upload();
  list.offsets.upload();
  list.values.fill(value);
  return list;
}

void compare_log(Harness& h, size_t line, float actual, double expected, int64_t row, int64_t column) {
  h.element(line, actual, expected, 0x1p-20 + 0x1p-22 * std::abs(expected), row, column);
}

// Whether the errors that the contract allows could make `id` the winner.
bool could_win(const reference::SampleTerms& terms, int32_t id, bool greedy) {
  if (id == terms.id) return true;
  if (greedy || id < 0) return false;
  const auto end = terms.by_z.begin() + static_cast<std::ptrdiff_t>(terms.kept_most);
  const auto it = std::find_if(terms.by_z.begin(), end, [&](const auto& c) { return c.id == id; });
  if (it == end) return false;
  const auto slack = [](const reference::SampleTerms::Candidate& c) {
    const double g = c.score - static_cast<double>(c.z);
    return 0x1p-20 * (1 + std::abs(g)) + kUnit * std::abs(c.score);
  };
  return std::all_of(terms.by_z.begin(), terms.by_z.begin() + static_cast<std::ptrdiff_t>(terms.kept_least),
                     [&](const auto& c) { return it->score + slack(*it) >= c.score - slack(c); });
}

// The host's and the chip's tensors of one case, kept together.
struct Case {
  Guarded logits, rows, mask, ids, logs, top_ids, top_logs;
  List history, bias;
};

void sample_case(Harness& h, size_t line, bool greedy) {
  const int64_t count = h.pick<int64_t>({0, 1, 1, 3, 17});
  const int64_t vocabulary =
      h.pick<int64_t>({1, 2, 5, 31, 32, 33, 1000, 5003, h.options().quick ? 3001 : 30011});
  const int64_t top = std::min<int64_t>(vocabulary, h.pick<int64_t>({1, 5, 20}));
  Case c{{h, DType::kF32, {count, vocabulary}, h.between(0, 5)},
         {h, DType::kU8, {count, static_cast<int64_t>(sizeof(SampleRow))}},
         {h, DType::kI32, {count, (vocabulary + 31) / 32}, h.between(0, 2)},
         {h, DType::kI32, {count}},
         {h, DType::kF32, {count}},
         {h, DType::kI32, {count, top}, h.between(0, 2)},
         {h, DType::kF32, {count, top}, h.between(0, 2)},
         random_list<int32_t>(h, DType::kI32, count, vocabulary,
                              [&] { return static_cast<int32_t>(h.between(0, 3)); }),
         random_list<float>(h, DType::kF32, count, vocabulary, [&] {
           return h.pick({h.normal(), 5.0f, -100.0f});
         })};
  // Of a model, with many equals, nearly equal, and all equal.
  const auto kind = h.pick({0, 0, 0, 1, 1, 2, 3});
  c.logits.fill([&] {
    const float value = kind == 0   ? 3 * h.normal()
                        : kind == 1 ? std::round(2 * h.normal())
                        : kind == 2 ? 100.0f + 0x1p-10f * h.normal()
                                    : 0.0f;
    return h.chance(0.02) ? -INFINITY : value;
  });
  std::vector<SampleRow> rows;
  for (int64_t s = 0; s < count; ++s) rows.push_back(random_row(h, greedy));
  if (count > 0) std::memcpy(c.rows.host().data, rows.data(), rows.size() * sizeof(SampleRow));
  c.rows.upload();
  c.mask.fill([&] { return static_cast<int32_t>(h.between(0, UINT32_MAX)); });
  if (count > 1) {  // a row with nothing left
    for (int64_t w = 0; w < c.mask.host().shape[1]; ++w) c.mask.host_at<int32_t>(w) = 0;
    c.mask.upload();
  }
  const bool history = h.chance(0.5), bias = h.chance(0.4), mask = h.chance(0.4), logs = h.chance(0.7),
             tops = h.chance(0.6);
  const auto tensors = [&](bool device) {
    const auto of = [device](const Guarded& g) { return device ? g.device() : g.host(); };
    Sample op;
    op.logits = of(c.logits), op.rows = of(c.rows), op.ids = of(c.ids);
    if (mask) op.mask = of(c.mask);
    if (history) {
      op.history_ids = of(c.history.ids), op.history_counts = of(c.history.values);
      op.history_offsets = of(c.history.offsets);
    }
    if (bias)
      op.bias_ids = of(c.bias.ids), op.bias_values = of(c.bias.values), op.bias_offsets = of(c.bias.offsets);
    if (logs) op.log_probabilities = of(c.logs);
    if (tops) op.top_ids = of(c.top_ids), op.top_log_probabilities = of(c.top_logs);
    return op;
  };
  Sample op = tensors(true);
  const Sample law = tensors(false);
  h.give_workspace(&op);
  h.chip().sample(op);
  c.logits.download(line, "logits", false);
  c.rows.download(line, "rows", false);
  c.mask.download(line, "mask", false);
  c.ids.download(line, "ids");
  c.logs.download(line, "log_probabilities", logs);
  c.top_ids.download(line, "top_ids", tops);
  c.top_logs.download(line, "top_log_probabilities", tops);
  h.law().sample(law);
  for (int64_t s = 0; s < count; ++s) {
    const reference::SampleTerms terms = reference::exact_sample(law, s);
    const int32_t id = c.ids.result_at<int32_t>(s);
    if (!could_win(terms, id, greedy)) {
      h.fail(line,
             fmt::format("row {} of {} drew {}, expected {} of {}", s, count, id, terms.id, vocabulary));
      continue;
    }
    if (logs) {
      compare_log(h, line, c.logs.result_at(s),
                  id < 0 ? -INFINITY : terms.log_softmax[static_cast<size_t>(id)], s, 0);
    }
    for (int64_t j = 0; tops && j < top; ++j) {
      const int32_t expected = c.top_ids.host_at<int32_t>(s * top + j);
      h.element(line, c.top_ids.result_at<int32_t>(s * top + j), expected, 0, s, j);
      compare_log(h, line, c.top_logs.result_at(s * top + j),
                  terms.log_softmax[static_cast<size_t>(expected)], s, j);
    }
  }
  if (count < 2) return;
  // The last row alone: the same token and bytes.
  const int64_t s = count - 1;
  Guarded id(h, DType::kI32, {1}), log(h, DType::kF32, {1});
  op.logits = op.logits.slice(s, 1), op.rows = op.rows.slice(s, 1), op.ids = id.device();
  if (mask) op.mask = op.mask.slice(s, 1);
  if (history) op.history_offsets = op.history_offsets.slice(s, 2);
  if (bias) op.bias_offsets = op.bias_offsets.slice(s, 2);
  if (logs) op.log_probabilities = log.device();
  op.top_ids = op.top_log_probabilities = {};
  h.give_workspace(&op);
  h.chip().sample(op);
  id.download(line, "ids");
  log.download(line, "log_probabilities", logs);
  const float a = log.result_at(0), b = c.logs.result_at(s);
  if (id.result_at<int32_t>(0) != c.ids.result_at<int32_t>(s) ||
      std::bit_cast<uint32_t>(a) != std::bit_cast<uint32_t>(b)) {
    h.fail(line, fmt::format("the last of {} rows alone differs", count));
  }
}

// `top`: log-probabilities of the drawn and of so many of the largest are asked for; -1: of none.
void sample_bench(Harness& h, size_t line, int64_t count, const SampleRow& row, int64_t top) {
  if (!h.benches()) return;
  constexpr int64_t kVocabulary = 151936;
  Guarded logits(h, DType::kF32, {count, kVocabulary}),
      rows(h, DType::kU8, {count, static_cast<int64_t>(sizeof(SampleRow))});
  Guarded ids(h, DType::kI32, {count}), logs(h, DType::kF32, {count});
  const int64_t listed = std::max<int64_t>(top, 1);
  Guarded top_ids(h, DType::kI32, {count, listed}), top_logs(h, DType::kF32, {count, listed});
  logits.fill([&] { return 3 * h.normal(); });
  for (int64_t s = 0; s < count; ++s)
    std::memcpy(&rows.host_at<uint8_t>(s * static_cast<int64_t>(sizeof row)), &row, sizeof row);
  rows.upload();
  Sample op;
  op.logits = logits.device(), op.rows = rows.device(), op.ids = ids.device();
  if (top >= 0) op.log_probabilities = logs.device();
  if (top > 0) op.top_ids = top_ids.device(), op.top_log_probabilities = top_logs.device();
  h.give_workspace(&op);
  const std::string cuts = row.top_k > 0 ? " top-k top-p" : row.top_p < 1 ? " top-p" : "";
  h.bench(line, fmt::format("S={} V={}{}{}", count, kVocabulary, cuts, top > 0 ? " top 20" : ""), op.bytes(),
          op.flops(), Harness::Peak::kF32, [&] { h.chip().sample(op); });
}

}  // namespace

void conform_sample(Harness& h) {
  for (const bool greedy : {true, false}) {
    const size_t line = h.line("sample", greedy ? "greedy" : "drawn");
    for (int i = 0; i < (h.options().quick ? 30 : 150); ++i)
      h.run_case(line, [&] { sample_case(h, line, greedy); });
    h.run_case(line, [&] {
      if (greedy) return sample_bench(h, line, 8, {}, 0);
      const SampleRow both{.temperature = 0.8f, .top_k = 40, .top_p = 0.95f};
      const SampleRow flat{.temperature = 1, .top_p = 0.95f};
      sample_bench(h, line, 8, both, 0);
      sample_bench(h, line, 8, flat, 0);
      sample_bench(h, line, 1, both, 20);
      sample_bench(h, line, 64, both, 0);
    });
  }
}

}  // namespace qiao::conformance
