// The CPU chip's ops of training: the same bytes for any number of threads, and over more rows than a piece.
#include <functional>

#include "cpu_test_support.h"

namespace qiao::cpu_test {
namespace {

// What `run` gives with one thread is what it gives with three.
void expect_same_for_threads(const std::function<std::vector<float>(Backend&)>& run) {
  const auto one = cpu_with(1), three = cpu_with(3);
  const std::vector<float> expected = run(*one);
  for (const float value : expected) ASSERT_TRUE(std::isfinite(value));
  EXPECT_TRUE(same_bytes(run(*three), expected));
}

TEST(CpuAttentionVarlenBackward, TheSameForAnyThreads) {
  expect_same_for_threads([](Backend& backend) {
    constexpr int64_t kTokens = 300, kHeads = 4, kGroups = 2, kDim = 20;
    auto q = normal_values(kTokens * kHeads * kDim, 1), dout = normal_values(kTokens * kHeads * kDim, 4);
    auto k = normal_values(kTokens * kGroups * kDim, 2), v = normal_values(kTokens * kGroups * kDim, 3);
    std::vector<float> out(q.size()), sums(static_cast<size_t>(kTokens * kHeads));
    std::vector<float> dq(q.size(), kNan), dk(k.size(), kNan), dv(k.size(), kNan);
    std::vector<int32_t> starts = {0, 130, 131, 300};
    AttentionVarlen forward;
    forward.q = view(q, {kTokens, kHeads, kDim}), forward.k = view(k, {kTokens, kGroups, kDim});
    forward.v = view(v, {kTokens, kGroups, kDim}), forward.out = view(out, {kTokens, kHeads, kDim});
    forward.starts = view(starts, {4}), forward.log_sum_exp = view(sums, {kTokens, kHeads});
    forward.causal = true, forward.scale = 0.2f;
    const Workspace forward_workspace(backend, &forward);
    backend.attention_varlen(forward);
    AttentionVarlenBackward op;
    op.q = forward.q, op.k = forward.k, op.v = forward.v, op.out = forward.out, op.starts = forward.starts;
    op.log_sum_exp = forward.log_sum_exp, op.causal = true, op.scale = 0.2f;
    op.dout = view(dout, {kTokens, kHeads, kDim}), op.dq = view(dq, {kTokens, kHeads, kDim});
    op.dk = view(dk, {kTokens, kGroups, kDim}), op.dv = view(dv, {kTokens, kGroups, kDim});
    const Workspace workspace(backend, &op);
    backend.attention_varlen_backward(op);
    std::vector<float> all = out;
    for (const auto* list : {&sums, &dq, &dk, &dv}) all.insert(all.end(), list->begin(), list->end());
    return all;
  });
}

TEST(CpuGroupedLinearBackward, TheSameForAnyThreads) {
  expect_same_for_threads([](Backend& backend) {
    constexpr int64_t kExperts = 5, kRows = 70, kColumns = 130, kTokens = 640;
    const auto rows = normal_values(kExperts * kRows * kColumns, 1);
    WeightSource source;
    source.experts = kExperts, source.columns = kColumns;
    for (int64_t e = 0; e < kExperts; ++e)
      source.parts.push_back(
          {DType::kF32, kRows, reinterpret_cast<const std::byte*>(rows.data() + e * kRows * kColumns)});
    const auto weight = backend.make_weight(source);
    auto dy = normal_values(kTokens * kRows, 2), x = normal_values(kTokens * kColumns, 3);
    std::vector<int32_t> counts = {3, 0, 600, 1, 36};
    std::vector<float> dx(x.size(), kNan), dw(rows.size(), 0.5f);
    GroupedLinearBackward op;
    op.dy = view(dy, {kTokens, kRows}), op.x = view(x, {kTokens, kColumns}), op.weight = weight.get();
    op.counts = view(counts, {kExperts}), op.dx = view(dx, {kTokens, kColumns});
    op.dw = view(dw, {kExperts, kRows, kColumns});
    const Workspace workspace(backend, &op);
    backend.grouped_linear_backward(op);
    dx.insert(dx.end(), dw.begin(), dw.end());
    return dx;
  });
}

TEST(CpuMoeBackward, TheSameForAnyThreads) {
  expect_same_for_threads([](Backend& backend) {
    constexpr int64_t kTokens = 500, kPicks = 3, kColumns = 70, kExperts = 8, kPlaces = kTokens * kPicks;
    auto logits = normal_values(kTokens * kExperts, 1), x = normal_values(kTokens * kColumns, 2);
    auto dy = normal_values(kTokens * kColumns, 3), sorted = normal_values(kPlaces * kColumns, 4);
    std::vector<int32_t> ids(kPlaces), places(kPlaces), counts(kExperts);
    std::vector<float> weights(kPlaces), dsorted(sorted.size(), kNan), dweights(kPlaces, kNan);
    std::vector<float> dlogits(logits.size(), kNan), dx = x;
    const Tensor ids_view = view(ids, {kTokens, kPicks}), places_view = view(places, {kTokens, kPicks});
    const Tensor weights_view = view(weights, {kTokens, kPicks}),
                 logits_view = view(logits, {kTokens, kExperts});
    MoeRoute route;
    route.logits = logits_view, route.ids = ids_view, route.weights = weights_view;
    backend.moe_route(route);
    std::vector<float> moved(sorted.size());
    backend.moe_permute({view(x, {kTokens, kColumns}), ids_view, view(moved, {kPlaces, kColumns}),
                         view(counts, {kExperts}), places_view});
    backend.moe_combine_backward({view(dy, {kTokens, kColumns}), view(sorted, {kPlaces, kColumns}),
                                  places_view, weights_view, view(dsorted, {kPlaces, kColumns}),
                                  view(dweights, {kTokens, kPicks})});
    backend.moe_permute_backward(
        {view(dsorted, {kPlaces, kColumns}), places_view, view(dx, {kTokens, kColumns}), true});
    MoeRouteBackward back;
    back.logits = logits_view, back.ids = ids_view, back.dweights = view(dweights, {kTokens, kPicks});
    back.dlogits = view(dlogits, {kTokens, kExperts});
    backend.moe_route_backward(back);
    std::vector<float> all = dx;
    for (const auto* list : {&dsorted, &dweights, &dlogits})
      all.insert(all.end(), list->begin(), list->end());
    return all;
  });
}

// More rows than are taken at once, and more than one piece of the vocabulary.
struct Logprobs {
  static constexpr int64_t kTokens = 1100, kColumns = 12, kVocabulary = 4200;
  std::vector<float> x = normal_values(kTokens * kColumns, 1);
  std::vector<float> g = normal_values(kTokens, 2);
  std::vector<int32_t> labels;
  std::unique_ptr<Weight> weight;
  std::vector<float> logprob, sums, dx, dw;

  explicit Logprobs(Backend& backend) {
    for (int64_t t = 0; t < kTokens; ++t) {
      labels.push_back(static_cast<int32_t>(t % 7 == 3 ? -1 : t * 37 % kVocabulary));
    }
    const auto rows = normal_values(kVocabulary * kColumns, 3);
    WeightSource source;
    source.columns = kColumns;
    source.parts = {{DType::kF32, kVocabulary, reinterpret_cast<const std::byte*>(rows.data())}};
    weight = backend.make_weight(source);
    logprob.assign(static_cast<size_t>(kTokens), kNan);
    sums = logprob;
    dx.assign(x.size(), kNan);
    dw.assign(static_cast<size_t>(kVocabulary * kColumns), 0.5f);
  }
  // Rows [begin, begin + count), there and back.
  void run(Backend& backend, int64_t begin, int64_t count) {
    const auto part = [&](auto& list) { return view(list, {kTokens}).slice(begin, count); };
    TokenLogprob forward;
    forward.x = view(x, {kTokens, kColumns}).slice(begin, count), forward.weight = weight.get();
    forward.labels = part(labels), forward.logprob = part(logprob), forward.log_sum_exp = part(sums);
    const Workspace forward_workspace(backend, &forward);
    backend.token_logprob(forward);
    TokenLogprobBackward op;
    op.x = forward.x, op.weight = weight.get(), op.labels = forward.labels;
    op.log_sum_exp = forward.log_sum_exp, op.dlogprob = part(g);
    op.dx = view(dx, {kTokens, kColumns}).slice(begin, count), op.dw = view(dw, {kVocabulary, kColumns});
    const Workspace workspace(backend, &op);
    backend.token_logprob_backward(op);
  }
  std::vector<float> all() const {
    std::vector<float> result = logprob;
    for (const auto* list : {&sums, &dx, &dw}) result.insert(result.end(), list->begin(), list->end());
    return result;
  }
};

TEST(CpuTokenLogprob, TheSameForAnyThreads) {
  expect_same_for_threads([](Backend& backend) {
    Logprobs logprobs(backend);
    logprobs.run(backend, 0, Logprobs::kTokens);
    return logprobs.all();
  });
}

TEST(CpuTokenLogprob, RowsInPartsAreTheSameAsAllAtOnce) {
  const auto backend = cpu_with(2);
  Logprobs whole(*backend), parts(*backend);
  whole.run(*backend, 0, Logprobs::kTokens);
  parts.run(*backend, 0, 700);
  parts.run(*backend, 700, 400);
  EXPECT_TRUE(same_bytes(parts.all(), whole.all()));
}

TEST(CpuTokenLogprob, MemoryGrowsWithNeitherTheRowsNorTheVocabulary) {
  const auto backend = cpu_with(2);
  const auto bytes = [&](int64_t tokens, int64_t vocabulary) {
    const std::vector<float> rows(static_cast<size_t>(vocabulary) * 8);
    WeightSource source;
    source.columns = 8;
    source.parts = {{DType::kF32, vocabulary, reinterpret_cast<const std::byte*>(rows.data())}};
    const auto weight = backend->make_weight(source);
    TokenLogprobBackward op;
    op.x = Tensor(nullptr, DType::kF32, {tokens, 8}), op.weight = weight.get();
    return backend->workspace_bytes(op);
  };
  EXPECT_EQ(bytes(1024, 5000), bytes(100000, 5000));
  EXPECT_EQ(bytes(1024, 5000), bytes(1024, 50000));
  EXPECT_LT(bytes(100, 5000), bytes(200, 5000));
}

TEST(CpuOptimizer, TheSameForAnyThreads) {
  expect_same_for_threads([](Backend& backend) {
    constexpr int64_t kCount = 150001;
    auto p = normal_values(kCount, 1), g = normal_values(kCount, 2), m = normal_values(kCount, 3);
    auto v = normal_values(kCount, 4);
    for (float& value : v) value *= value;
    double sum = 1;
    backend.sum_of_squares({view(g, {kCount}), Tensor(&sum, DType::kF64, {1})});
    AdamW op;
    op.parameters = view(p, {kCount}), op.gradients = view(g, {kCount});
    op.first_moment = view(m, {kCount}), op.second_moment = view(v, {kCount});
    op.step = 3;
    backend.adamw(op);
    std::vector<float> all = p;
    for (const auto* list : {&m, &v}) all.insert(all.end(), list->begin(), list->end());
    all.push_back(static_cast<float>(sum));
    all.push_back(static_cast<float>(sum - static_cast<double>(static_cast<float>(sum))));  // its last bits
    return all;
  });
}

TEST(CpuOptimizer, OfMomentsInFewerBitsTheSameForAnyThreads) {
  for (const DType kept : {DType::kBF16, DType::kU8}) {
    expect_same_for_threads([&](Backend& backend) {
      constexpr int64_t kCount = 150001, kBlocks = (kCount + kCodeBlock - 1) / kCodeBlock;
      auto p = normal_values(kCount, 1), g = normal_values(kCount, 2);
      std::vector<uint16_t> m(kCount), v(kCount);
      std::vector<float> m_scales(kBlocks), v_scales(kBlocks);
      AdamW op;
      op.parameters = view(p, {kCount}), op.gradients = view(g, {kCount});
      op.first_moment = Tensor(m.data(), kept, {kCount}), op.second_moment = Tensor(v.data(), kept, {kCount});
      if (kept == DType::kU8)
        op.first_scales = view(m_scales, {kBlocks}), op.second_scales = view(v_scales, {kBlocks});
      for (op.step = 1; op.step <= 3; ++op.step) backend.adamw(op);
      std::vector<float> all = p;
      for (const auto* list : {&m_scales, &v_scales}) all.insert(all.end(), list->begin(), list->end());
      for (const auto* list : {&m, &v}) all.insert(all.end(), list->begin(), list->end());
      return all;
    });
  }
}

TEST(CpuMuon, TheSameForAnyThreads) {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{130, 600}, {600, 130}}) {
    expect_same_for_threads([&](Backend& backend) {
      auto p = normal_values(rows * columns, 1), g = normal_values(rows * columns, 2);
      auto m = normal_values(rows * columns, 3);
      Muon op;
      op.parameters = view(p, {rows, columns}), op.gradients = view(g, {rows, columns});
      op.momentum = view(m, {rows, columns});
      const Workspace workspace(backend, &op);
      backend.muon(op);
      std::vector<float> all = p;
      all.insert(all.end(), m.begin(), m.end());
      return all;
    });
  }
}

}  // namespace
}  // namespace qiao::cpu_test
