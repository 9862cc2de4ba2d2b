// The ways back of moe_route, moe_permute and moe_combine.
#include <bit>

#include "backend/conformance/moe_cases.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

void expect_moe_row(Harness& h, size_t line, const Guarded& alone, const Guarded& all, int64_t row) {
  const int64_t columns = all.host().shape[1];
  for (int64_t c = 0; c < columns; ++c) {
    const float a = alone.result_at(c), b = all.result_at(row * columns + c);
    if (std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b)) continue;
    h.fail(line, fmt::format("row {} of {} alone differs", row, to_string(all.host())));
    return;
  }
}

void route_backward_case(Harness& h, size_t line, MoeRoute::Kind kind) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17, 33}),
                experts = h.pick<int64_t>({1, 2, 7, 16, 60, 64, 128, 256});
  const int64_t picks = h.between(1, std::min<int64_t>(experts, 10));
  Guarded logits(h, DType::kF32, {tokens, experts}, h.between(0, 5)),
      ids(h, DType::kI32, {tokens, picks}, h.between(0, 3)),
      dweights(h, DType::kF32, {tokens, picks}, h.between(0, 3)),
      dlogits(h, DType::kF32, {tokens, experts}, h.between(0, 5));
  const float spread = h.pick({0.0f, 1.0f, 10.0f, 40.0f});
  // The picks may lie so far below another expert that float32 has no exponential for them.
  const bool far = experts > picks && h.chance(0.3);
  logits.fill([&] { return spread * h.normal(); });
  // Any picks: the largest scores are no matter here.
  const int64_t step = experts % 7 == 0 ? 1 : 7;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t first = h.between(0, experts - 1);
    for (int64_t j = 0; j < picks; ++j)
      ids.host_at<int32_t>(t * picks + j) = static_cast<int32_t>((first + step * j) % experts);
    if (far) logits.host_at<float>(t * experts + (first + step * picks) % experts) = 160;
  }
  ids.upload();
  logits.upload();
  fill_activations(h, &dweights);
  MoeRouteBackward op;
  op.kind = kind;
  op.normalize = h.chance(0.5);
  op.scale = h.pick({1.0f, 2.5f, -0.125f});
  MoeRouteBackward law = op;
  law.logits = logits.host(), law.ids = ids.host(), law.dweights = dweights.host();
  law.dlogits = dlogits.host();
  op.logits = logits.device(), op.ids = ids.device(), op.dweights = dweights.device();
  op.dlogits = dlogits.device();
  h.chip().moe_route_backward(op);
  logits.download(line, "logits", false);
  ids.download(line, "ids", false);
  dweights.download(line, "dweights", false);
  dlogits.download(line, "dlogits");
  const reference::RouteGradients exact = reference::exact_route_backward(law);
  const bool sigmoid = kind == MoeRoute::Kind::kSigmoid, has_sum = !sigmoid || law.normalize;
  for (int64_t t = 0; t < tokens; ++t) {
    const double largest = largest_logit(logits, t, experts);
    double sum = 0, sum_error = 0, gradients = 0;  // A, R and that of |g|
    for (int64_t j = 0; j < picks; ++j) {
      const auto i = static_cast<size_t>(t * picks + j);
      const double below = largest - logits.host_at(t * experts + ids.host_at<int32_t>(t * picks + j));
      const double term = has_sum ? exact.picked_score[i] * exact.picked_gradient[i] : 0;
      sum += term;
      sum_error += route_weight_bound(law, below) * term;
      gradients += exact.picked_gradient[i];
    }
    for (int64_t e = 0; e < experts; ++e) {
      const auto i = static_cast<size_t>(t * experts + e);
      const double relative = route_weight_bound(law, largest - logits.host_at(t * experts + e));
      const double size = exact.gradient[i] + sum, k = static_cast<double>(picks) + 4;
      double bound = exact.score[i] * exact.factor[i] * ((relative + k * kUnit) * size + sum_error);
      if (sigmoid) bound += 17 * kUnit * exact.score[i] * (size + sum_error);
      bound += 0x1p-126 * (k * (1 + std::abs(static_cast<double>(law.scale))) + size + gradients);
      h.element(line, dlogits.result_at(t * experts + e), exact.dlogits[i], bound, t, e);
    }
  }
  if (tokens < 2) return;
  Guarded one(h, DType::kF32, {1, experts});
  op.logits = op.logits.slice(tokens - 1, 1), op.ids = op.ids.slice(tokens - 1, 1);
  op.dweights = op.dweights.slice(tokens - 1, 1), op.dlogits = one.device();
  h.chip().moe_route_backward(op);
  one.download(line, "dlogits");
  expect_moe_row(h, line, one, dlogits, tokens - 1);
}

void permute_backward_case(Harness& h, size_t line) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17, 40}), picks = h.between(1, 8),
                width = h.pick<int64_t>({1, 7, 64, 100});
  Guarded dsorted(h, DType::kF32, {tokens * picks, width}, h.between(0, 5)),
      places(h, DType::kI32, {tokens, picks}, h.between(0, 3)),
      dx(h, DType::kF32, {tokens, width}, h.between(0, 5));
  fill_activations(h, &dsorted);
  shuffle_places(h, &places);
  const bool add = h.chance(0.5);
  if (add) dx.fill([&] { return 10 * h.normal(); });
  MoePermuteBackward op{dsorted.device(), places.device(), dx.device(), add};
  const MoePermuteBackward law{dsorted.host(), places.host(), dx.host(), add};
  const reference::GradientSums exact = reference::exact_permute_backward(law);
  Guarded one(h, DType::kF32, {1, width});  // the last token, as it was
  if (add && tokens > 0) {
    for (int64_t c = 0; c < width; ++c) one.host_at(c) = dx.host_at((tokens - 1) * width + c);
    one.upload();
  }
  h.chip().moe_permute_backward(op);
  dsorted.download(line, "dsorted", false);
  places.download(line, "places", false);
  dx.download(line, "dx");
  for (int64_t i = 0; i < dx.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    const auto k = static_cast<double>(picks);
    h.element(line, dx.result_at(i), exact.sum[at], gamma(k) * exact.magnitude[at] + k * 0x1p-126, i / width,
              i % width);
  }
  if (tokens < 2) return;
  // Its rows alone, in their order.
  Guarded rows(h, DType::kF32, {picks, width}), in_order(h, DType::kI32, {1, picks});
  for (int64_t j = 0; j < picks; ++j) {
    const int64_t place = places.host_at<int32_t>((tokens - 1) * picks + j);
    for (int64_t c = 0; c < width; ++c) rows.host_at(j * width + c) = dsorted.host_at(place * width + c);
    in_order.host_at<int32_t>(j) = static_cast<int32_t>(j);
  }
  rows.upload();
  in_order.upload();
  h.chip().moe_permute_backward({rows.device(), in_order.device(), one.device(), add});
  one.download(line, "dx");
  expect_moe_row(h, line, one, dx, tokens - 1);
}

void combine_backward_case(Harness& h, size_t line) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17}), picks = h.between(1, 8),
                width = h.pick<int64_t>({1, 7, 64, 100, 300});
  Guarded dy(h, DType::kF32, {tokens, width}, h.between(0, 5)),
      sorted(h, DType::kF32, {tokens * picks, width}, h.between(0, 5)),
      places(h, DType::kI32, {tokens, picks}, h.between(0, 3)),
      weights(h, DType::kF32, {tokens, picks}, h.between(0, 3)),
      dsorted(h, DType::kF32, {tokens * picks, width}, h.between(0, 5)),
      dweights(h, DType::kF32, {tokens, picks}, h.between(0, 3));
  fill_activations(h, &dy);
  fill_activations(h, &sorted);
  weights.fill([&] { return h.normal(); });
  shuffle_places(h, &places);
  MoeCombineBackward op{dy.device(),      sorted.device(),  places.device(),
                        weights.device(), dsorted.device(), dweights.device()};
  const MoeCombineBackward law{dy.host(),      sorted.host(),  places.host(),
                               weights.host(), dsorted.host(), dweights.host()};
  h.chip().moe_combine_backward(op);
  dy.download(line, "dy", false);
  sorted.download(line, "sorted", false);
  places.download(line, "places", false);
  weights.download(line, "weights", false);
  dsorted.download(line, "dsorted");
  dweights.download(line, "dweights");
  const reference::CombineGradients exact = reference::exact_combine_backward(law);
  for (int64_t i = 0; i < tokens * picks; ++i) {
    const int64_t place = places.host_at<int32_t>(i);
    const double weight = std::abs(static_cast<double>(weights.host_at(i)));
    for (int64_t c = 0; c < width; ++c) {
      const double expected = exact.dsorted[static_cast<size_t>(place * width + c)];
      const double d = std::abs(static_cast<double>(dy.host_at(i / picks * width + c)));
      h.element(line, dsorted.result_at(place * width + c), expected,
                kUnit * std::abs(expected) + 0x1p-126 * (1 + weight + d), place, c);
    }
    const auto at = static_cast<size_t>(i);
    const auto columns = static_cast<double>(width);
    const double bound = gamma(columns + 1) * exact.dweights.magnitude[at] +
                         0x1p-126 * (columns + exact.dweights.operands[at]);
    h.element(line, dweights.result_at(i), exact.dweights.sum[at], bound, i / picks, i % picks);
  }
  if (tokens < 2) return;
  // One pick of the last token alone.
  const int64_t last = tokens * picks - 1, place = places.host_at<int32_t>(last);
  Guarded zero(h, DType::kI32, {1, 1}), row(h, DType::kF32, {1, width}), product(h, DType::kF32, {1, 1});
  zero.fill([] { return int32_t{0}; });
  h.chip().moe_combine_backward({op.dy.slice(tokens - 1, 1), op.sorted.slice(place, 1), zero.device(),
                                 op.weights.slice(tokens - 1, 1).narrow(1, picks - 1, 1), row.device(),
                                 product.device()});
  row.download(line, "dsorted");
  product.download(line, "dweights");
  expect_moe_row(h, line, row, dsorted, place);
  const float alone = product.result_at(0), among = dweights.result_at(last);
  if (std::bit_cast<uint32_t>(alone) != std::bit_cast<uint32_t>(among))
    h.fail(line, fmt::format("dweights of one pick of {} alone differs", tokens * picks));
}

}  // namespace

void conform_moe_route_backward(Harness& h) {
  for (const MoeRoute::Kind kind : {MoeRoute::Kind::kSoftmax, MoeRoute::Kind::kSigmoid}) {
    const size_t line =
        h.line("moe_route_backward", kind == MoeRoute::Kind::kSoftmax ? "softmax" : "sigmoid");
    for (int i = 0; i < (h.options().quick ? 16 : 100); ++i)
      h.run_case(line, [&] { route_backward_case(h, line, kind); });
    h.run_case(line, [&] {
      if (!h.benches()) return;
      Guarded logits(h, DType::kF32, {512, 128}), ids(h, DType::kI32, {512, 8}),
          dweights(h, DType::kF32, {512, 8}), dlogits(h, DType::kF32, {512, 128});
      logits.fill([&] { return h.normal(); });
      dweights.fill([&] { return h.normal(); });
      for (int64_t i = 0; i < ids.elements(); ++i)
        ids.host_at<int32_t>(i) = static_cast<int32_t>(i * 37 % 128);
      ids.upload();
      const MoeRouteBackward op{logits.device(), kind, true, 1.0f, ids.device(), dweights.device(),
                                dlogits.device()};
      h.bench(line, "T=512 E=128 k=8", op.bytes(), op.flops(), Harness::Peak::kF32,
              [&] { h.chip().moe_route_backward(op); });
    });
  }
}

void conform_moe_permute_backward(Harness& h) {
  const size_t line = h.line("moe_permute_backward", "F32");
  for (int i = 0; i < (h.options().quick ? 8 : 40); ++i)
    h.run_case(line, [&] { permute_backward_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded dsorted(h, DType::kF32, {2048, 2048}), places(h, DType::kI32, {256, 8}),
        dx(h, DType::kF32, {256, 2048});
    dsorted.fill([&] { return h.normal(); });
    shuffle_places(h, &places);
    const MoePermuteBackward op{dsorted.device(), places.device(), dx.device(), false};
    h.bench(line, "T=256 k=8 C=2048", op.bytes(), op.flops(), Harness::Peak::kF32,
            [&] { h.chip().moe_permute_backward(op); });
  });
}

void conform_moe_combine_backward(Harness& h) {
  const size_t line = h.line("moe_combine_backward", "F32");
  for (int i = 0; i < (h.options().quick ? 8 : 40); ++i)
    h.run_case(line, [&] { combine_backward_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded dy(h, DType::kF32, {256, 2048}), sorted(h, DType::kF32, {2048, 2048}),
        places(h, DType::kI32, {256, 8}), weights(h, DType::kF32, {256, 8}),
        dsorted(h, DType::kF32, {2048, 2048}), dweights(h, DType::kF32, {256, 8});
    for (Guarded* tensor : {&dy, &sorted, &weights}) tensor->fill([&] { return h.normal(); });
    shuffle_places(h, &places);
    const MoeCombineBackward op{dy.device(),      sorted.device(),  places.device(),
                                weights.device(), dsorted.device(), dweights.device()};
    h.bench(line, "T=256 k=8 C=2048", op.bytes(), op.flops(), Harness::Peak::kF32,
            [&] { h.chip().moe_combine_backward(op); });
  });
}

}  // namespace qiao::conformance
