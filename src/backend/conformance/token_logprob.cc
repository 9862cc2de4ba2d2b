// token_logprob and token_logprob_backward: plain and block formats times compute kinds, vocabularies of one
// piece and of more, weights of several parts, labels of -1; the very bits of linear and sample.
#include "backend/ops/token_logprob.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

constexpr DType kLogprobDTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_K};

// What both directions take, on both sides.
struct LogprobCase {
  const Backend* chip;
  std::vector<SegmentSpec> segments;
  WeightPair weights;
  int64_t tokens, columns, vocabulary = 0;
  Guarded x, labels;
  float temperature, soft_cap;
  Compute compute;

  LogprobCase(Harness& h, DType dtype, Compute kind, int64_t rows)
      : chip(&h.chip()), tokens(rows), compute(kind) {
    const int64_t block = traits(dtype).block_elements;
    if (h.chance(0.15)) {  // more than one piece
      columns = std::max<int64_t>(block, 8);
      segments = h.chance(0.5) ? std::vector<SegmentSpec>{{dtype, 4096 + h.between(1, 40)}}
                               : std::vector<SegmentSpec>{{dtype, 17}, {dtype, 4090}, {dtype, 70}};
    } else {
      columns = block * h.between(1, std::max<int64_t>(1, (h.options().quick ? 256 : 700) / block));
      segments = {{dtype, h.pick<int64_t>({1, 7, 32, 33, 100, 300})}};
    }
    for (const SegmentSpec& segment : segments) vocabulary += segment.rows;
    weights = make_weights(h, segments, columns);
    x = Guarded(h, DType::kF32, {tokens, columns}, h.between(0, 5));
    fill_activations(h, &x, 100.0f);
    labels = Guarded(h, DType::kI32, {tokens});
    labels.fill([&] {
      return static_cast<int32_t>(h.chance(0.2) ? -1
                                                : h.pick({h.between(0, vocabulary - 1), vocabulary - 1}));
    });
    temperature = h.pick({1.0f, 1.0f, 0.7f, 2.0f});
    soft_cap = h.pick({0.0f, 0.0f, 30.0f, 2.0f});
  }
  template <typename Op>
  void set(Op* chip, Op* law) const {
    for (Op* op : {chip, law}) {
      const bool on_chip = op == chip;
      op->x = on_chip ? x.device() : x.host();
      op->labels = on_chip ? labels.device() : labels.host();
      op->weight = on_chip ? weights.chip.get() : weights.law.get();
      op->temperature = temperature, op->soft_cap = soft_cap, op->compute = compute;
    }
  }
  // e_v: how far z_v may be off (ops/token_logprob.h, by ops/linear.h).
  double logit_bound(const reference::LogprobTerms& terms, int64_t t, int64_t v) const {
    const auto at = static_cast<size_t>(t * vocabulary + v);
    const reference::Products& products = terms.products;
    const double capped = terms.z[at] * static_cast<double>(temperature);
    double bound = sum_bound(*chip, compute, columns, products.magnitude[at],
                             products.x_sum[static_cast<size_t>(t)], products.w_sum[static_cast<size_t>(v)]);
    if (soft_cap > 0) bound += 16 * kUnit * (std::abs(products.sum[at]) + std::abs(capped));
    bound += kUnit * std::abs(capped);
    return bound / static_cast<double>(temperature) + kUnit * std::abs(terms.z[at]);
  }
};

int64_t random_loss_rows(Harness& h) { return h.pick<int64_t>({0, 1, 1, 2, 5, 16, 17, 33}); }

void logprob_case(Harness& h, size_t line, DType dtype, Compute compute) {
  const LogprobCase c(h, dtype, compute, random_loss_rows(h));
  Guarded logprob(h, DType::kF32, {c.tokens}), log_sum_exp(h, DType::kF32, {c.tokens});
  TokenLogprob op, law;
  c.set(&op, &law);
  op.logprob = logprob.device(), op.log_sum_exp = log_sum_exp.device();
  law.logprob = logprob.host(), law.log_sum_exp = log_sum_exp.host();
  h.give_workspace(&op);
  h.chip().token_logprob(op);
  logprob.download(line, "logprob");
  log_sum_exp.download(line, "log_sum_exp");
  const reference::LogprobTerms terms = reference::exact_token_logprob(law);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const auto at = static_cast<size_t>(t);
    const int32_t label = c.labels.host().as<int32_t>()[t];
    double largest = 0, own = 0;
    for (int64_t v = 0; label >= 0 && v < c.vocabulary; ++v) {
      const double bound = c.logit_bound(terms, t, v);
      largest = std::max(largest, bound);
      if (v == label) own = bound;
    }
    const auto bound = [&](double value, double moved) {
      return label < 0 ? 0 : moved + 0x1p-20 + 0x1p-22 * std::abs(value);
    };
    h.element(line, log_sum_exp.result_at(t), terms.log_sum_exp[at], bound(terms.log_sum_exp[at], largest), t,
              0);
    h.element(line, logprob.result_at(t), terms.logprob[at], bound(terms.logprob[at], own + largest), t, 1);
  }
}

// What sample says of linear's logits at the temperature, bit for bit; and of a row alone.
void logprob_bits(Harness& h, size_t line, DType dtype, Compute compute) {
  const LogprobCase c(h, dtype, compute, h.between(2, 20));
  Guarded logprob(h, DType::kF32, {c.tokens}), log_sum_exp(h, DType::kF32, {c.tokens});
  TokenLogprob op, unused;
  c.set(&op, &unused);
  op.logprob = logprob.device(), op.log_sum_exp = log_sum_exp.device();
  h.give_workspace(&op);
  h.chip().token_logprob(op);
  logprob.download(line, "logprob");

  Guarded logits(h, DType::kF32, {c.tokens, c.vocabulary});
  Linear linear;
  linear.x = op.x, linear.weight = op.weight, linear.compute = compute, linear.y = logits.device();
  if (c.soft_cap > 0) linear.activation = Activation::kSoftCap, linear.soft_cap = c.soft_cap;
  h.give_workspace(&linear);
  h.chip().linear(linear);
  logits.download(line, "logits");
  for (int64_t i = 0; i < logits.elements(); ++i) logits.host_at(i) = logits.result_at(i);
  logits.upload();
  Guarded rows(h, DType::kU8, {c.tokens, static_cast<int64_t>(sizeof(SampleRow))});
  SampleRow greedy;
  greedy.logprob_temperature = c.temperature;
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::memcpy(&rows.host_at<uint8_t>(t * static_cast<int64_t>(sizeof greedy)), &greedy, sizeof greedy);
  }
  rows.upload();
  Guarded ids(h, DType::kI32, {c.tokens}), top_ids(h, DType::kI32, {c.tokens, c.vocabulary});
  Guarded top(h, DType::kF32, {c.tokens, c.vocabulary});
  Sample sample;
  sample.logits = logits.device(), sample.rows = rows.device(), sample.ids = ids.device();
  sample.top_ids = top_ids.device(), sample.top_log_probabilities = top.device();
  h.give_workspace(&sample);
  h.chip().sample(sample);
  top_ids.download(line, "top_ids");
  top.download(line, "top_log_probabilities");
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int32_t label = c.labels.host().as<int32_t>()[t];
    const int32_t* of = top_ids.result().as<int32_t>() + t * c.vocabulary;
    const int64_t at = std::find(of, of + c.vocabulary, label) - of;
    if (label < 0) continue;
    const float said = at < c.vocabulary ? top.result_at(t * c.vocabulary + at) : NAN;
    if (std::bit_cast<uint32_t>(said) == std::bit_cast<uint32_t>(logprob.result_at(t))) continue;
    h.fail(line, fmt::format("row {}: {} is not sample's {}", t, logprob.result_at(t), said));
    return;
  }
  const int64_t row = h.between(0, c.tokens - 1);
  Guarded one(h, DType::kF32, {1}), other(h, DType::kF32, {1});
  op.x = op.x.slice(row, 1), op.labels = op.labels.slice(row, 1);
  op.logprob = one.device(), op.log_sum_exp = other.device();
  h.give_workspace(&op);
  h.chip().token_logprob(op);
  one.download(line, "logprob");
  if (std::bit_cast<uint32_t>(one.result_at(0)) != std::bit_cast<uint32_t>(logprob.result_at(row))) {
    h.fail(line, fmt::format("row {} of {} differs from the same row alone", row, c.tokens));
  }
}

void logprob_backward_case(Harness& h, size_t line, DType dtype, Compute compute, int64_t tokens) {
  LogprobCase c(h, dtype, compute, tokens);
  Guarded logprob(h, DType::kF32, {c.tokens}), log_sum_exp(h, DType::kF32, {c.tokens});
  Guarded dlogprob(h, DType::kF32, {c.tokens}), dx(h, DType::kF32, {c.tokens, c.columns}, h.between(0, 5));
  Guarded dw(h, DType::kF32, {c.vocabulary, c.columns});
  dlogprob.fill([&] { return h.chance(0.1) ? 0.0f : h.normal(); });
  dw.fill([&] { return h.normal(); });
  TokenLogprob unused, forward;
  c.set(&unused, &forward);
  forward.logprob = logprob.host(), forward.log_sum_exp = log_sum_exp.host();
  h.law().token_logprob(forward);
  log_sum_exp.upload();
  // Rows without a loss may hold anything.
  for (int64_t t = 0; t < c.tokens; ++t) {
    if (c.labels.host_at<int32_t>(t) >= 0 && dlogprob.host_at(t) != 0) continue;
    for (int64_t k = 0; k < c.columns; ++k) c.x.host_at(t * c.columns + k) = h.chance(0.5) ? NAN : 1.0f;
  }
  c.x.upload();
  TokenLogprobBackward op, law;
  c.set(&op, &law);
  op.log_sum_exp = log_sum_exp.device(), law.log_sum_exp = log_sum_exp.host();
  op.dlogprob = dlogprob.device(), law.dlogprob = dlogprob.host();
  const int64_t which = h.between(0, 3);
  const bool with_dx = which != 1, with_dw = which != 2;
  if (with_dx) op.dx = dx.device(), law.dx = dx.host();
  if (with_dw) op.dw = dw.device(), law.dw = dw.host();
  const reference::LogprobGradients exact = reference::exact_token_logprob_backward(law);
  h.give_workspace(&op);
  h.chip().token_logprob_backward(op);
  c.x.download(line, "x", false);
  dx.download(line, "dx", with_dx);
  dw.download(line, "dw", with_dw);

  // E_v of the contract, and |g / temperature|.
  std::vector<double> error(exact.h.size()), share(static_cast<size_t>(c.tokens));
  const double temperature = c.temperature;
  const bool rounded = gradient_compute(compute) == Compute::kBF16;
  for (int64_t t = 0; t < c.tokens; ++t) {
    if (c.labels.host_at<int32_t>(t) < 0 || dlogprob.host_at(t) == 0) continue;
    share[static_cast<size_t>(t)] = std::abs(static_cast<double>(dlogprob.host_at(t))) / temperature;
    const double sum = std::abs(static_cast<double>(log_sum_exp.host_at(t)));
    for (int64_t v = 0; v < c.vocabulary; ++v) {
      const auto at = static_cast<size_t>(t * c.vocabulary + v);
      const double e = c.logit_bound(exact.terms, t, v);
      const double p = std::expm1(e + 2 * kUnit * (std::abs(exact.terms.z[at]) + sum) + 8 * kUnit);
      const double moved = c.soft_cap > 0 ? 1 + e * temperature / static_cast<double>(c.soft_cap) : 1;
      error[at] = exact.size[at] * ((1 + p) * (moved * moved + 8 * kUnit) * (1 + 6 * kUnit) - 1);
      if (rounded) error[at] += 0x1p-8 * (error[at] + std::abs(exact.h[at])) + 0x1p-126;
    }
  }
  const auto compare = [&](float got, double expected, double bound, double span, int64_t row, int64_t k) {
    h.element(line, got, expected, bound + 0x1p-125 * (1 + span), row, k);
  };
  const double of_v = gamma(static_cast<double>(c.vocabulary) + 2);
  const double of_t = gamma(static_cast<double>(c.tokens) + 2);
  for (int64_t i = 0; with_dx && i < dx.elements(); ++i) {
    const int64_t t = i / c.columns, k = i % c.columns;
    double bound = 0, span = 0;
    for (int64_t v = 0; v < c.vocabulary; ++v) {
      const auto at = static_cast<size_t>(t * c.vocabulary + v);
      const double w = std::abs(exact.w[static_cast<size_t>(v * c.columns + k)]);
      bound += (error[at] * (1 + of_v) + of_v * std::abs(exact.h[at])) * w;
      span += share[static_cast<size_t>(t)] * w;
    }
    compare(dx.result_at(i), exact.dx[static_cast<size_t>(i)], bound, span, t, k);
  }
  for (int64_t i = 0; with_dw && i < dw.elements(); ++i) {
    const int64_t v = i / c.columns, k = i % c.columns;
    double bound = of_t * std::abs(static_cast<double>(dw.host_at(i))), span = 0;
    for (int64_t t = 0; t < c.tokens; ++t) {
      if (share[static_cast<size_t>(t)] == 0) continue;
      const auto at = static_cast<size_t>(t * c.vocabulary + v);
      double x = 0;
      reference::round_activations(gradient_compute(compute), &c.x.host_at(t * c.columns + k), 1, &x);
      x = std::abs(x);
      bound += (error[at] * (1 + of_t) + of_t * std::abs(exact.h[at])) * x;
      span += share[static_cast<size_t>(t)] * x;
    }
    compare(dw.result_at(i), static_cast<double>(dw.host_at(i)) + exact.dw[static_cast<size_t>(i)], bound,
            span, v, k);
  }
  // dx of a row alone.
  if (!with_dx || c.tokens == 0 || !h.chip().batch_invariant()) return;
  const int64_t row = h.between(0, c.tokens - 1);
  Guarded one(h, DType::kF32, {1, c.columns});
  op.x = op.x.slice(row, 1), op.labels = op.labels.slice(row, 1), op.dw = {}, op.dx = one.device();
  op.log_sum_exp = op.log_sum_exp.slice(row, 1), op.dlogprob = op.dlogprob.slice(row, 1);
  h.give_workspace(&op);
  h.chip().token_logprob_backward(op);
  one.download(line, "dx");
  for (int64_t k = 0; k < c.columns; ++k) {
    if (std::bit_cast<uint32_t>(one.result_at(k)) ==
        std::bit_cast<uint32_t>(dx.result_at(row * c.columns + k))) {
      continue;
    }
    h.fail(line, fmt::format("dx of row {} of {} differs from the same row alone", row, c.tokens));
    return;
  }
}

// The very bits of the two ops that it is made of, which have cases of their own.
void loss_case(Harness& h, size_t line, DType dtype, Compute compute, int64_t tokens) {
  LogprobCase c(h, dtype, compute, tokens);
  Guarded logprob(h, DType::kF32, {c.tokens}), log_sum_exp(h, DType::kF32, {c.tokens});
  Guarded dlogprob(h, DType::kF32, {c.tokens}), dx(h, DType::kF32, {c.tokens, c.columns}, h.between(0, 5));
  Guarded dw(h, DType::kF32, {c.vocabulary, c.columns});
  Guarded logprob2(h, DType::kF32, {c.tokens}), log_sum_exp2(h, DType::kF32, {c.tokens});
  Guarded dx2(h, DType::kF32, {c.tokens, c.columns}), dw2(h, DType::kF32, {c.vocabulary, c.columns});
  dlogprob.fill([&] { return h.chance(0.1) ? 0.0f : h.normal(); });
  dw.fill([&] { return h.normal(); });
  for (int64_t i = 0; i < dw.elements(); ++i) dw2.host_at(i) = dw.host_at(i);
  dw2.upload();
  const bool with_dw = h.chance(0.7);
  TokenLoss op, apart;
  c.set(&op, &apart);
  op.dlogprob = dlogprob.device(), op.logprob = logprob.device(), op.log_sum_exp = log_sum_exp.device();
  op.dx = dx.device();
  if (with_dw) op.dw = dw.device();
  h.give_workspace(&op);
  h.chip().token_loss(op);
  c.x.download(line, "x", false);
  apart = op;
  apart.logprob = logprob2.device(), apart.log_sum_exp = log_sum_exp2.device(), apart.dx = dx2.device();
  if (with_dw) apart.dw = dw2.device();
  TokenLogprob forward = apart.forward();
  h.give_workspace(&forward);
  h.chip().token_logprob(forward);
  TokenLogprobBackward backward = apart.backward();
  h.give_workspace(&backward);
  h.chip().token_logprob_backward(backward);
  const auto same = [&](std::string_view name, Guarded& one, Guarded& two, bool written) {
    one.download(line, name, written);
    two.download(line, name, written);
    for (int64_t i = 0; written && i < one.elements(); ++i) {
      const float a = one.result_at(i), b = two.result_at(i);
      // A row without a slope adds zeros, of whichever sign.
      h.element(line, static_cast<double>(a), static_cast<double>(b), 0, i, 0);
    }
  };
  same("logprob", logprob, logprob2, true);
  same("log_sum_exp", log_sum_exp, log_sum_exp2, true);
  same("dx", dx, dx2, true);
  same("dw", dw, dw2, with_dw);
}

// The head of a small model.
struct LogprobBench {
  std::unique_ptr<Weight> weight;
  Guarded x, labels, logprob, log_sum_exp;

  LogprobBench(Harness& h, int64_t tokens, int64_t vocabulary, int64_t columns) {
    const std::vector<std::byte> few = random_rows(h, DType::kF32, 64, columns);
    std::vector<std::byte> whole;
    for (int64_t v = 0; v < vocabulary; v += 64) whole.insert(whole.end(), few.begin(), few.end());
    WeightSource source;
    source.columns = columns;
    source.parts = {{DType::kF32, vocabulary, whole.data()}};
    weight = h.chip().make_weight(source);
    x = Guarded(h, DType::kF32, {tokens, columns});
    labels = Guarded(h, DType::kI32, {tokens});
    logprob = Guarded(h, DType::kF32, {tokens}), log_sum_exp = Guarded(h, DType::kF32, {tokens});
    x.fill([&] { return h.normal(); });
    labels.fill([&] { return static_cast<int32_t>(h.between(0, vocabulary - 1)); });
    logprob.fill([] { return 1.0f; });
    log_sum_exp.fill([&] { return std::log(static_cast<float>(vocabulary)); });
  }
  template <typename Op>
  void set(Op* op) const {
    op->x = x.device(), op->weight = weight.get(), op->labels = labels.device();
    op->log_sum_exp = log_sum_exp.device();
  }
};

constexpr int64_t kBenchTokens = 256, kBenchVocabulary = 32768, kBenchColumns = 576;

template <typename Case>
void each_logprob_line(Harness& h, std::string_view op, Case body) {
  for (const DType dtype : kLogprobDTypes) {
    for (const Compute compute : computes_of(dtype)) {
      body(h.line(op, fmt::format("{} {}", traits(dtype).name, name(compute))), dtype, compute);
    }
  }
}

}  // namespace

void conform_token_logprob(Harness& h) {
  const bool quick = h.options().quick;
  each_logprob_line(h, "token_logprob", [&](size_t line, DType dtype, Compute compute) {
    for (int i = 0; i < (quick ? 5 : 25); ++i) {
      h.run_case(line, [&] { logprob_case(h, line, dtype, compute); });
    }
    for (int i = 0; i < (quick ? 2 : 8); ++i) {
      if (h.chip().batch_invariant()) h.run_case(line, [&] { logprob_bits(h, line, dtype, compute); });
    }
    h.run_case(line, [&] {
      if (!h.benches() || dtype != DType::kF32) return;
      const LogprobBench b(h, kBenchTokens, kBenchVocabulary, kBenchColumns);
      TokenLogprob op;
      b.set(&op);
      op.logprob = b.logprob.device();
      h.give_workspace(&op);
      h.bench(line, fmt::format("T={} V={} C={}", kBenchTokens, kBenchVocabulary, kBenchColumns), op.bytes(),
              op.flops(), Harness::Peak::kF32, [&] { h.chip().token_logprob(op); });
    });
  });
}

void conform_token_logprob_backward(Harness& h) {
  const bool quick = h.options().quick;
  each_logprob_line(h, "token_logprob_backward", [&](size_t line, DType dtype, Compute compute) {
    for (int i = 0; i < (quick ? 5 : 25); ++i) {
      const int64_t tokens = i == 0 ? 17 : random_loss_rows(h);
      h.run_case(line, [&] { logprob_backward_case(h, line, dtype, compute, tokens); });
    }
    h.run_case(line, [&] {
      if (!h.benches() || dtype != DType::kF32) return;
      const LogprobBench b(h, kBenchTokens, kBenchVocabulary, kBenchColumns);
      Guarded dx(h, DType::kF32, {kBenchTokens, kBenchColumns});
      Guarded dw(h, DType::kF32, {kBenchVocabulary, kBenchColumns});
      dw.fill([] { return 0.0f; });
      TokenLogprobBackward op;
      b.set(&op);
      op.dlogprob = b.logprob.device(), op.dx = dx.device(), op.dw = dw.device();
      h.give_workspace(&op);
      h.bench(line, fmt::format("T={} V={} C={}", kBenchTokens, kBenchVocabulary, kBenchColumns), op.bytes(),
              op.flops(), Harness::Peak::kF32, [&] { h.chip().token_logprob_backward(op); });
    });
  });
}

void conform_token_loss(Harness& h) {
  const bool quick = h.options().quick;
  each_logprob_line(h, "token_loss", [&](size_t line, DType dtype, Compute compute) {
    for (int i = 0; i < (quick ? 8 : 20); ++i) {
      const int64_t tokens = i == 0 ? 70 : random_loss_rows(h);
      h.run_case(line, [&] { loss_case(h, line, dtype, compute, tokens); });
    }
    h.run_case(line, [&] {
      if (!h.benches() || dtype != DType::kF32) return;
      const LogprobBench b(h, kBenchTokens, kBenchVocabulary, kBenchColumns);
      Guarded dx(h, DType::kF32, {kBenchTokens, kBenchColumns}), dlogprob(h, DType::kF32, {kBenchTokens});
      Guarded dw(h, DType::kF32, {kBenchVocabulary, kBenchColumns});
      dw.fill([] { return 0.0f; });
      dlogprob.fill([] { return -1.0f / kBenchTokens; });
      TokenLoss op;
      b.set(&op);
      op.logprob = b.logprob.device(), op.dlogprob = dlogprob.device();
      op.dx = dx.device(), op.dw = dw.device();
      h.give_workspace(&op);
      h.bench(line, fmt::format("T={} V={} C={}", kBenchTokens, kBenchVocabulary, kBenchColumns), op.bytes(),
              op.flops(), Harness::Peak::kF32, [&] { h.chip().token_loss(op); });
    });
  });
}

}  // namespace qiao::conformance
