// moe_route, moe_permute and moe_combine.
#include "backend/ops/moe.h"

#include <algorithm>
#include <cstring>

#include "backend/conformance/moe_cases.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

void route_case(Harness& h, size_t line, MoeRoute::Kind kind) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17, 33}),
                experts = h.pick<int64_t>({1, 2, 7, 16, 60, 64, 128, 256});
  const int64_t picks = h.between(1, std::min<int64_t>(experts, 10));
  Guarded logits(h, DType::kF32, {tokens, experts}, h.between(0, 5));
  Guarded ids(h, DType::kI32, {tokens, picks}, h.between(0, 3)),
      weights(h, DType::kF32, {tokens, picks}, h.between(0, 3));
  const float spread = h.pick({0.0f, 1.0f, 10.0f});
  const bool coarse = h.chance(0.4);  // many equal logits
  logits.fill([&] { return coarse ? std::round(spread * h.normal()) : spread * h.normal(); });
  MoeRoute op;
  op.kind = kind;
  op.normalize = h.chance(0.5);
  op.scale = h.pick({1.0f, 2.5f});
  MoeRoute law = op;
  law.logits = logits.host(), law.ids = ids.host(), law.weights = weights.host();
  op.logits = logits.device(), op.ids = ids.device(), op.weights = weights.device();
  h.chip().moe_route(op);
  logits.download(line, "logits", false);
  ids.download(line, "ids");
  weights.download(line, "weights");
  std::vector<int32_t> picked;
  for (int64_t i = 0; i < ids.elements(); ++i) {
    picked.push_back(ids.result_at<int32_t>(i));
    if (picked.back() < 0 || picked.back() >= experts) {
      h.fail(line, fmt::format("token {} has expert {} of {}", i / picks, picked.back(), experts));
      return;
    }
  }
  const std::vector<double> scores = reference::exact_scores(law);
  const std::vector<double> exact = reference::exact_route_weights(law, scores, picked.data());
  h.law().moe_route(law);
  for (int64_t t = 0; t < tokens; ++t) {
    const double largest = largest_logit(logits, t, experts);
    for (int64_t j = 0; j < picks; ++j) {
      const auto i = static_cast<size_t>(t * picks + j);
      for (int64_t other = 0; other < j; ++other) {
        if (picked[i] == picked[static_cast<size_t>(t * picks + other)])
          h.fail(line, fmt::format("token {} has expert {} twice", t, picked[i]));
      }
      const double logit = logits.host_at(t * experts + picked[i]);
      const double relative = route_weight_bound(law, largest - logit);
      const double expected = exact[i];
      h.element(line, weights.result_at(static_cast<int64_t>(i)), expected,
                relative * std::abs(expected) + 0x1p-126, t, j);
      const int32_t best = ids.host_at<int32_t>(static_cast<int64_t>(i));
      // Another pick than the law's must have the law's score to within both errors.
      const double mine = scores[static_cast<size_t>(t * experts + picked[i])];
      const double his = scores[static_cast<size_t>(t * experts + best)];
      if (!(std::abs(mine - his) <= 2 * relative * his + 0x1p-125)) {
        h.fail(line, fmt::format("token {} pick {} is expert {} ({}), expected {} ({})", t, j, picked[i],
                                 mine, best, his));
      }
      // Of equal logits the smaller expert comes first.
      for (int32_t e = 0; e < picked[i]; ++e) {
        if (static_cast<double>(logits.host_at(t * experts + e)) != logit) continue;
        const auto begin = picked.begin() + t * picks;
        if (std::find(begin, begin + j, e) == begin + j) {
          h.fail(line, fmt::format("token {} has expert {} before {} of the same logit", t, picked[i], e));
        }
      }
    }
  }
}

void permute_case(Harness& h, size_t line) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17, 32, 40, 150});
  const int64_t experts = h.pick<int64_t>({1, 4, 16, 60, 300});
  const int64_t picks = h.between(1, std::min<int64_t>(experts, 8));
  const int64_t width = h.pick<int64_t>({1, 7, 64, 100, 1100});
  Guarded x(h, DType::kF32, {tokens, width}, h.between(0, 5)),
      ids(h, DType::kI32, {tokens, picks}, h.between(0, 3));
  fill_activations(h, &x, 1e30f);
  const int64_t used = h.between(std::min<int64_t>(picks, experts), experts);  // the rest have no rows
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t first = h.between(0, used - 1);
    for (int64_t j = 0; j < picks; ++j)
      ids.host_at<int32_t>(t * picks + j) = static_cast<int32_t>((first + j) % used);
  }
  ids.upload();
  Guarded sorted(h, DType::kF32, {tokens * picks, width}, h.between(0, 5)), counts(h, DType::kI32, {experts});
  Guarded places(h, DType::kI32, {tokens, picks}, h.between(0, 3));
  MoePermute op{x.device(), ids.device(), sorted.device(), counts.device(), places.device(), {}};
  h.give_workspace(&op);
  h.chip().moe_permute(op);
  x.download(line, "x", false);
  ids.download(line, "ids", false);
  sorted.download(line, "sorted");
  counts.download(line, "counts");
  places.download(line, "places");
  h.law().moe_permute({x.host(), ids.host(), sorted.host(), counts.host(), places.host(), {}});
  for (int64_t i = 0; i < sorted.elements(); ++i) {
    h.element(line, sorted.result_at(i), sorted.host_at(i), 0, i / width, i % width);
  }
  for (int64_t e = 0; e < experts; ++e)
    h.element(line, counts.result_at<int32_t>(e), counts.host_at<int32_t>(e), 0, e, 0);
  for (int64_t i = 0; i < places.elements(); ++i) {
    h.element(line, places.result_at<int32_t>(i), places.host_at<int32_t>(i), 0, i / picks, i % picks);
  }
}

void combine_case(Harness& h, size_t line) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17}), picks = h.between(1, 8),
                width = h.pick<int64_t>({1, 7, 64, 100});
  Guarded sorted(h, DType::kF32, {tokens * picks, width}, h.between(0, 5));
  Guarded places(h, DType::kI32, {tokens, picks}, h.between(0, 3)),
      weights(h, DType::kF32, {tokens, picks}, h.between(0, 3));
  Guarded residual(h, DType::kF32, {tokens, width}, h.between(0, 5)),
      y(h, DType::kF32, {tokens, width}, h.between(0, 5));
  fill_activations(h, &sorted);
  residual.fill([&] { return h.normal(); });
  weights.fill([&] { return h.normal(); });
  shuffle_places(h, &places);
  const bool with_residual = h.chance(0.6), aliased = with_residual && h.chance(0.5);
  MoeCombine law{sorted.host(), places.host(), weights.host(), {}, y.host()};
  MoeCombine op{sorted.device(), places.device(), weights.device(), {}, y.device()};
  if (with_residual) law.residual = residual.host(), op.residual = residual.device();
  if (aliased) op.y = residual.device();
  h.chip().moe_combine(op);
  sorted.download(line, "sorted", false);
  places.download(line, "places", false);
  weights.download(line, "weights", false);
  (aliased ? residual : y).download(line, "y");
  const std::vector<double> exact = reference::exact_combine(law);
  for (int64_t i = 0; i < y.elements(); ++i) {
    const int64_t t = i / width, c = i % width;
    double magnitude = with_residual ? std::abs(residual.host_at(i)) : 0.0;
    for (int64_t j = 0; j < picks; ++j) {
      magnitude +=
          std::abs(static_cast<double>(weights.host_at(t * picks + j)) *
                   static_cast<double>(sorted.host_at(places.host_at<int32_t>(t * picks + j) * width + c)));
    }
    const double bound =
        gamma(static_cast<double>(picks) + 1) * magnitude + 0x1p-126 * static_cast<double>(picks + 1);
    h.element(line, (aliased ? residual : y).result_at(i), exact[static_cast<size_t>(i)], bound, t, c);
  }
}

}  // namespace

void conform_moe_route(Harness& h) {
  for (const MoeRoute::Kind kind : {MoeRoute::Kind::kSoftmax, MoeRoute::Kind::kSigmoid}) {
    const size_t line = h.line("moe_route", kind == MoeRoute::Kind::kSoftmax ? "softmax" : "sigmoid");
    for (int i = 0; i < (h.options().quick ? 16 : 100); ++i)
      h.run_case(line, [&] { route_case(h, line, kind); });
    h.run_case(line, [&] {
      if (!h.benches()) return;
      Guarded logits(h, DType::kF32, {512, 128}), ids(h, DType::kI32, {512, 8}),
          weights(h, DType::kF32, {512, 8});
      logits.fill([&] { return h.normal(); });
      const MoeRoute op{logits.device(), kind, true, 1.0f, ids.device(), weights.device()};
      h.bench(line, "T=512 E=128 k=8", op.bytes(), op.flops(), Harness::Peak::kF32,
              [&] { h.chip().moe_route(op); });
    });
  }
}

void conform_moe_permute(Harness& h) {
  const size_t line = h.line("moe_permute", "F32");
  for (int i = 0; i < (h.options().quick ? 8 : 40); ++i) h.run_case(line, [&] { permute_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded x(h, DType::kF32, {256, 2048}), ids(h, DType::kI32, {256, 8}),
        sorted(h, DType::kF32, {2048, 2048});
    Guarded counts(h, DType::kI32, {128}), places(h, DType::kI32, {256, 8});
    x.fill([&] { return h.normal(); });
    for (int64_t i = 0; i < ids.elements(); ++i) ids.host_at<int32_t>(i) = static_cast<int32_t>(i * 37 % 128);
    ids.upload();
    MoePermute op{x.device(), ids.device(), sorted.device(), counts.device(), places.device(), {}};
    h.give_workspace(&op);
    h.bench(line, "T=256 k=8 E=128 C=2048", op.bytes(), 0, Harness::Peak::kNone,
            [&] { h.chip().moe_permute(op); });
  });
}

void conform_moe_combine(Harness& h) {
  const size_t line = h.line("moe_combine", "F32");
  for (int i = 0; i < (h.options().quick ? 8 : 40); ++i) h.run_case(line, [&] { combine_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded sorted(h, DType::kF32, {2048, 2048}), places(h, DType::kI32, {256, 8}),
        weights(h, DType::kF32, {256, 8});
    Guarded y(h, DType::kF32, {256, 2048});
    sorted.fill([&] { return h.normal(); });
    weights.fill([&] { return h.normal(); });
    for (int64_t i = 0; i < 2048; ++i) places.host_at<int32_t>(i) = static_cast<int32_t>(i * 1021 % 2048);
    places.upload();
    const MoeCombine op{sorted.device(), places.device(), weights.device(), {}, y.device()};
    h.bench(line, "T=256 k=8 C=2048", op.bytes(), op.flops(), Harness::Peak::kF32,
            [&] { h.chip().moe_combine(op); });
  });
}

}  // namespace qiao::conformance
