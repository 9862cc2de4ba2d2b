// sum_of_squares and adamw: lengths around a vector and a run, zeros, tiny and large elements.
#include "backend/ops/optimizer.h"

#include <cmath>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

int64_t random_count(Harness& h) {
  return h.pick<int64_t>({0, 1, 15, 16, 17, 100, 4095, 4096, 4097, h.between(1, 9000), 20000});
}

// Ordinary numbers, zeros, and some whose squares underflow or nearly overflow.
float random_gradient(Harness& h) {
  if (h.chance(0.1)) return h.pick({0.0f, 1e-20f, 1e-40f, 1e-30f, 1e12f, 1e-3f}) * h.normal();
  return h.normal();
}

void squares_case(Harness& h, size_t line) {
  const int64_t count = random_count(h);
  Guarded x(h, DType::kF32, {count}), sum(h, DType::kF64, {1});
  x.fill([&] { return random_gradient(h); });
  sum.host_at<double>(0) = h.pick({0.0, 1.0, 1e9});
  sum.upload();
  const SumOfSquares op{x.device(), sum.device()}, law{x.host(), sum.host()};
  const double exact = reference::exact_sum_of_squares(law);
  h.chip().sum_of_squares(op);
  sum.download(line, "sum");
  x.download(line, "x", false);
  const int64_t runs = (count + 4095) / 4096;
  const double bound = static_cast<double>(runs + 280) * 0x1p-53 * exact;
  h.element(line, sum.result_at<double>(0), exact, bound, 0, 0);
}

void adamw_case(Harness& h, size_t line) {
  const int64_t count = random_count(h);
  const auto make = [&] { return Guarded(h, DType::kF32, {count}); };
  Guarded parameters = make(), gradients = make(), first = make(), second = make();
  parameters.fill([&] { return h.chance(0.05) ? 0.0f : h.normal(); });
  gradients.fill([&] { return random_gradient(h); });
  first.fill([&] { return h.chance(0.1) ? 0.0f : 0.1f * random_gradient(h); });
  second.fill([&] {
    const float root = 0.1f * random_gradient(h);
    return h.chance(0.1) ? 0.0f : root * root;
  });
  AdamW op;
  op.learning_rate = h.pick({1e-3, 6e-4, 0.1, 0.0});
  op.beta1 = h.pick({0.9, 0.0, 0.95});
  op.beta2 = h.pick({0.95, 0.999, 0.0});
  op.epsilon = h.pick({1e-8, 1e-5, 1e-12});
  op.weight_decay = h.pick({0.1, 0.0, 0.01});
  op.gradient_scale = h.pick({1.0, 0.37, 1e-3, -2.0});
  op.step = h.pick<int64_t>({1, 2, 10, 1000, 1000000});
  AdamW law = op;
  law.parameters = parameters.host(), law.gradients = gradients.host();
  law.first_moment = first.host(), law.second_moment = second.host();
  op.parameters = parameters.device(), op.gradients = gradients.device();
  op.first_moment = first.device(), op.second_moment = second.device();
  const reference::AdamWTerms terms = reference::exact_adamw(law);
  h.chip().adamw(op);
  parameters.download(line, "parameters");
  first.download(line, "first_moment");
  second.download(line, "second_moment");
  gradients.download(line, "gradients", false);
  constexpr double kLeast = 0x1p-124;
  const auto step = static_cast<double>(op.step);
  const double size = op.learning_rate / (1 - std::pow(op.beta1, step));
  const double root = std::sqrt(1 - std::pow(op.beta2, step));
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    h.element(line, first.result_at(i), terms.first_moment[at], gamma(5) * terms.moment_size[at] + kLeast, 0,
              i);
    h.element(line, second.result_at(i), terms.second_moment[at], gamma(8) * terms.second_moment[at] + kLeast,
              1, i);
    const double divisor = terms.divisor[at], lost = 0x1p-62 / (root * divisor);
    const double bound =
        gamma(3) * std::abs(terms.decayed[at]) +
        size * terms.moment_size[at] / divisor * ((1 + gamma(9)) / (1 - gamma(9) - lost) - 1) +
        kLeast * (1 + size / divisor);
    h.element(line, parameters.result_at(i), terms.parameters[at], bound, 2, i);
  }
}

constexpr int64_t kBenchCount = int64_t{1} << 25;  // more than a last-level cache holds

}  // namespace

void conform_sum_of_squares(Harness& h) {
  const size_t line = h.line("sum_of_squares", "F32");
  for (int i = 0; i < (h.options().quick ? 12 : 60); ++i) h.run_case(line, [&] { squares_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded x(h, DType::kF32, {kBenchCount}), sum(h, DType::kF64, {1});
    x.fill([] { return 0.5f; });
    sum.fill([] { return 0.0; });
    const SumOfSquares op{x.device(), sum.device()};
    h.bench(line, fmt::format("n={}", kBenchCount), op.bytes(), op.flops(), Harness::Peak::kNone,
            [&] { h.chip().sum_of_squares(op); });
  });
}

void conform_adamw(Harness& h) {
  const size_t line = h.line("adamw", "F32");
  for (int i = 0; i < (h.options().quick ? 12 : 60); ++i) h.run_case(line, [&] { adamw_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    const int64_t count = kBenchCount / 4;
    const auto make = [&] { return Guarded(h, DType::kF32, {count}); };
    Guarded parameters = make(), gradients = make(), first = make(), second = make();
    for (Guarded* tensor : {&parameters, &gradients, &first, &second}) tensor->fill([] { return 0.5f; });
    AdamW op;
    op.parameters = parameters.device(), op.gradients = gradients.device();
    op.first_moment = first.device(), op.second_moment = second.device();
    h.bench(line, fmt::format("n={}", count), op.bytes(), op.flops(), Harness::Peak::kF32,
            [&] { h.chip().adamw(op); });
  });
}

}  // namespace qiao::conformance
