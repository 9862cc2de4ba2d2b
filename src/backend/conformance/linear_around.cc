// linear and grouped_linear with what may stand around a product: a norm before it, a gate behind it. Against
// the ops apart on the same chip, bit for bit, and against the law within what its operands make of the
// bounds.
#include <bit>
#include <numeric>
#include <utility>

#include "backend/conformance/harness.h"
#include "backend/ops/linear.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

struct AroundShape {
  int64_t tokens, rows, columns;
  bool normed, gated;
};

// Rows that no kernel has in whole tiles, and those that all have.
AroundShape around_shape(Harness& h, DType dtype, std::initializer_list<int64_t> tokens) {
  const int64_t block = std::max<int64_t>(traits(dtype).block_elements, 1);
  AroundShape shape;
  shape.tokens = h.pick(tokens);
  // Wide rows are normed in another order than others; with few of them, for time.
  const bool wide = shape.tokens > 0 && shape.tokens <= 17 && h.chance(0.3);
  const int64_t blocks = h.between(1, std::max<int64_t>(1, (wide ? 5000 : 1300) / block));
  shape.rows = 2 * h.pick<int64_t>({1, 7, 16, 33, 64, 96, 128, 160});
  shape.columns = blocks * block;
  shape.normed = h.chance(0.5);
  shape.gated = !shape.normed || h.chance(0.5);
  return shape;
}

// z missed by `of_gate` and `of_up` (a silu's, a gelu's slope is no more than 1.13).
double gated_bound(double gate, double up, double activated, double of_gate, double of_up) {
  const double most_up = std::abs(up) + of_up, most_activated = std::abs(activated) + 1.13 * of_gate;
  const double product = (std::abs(gate) + of_gate) * most_up, y = most_activated * most_up;
  return 1.13 * of_gate * most_up + most_activated * of_up + 16 * kUnit * (product + y) +
         0x1p-126 * (1 + most_up);
}

// z's exact sums and bounds, and `y` in place of them where gated.
void hold_to_law(Harness& h, size_t line, Compute compute, const reference::Products& products,
                 const std::vector<int64_t>& experts, int64_t rows, int64_t columns, const float* bias,
                 bool gated, Activation activation, const Guarded& y) {
  const auto sum_of = [&](size_t at) {
    return products.sum[at] + (bias == nullptr ? 0.0f : bias[at % rows]);
  };
  const auto bound_of = [&](size_t at) {
    const size_t t = at / static_cast<size_t>(rows), n = at % static_cast<size_t>(rows);
    const double b = bias == nullptr ? 0.0 : std::abs(static_cast<double>(bias[n]));
    return sum_bound(h.chip(), compute, columns, products.magnitude[at] + b, products.x_sum[t],
                     products.w_sum[static_cast<size_t>(experts[t] * rows) + n]) +
           kUnit * std::abs(sum_of(at));
  };
  const int64_t width = gated ? rows / 2 : rows;
  for (int64_t i = 0; i < y.elements(); ++i) {
    const int64_t t = i / width, f = i % width;
    const auto at = static_cast<size_t>(t * rows + f);
    if (!gated) {
      h.element(line, y.result_at(i), sum_of(at), bound_of(at), t, f);
      continue;
    }
    const size_t of_up = at + static_cast<size_t>(width);
    const double gate = sum_of(at), up = sum_of(of_up);
    const double activated = reference::activate(activation, 0, gate);
    h.element(line, y.result_at(i), activated * up,
              gated_bound(gate, up, activated, bound_of(at), bound_of(of_up)), t, f);
  }
}

void same_bits(Harness& h, size_t line, const Guarded& one, const Guarded& other) {
  if (!h.chip().batch_invariant()) return;
  for (int64_t i = 0; i < one.elements(); ++i) {
    const float a = one.result_at(i), b = other.result_at(i);
    if (std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b)) continue;
    h.fail(line, fmt::format("element {} is {}, by the ops apart it is {}", i, a, b));
    return;
  }
}

Activation gate_of(Harness& h) {
  return h.pick({Activation::kSilu, Activation::kSilu, Activation::kGelu, Activation::kGeluTanh});
}

void around_case(Harness& h, size_t line, DType dtype, Compute compute) {
  const AroundShape shape = around_shape(h, dtype, {0, 1, 2, 3, 8, 9, 16, 17, 33, 65, 130, 200, 300});
  const SegmentSpec segment{dtype, shape.rows};
  const WeightPair weights = make_weights(h, {&segment, 1}, shape.columns);
  const int64_t width = shape.gated ? shape.rows / 2 : shape.rows;
  Guarded x(h, DType::kF32, {shape.tokens, shape.columns}, h.between(0, 5));
  Guarded y(h, DType::kF32, {shape.tokens, width}, h.between(0, 5)),
      apart(h, DType::kF32, {shape.tokens, width});
  Guarded gamma(h, DType::kF32, {shape.columns}), bias(h, DType::kF32, {shape.rows});
  Guarded normed(h, DType::kF32, {shape.tokens, shape.columns}),
      z(h, DType::kF32, {shape.tokens, shape.rows});
  Guarded residual(h, DType::kF32, {shape.tokens, width}, h.between(0, 5));
  fill_activations(h, &x, 1e6f);
  gamma.fill([&] { return h.normal(); });
  bias.fill([&] { return h.normal(); });
  residual.fill([&] { return h.normal(); });
  const bool with_bias = h.chance(0.5), with_residual = !shape.gated && h.chance(0.5);

  Linear op;
  op.weight = weights.chip.get();
  op.compute = compute;
  op.x = x.device();
  if (with_bias) op.bias = bias.device();
  if (with_residual) op.residual = residual.device();
  op.gated = shape.gated;
  if (shape.gated) op.activation = gate_of(h);
  if (shape.normed) {
    op.norm.present = true;
    if (h.chance(0.8)) op.norm.gamma = gamma.device();
    op.norm.gamma_offset = h.pick({0.0f, 1.0f});
    op.norm.epsilon = h.pick({1e-5f, 1e-6f});
  }
  op.y = y.device();
  h.give_workspace(&op);
  h.chip().linear(op);
  x.download(line, "x", false);
  gamma.download(line, "norm.gamma", false);
  bias.download(line, "bias", false);
  y.download(line, "y");

  if (shape.normed) {
    AddRmsNorm norm;
    norm.x = x.device();
    norm.gamma = op.norm.gamma;
    norm.gamma_offset = op.norm.gamma_offset, norm.epsilon = op.norm.epsilon;
    norm.y = normed.device();
    h.chip().add_rms_norm(norm);
    normed.download(line, "normed");
  }
  Linear plain = op;
  plain.norm = {};
  plain.gated = false;
  if (shape.normed) plain.x = normed.device();
  plain.y = shape.gated ? z.device() : apart.device();
  if (shape.gated) plain.activation = Activation::kNone;
  h.give_workspace(&plain);
  h.chip().linear(plain);
  if (shape.gated) {
    z.download(line, "z");
    h.chip().gated_activation({z.device(), op.activation, apart.device()});
  }
  apart.download(line, "apart");
  same_bits(h, line, y, apart);
  if (with_residual) return;  // linear's own case holds it to the law
  const std::vector<int64_t> experts(static_cast<size_t>(shape.tokens), 0);
  const Tensor rows = shape.normed ? normed.result() : x.host();
  hold_to_law(h, line, compute, reference::exact_products(rows, *weights.law, compute, experts), experts,
              shape.rows, shape.columns, with_bias ? bias.host().as<float>() : nullptr, shape.gated,
              op.activation, y);
}

void grouped_around_case(Harness& h, size_t line, DType dtype, Compute compute) {
  const AroundShape shape = around_shape(h, dtype, {0});
  const int64_t experts = h.between(1, 6), most = h.pick<int64_t>({3, 20, 200});
  const SegmentSpec segment{dtype, shape.rows};
  const WeightPair weights = make_weights(h, {&segment, 1}, shape.columns, experts);
  Guarded counts(h, DType::kI32, {experts});
  bool first = true;
  counts.fill([&] {
    const bool none = !std::exchange(first, false) && h.chance(0.3);
    return static_cast<int32_t>(none ? 0 : h.between(2, most));
  });
  std::vector<int64_t> expert_of;
  for (int64_t e = 0; e < experts; ++e) {
    expert_of.insert(expert_of.end(), static_cast<size_t>(counts.host_at<int32_t>(e)), e);
  }
  const auto tokens = static_cast<int64_t>(expert_of.size());
  Guarded x(h, DType::kF32, {tokens, shape.columns}, h.between(0, 5));
  Guarded y(h, DType::kF32, {tokens, shape.rows / 2}, h.between(0, 5));
  Guarded z(h, DType::kF32, {tokens, shape.rows}), apart(h, DType::kF32, {tokens, shape.rows / 2});
  fill_activations(h, &x, 1e6f);
  GroupedLinear op;
  op.weight = weights.chip.get();
  op.compute = compute;
  op.x = x.device(), op.counts = counts.device(), op.y = y.device();
  op.gated = true;
  op.activation = gate_of(h);
  h.give_workspace(&op);
  h.chip().grouped_linear(op);
  x.download(line, "x", false);
  counts.download(line, "counts", false);
  y.download(line, "y");
  GroupedLinear plain = op;
  plain.gated = false, plain.activation = Activation::kNone;
  plain.y = z.device();
  h.give_workspace(&plain);
  h.chip().grouped_linear(plain);
  z.download(line, "z");
  h.chip().gated_activation({z.device(), op.activation, apart.device()});
  apart.download(line, "apart");
  same_bits(h, line, y, apart);
  hold_to_law(h, line, compute, reference::exact_products(x.host(), *weights.law, compute, expert_of),
              expert_of, shape.rows, shape.columns, nullptr, true, op.activation, y);
}

// The feed-forward's first half of a Llama of 8B at a prompt's length, where that takes no second, and as
// decoding has it.
void around_bench(Harness& h, size_t line, DType dtype, Compute compute) {
  if (!h.benches()) return;
  const bool device = h.measured(peak_of(compute)).per_second > 1e14;
  const int64_t most = device ? 2048 : 64, rows = device ? 28672 : 4096, columns = device ? 4096 : 1024;
  const SegmentSpec few{dtype, 16};
  const std::vector<std::byte> bytes = random_rows(h, few.dtype, few.rows, columns);
  std::vector<std::byte> whole;
  for (int64_t n = 0; n < rows; n += few.rows) whole.insert(whole.end(), bytes.begin(), bytes.end());
  WeightSource source;
  source.columns = columns;
  source.parts = {{dtype, rows, whole.data()}};
  const std::unique_ptr<Weight> weight = h.chip().make_weight(source);
  Guarded all(h, DType::kF32, {most, columns}), y(h, DType::kF32, {most, rows / 2});
  all.fill([&] { return h.normal(); });
  for (const int64_t tokens : {most, int64_t{8}, int64_t{1}}) {
    Linear op;
    op.weight = weight.get();
    op.compute = compute;
    op.x = all.device().slice(0, tokens);
    op.norm.present = true;
    op.gated = true, op.activation = Activation::kSilu;
    op.y = y.device().slice(0, tokens);
    h.give_workspace(&op);
    h.bench(line, fmt::format("T={} N={} K={}", tokens, rows, columns), op.bytes(), op.flops(),
            peak_of(compute), [&] { h.chip().linear(op); });
  }
}

}  // namespace

void conform_linear_around(Harness& h, DType dtype, Compute compute) {
  const size_t line = h.line("linear", fmt::format("{} {} normed, gated", traits(dtype).name, name(compute)));
  for (int i = 0; i < (h.options().quick ? 6 : 20); ++i) {
    h.run_case(line, [&] { around_case(h, line, dtype, compute); });
  }
  h.run_case(line, [&] { around_bench(h, line, dtype, compute); });
}

void conform_grouped_linear_around(Harness& h, DType dtype, Compute compute) {
  const size_t line = h.line("grouped_linear", fmt::format("{} {} gated", traits(dtype).name, name(compute)));
  for (int i = 0; i < (h.options().quick ? 2 : 8); ++i) {
    h.run_case(line, [&] { grouped_around_case(h, line, dtype, compute); });
  }
}

}  // namespace qiao::conformance
