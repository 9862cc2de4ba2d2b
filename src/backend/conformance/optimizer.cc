// sum_of_squares, accumulate and adamw: lengths around a vector and a run, zeros, tiny and large elements.
#include "backend/ops/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"
#include "tensor/half.h"

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

void accumulate_case(Harness& h, size_t line) {
  const int64_t count = random_count(h);
  Guarded x(h, DType::kF32, {count}), sum(h, DType::kF32, {count});
  x.fill([&] { return random_gradient(h); });
  sum.fill([&] { return random_gradient(h); });
  h.chip().accumulate({x.device(), sum.device()});
  x.download(line, "x", false);
  sum.download(line, "sum");
  for (int64_t i = 0; i < count; ++i) {
    const double exact = static_cast<double>(sum.host_at(i)) + static_cast<double>(x.host_at(i));
    h.element(line, sum.result_at(i), static_cast<double>(static_cast<float>(exact)), 0, 0, i);
  }
}

// A moment on both sides, whatever it is kept in.
class MomentPair {
 public:
  Guarded values, scales;

  MomentPair(Harness& h, DType dtype, int64_t count)
      : values(h, dtype, {count}), harness_(h), codes_(signed_codes()), dtype_(dtype) {
    if (dtype == DType::kU8) scales = Guarded(h, DType::kF32, {(count + kCodeBlock - 1) / kCodeBlock});
  }
  template <typename Make>
  void fill(const DynamicCodes& of, Make make) {
    codes_ = of;
    if (dtype_ == DType::kF32) return values.fill(make);
    if (dtype_ == DType::kBF16) return values.fill([&] { return float_to_bf16(make()); });
    scales.fill([&] { return harness_.chance(0.1) ? 0.0f : std::abs(make()); });
    values.fill([&] { return static_cast<uint8_t>(harness_.between(0, 255)); });
  }
  void download(size_t line, std::string_view name) {
    values.download(line, name);
    if (dtype_ == DType::kU8) scales.download(line, name);
  }

  // Holds what the chip kept to `exact`, which is within bounds[i] before it is rounded.
  void hold(size_t line, const std::vector<double>& exact, const std::vector<double>& bounds,
            int64_t row) const {
    for (int64_t first = 0; first < std::ssize(exact); first += kCodeBlock) {
      const int64_t end = std::min<int64_t>(first + kCodeBlock, std::ssize(exact));
      double largest = 0, slack = 0;
      for (int64_t i = first; i < end; ++i) {
        largest = std::max(largest, std::abs(exact[static_cast<size_t>(i)]));
        slack = std::max(slack, bounds[static_cast<size_t>(i)]);
      }
      if (dtype_ == DType::kU8)
        harness_.element(line, scales.result_at(first / kCodeBlock), largest, slack, row + 10, first);
      for (int64_t i = first; i < end; ++i) {
        const double value = exact[static_cast<size_t>(i)], bound = bounds[static_cast<size_t>(i)];
        if (dtype_ == DType::kF32) {
          harness_.element(line, values.result_at(i), value, bound, row, i);
        } else if (dtype_ == DType::kBF16) {
          const double rounding = 0x1p-8 * (std::abs(value) + bound);
          harness_.element(line, bf16_to_float(values.result_at<uint16_t>(i)), value, bound + rounding, row,
                           i);
        } else {
          const double scale = scales.result_at(first / kCodeBlock);
          const double kept = static_cast<double>(codes_.value[values.result_at<uint8_t>(i)]) * scale;
          const double rounding = scale > 0 ? scale * (width_at(value / scale, bound / scale) + gamma(4)) : 0;
          harness_.element(line, kept, value, bound + rounding, row, i);
        }
      }
    }
  }

 private:
  // The error of the nearest code of what is within `bound` of x: half the widest of the gaps thereabouts.
  double width_at(double x, double bound) const {
    const auto code = [&](double at) {
      return static_cast<int>(codes_.code_of(static_cast<float>(std::clamp(at, -1.0, 1.0))));
    };
    double width = 0;
    for (int c = std::max(code(x - bound) - 1, 0); c < std::min(code(x + bound) + 1, 255); ++c) {
      const auto at = static_cast<size_t>(c);
      width = std::max(
          width, (static_cast<double>(codes_.value[at + 1]) - static_cast<double>(codes_.value[at])) / 2);
      if (codes_.value[at] == 0 && codes_.value[0] == 0) width = static_cast<double>(codes_.value[1]);
    }
    return width;
  }

  Harness& harness_;
  DynamicCodes codes_;
  DType dtype_;
};

void adamw_case(Harness& h, size_t line, DType kept) {
  const int64_t count = random_count(h);
  Guarded parameters(h, DType::kF32, {count}), gradients(h, DType::kF32, {count});
  MomentPair first(h, kept, count), second(h, kept, count);
  parameters.fill([&] { return h.chance(0.05) ? 0.0f : h.normal(); });
  gradients.fill([&] { return random_gradient(h); });
  first.fill(signed_codes(), [&] { return h.chance(0.1) ? 0.0f : 0.1f * random_gradient(h); });
  second.fill(unsigned_codes(), [&] {
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
  law.first_moment = first.values.host(), law.second_moment = second.values.host();
  op.parameters = parameters.device(), op.gradients = gradients.device();
  op.first_moment = first.values.device(), op.second_moment = second.values.device();
  if (kept == DType::kU8) {
    law.first_scales = first.scales.host(), law.second_scales = second.scales.host();
    op.first_scales = first.scales.device(), op.second_scales = second.scales.device();
  }
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
  std::vector<double> first_bounds, second_bounds;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    first_bounds.push_back(gamma(5) * terms.moment_size[at] + kLeast);
    second_bounds.push_back(gamma(8) * terms.second_moment[at] + kLeast);
    const double divisor = terms.divisor[at], lost = 0x1p-62 / (root * divisor);
    const double bound =
        gamma(3) * std::abs(terms.decayed[at]) +
        size * terms.moment_size[at] / divisor * ((1 + gamma(9)) / (1 - gamma(9) - lost) - 1) +
        kLeast * (1 + size / divisor);
    h.element(line, parameters.result_at(i), terms.parameters[at], bound, 2, i);
  }
  first.hold(line, terms.first_moment, first_bounds, 0);
  second.hold(line, terms.second_moment, second_bounds, 1);
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

void conform_accumulate(Harness& h) {
  const size_t line = h.line("accumulate", "F32");
  for (int i = 0; i < (h.options().quick ? 12 : 60); ++i) h.run_case(line, [&] { accumulate_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded x(h, DType::kF32, {kBenchCount}), sum(h, DType::kF32, {kBenchCount});
    x.fill([] { return 0.5f; });
    sum.fill([] { return 0.5f; });
    const Accumulate op{x.device(), sum.device()};
    h.bench(line, fmt::format("n={}", kBenchCount), op.bytes(), op.flops(), Harness::Peak::kNone,
            [&] { h.chip().accumulate(op); });
  });
}

void conform_adamw(Harness& h) {
  for (const DType kept : {DType::kF32, DType::kBF16, DType::kU8}) {
    const size_t line = h.line("adamw", fmt::format("moments of {}", traits(kept).name));
    for (int i = 0; i < (h.options().quick ? 12 : 60); ++i)
      h.run_case(line, [&] { adamw_case(h, line, kept); });
    h.run_case(line, [&] {
      if (!h.benches()) return;
      const int64_t count = kBenchCount / 4;
      Guarded parameters(h, DType::kF32, {count}), gradients(h, DType::kF32, {count});
      parameters.fill([] { return 0.5f; });
      gradients.fill([&] { return h.normal(); });
      MomentPair first(h, kept, count), second(h, kept, count);
      first.fill(signed_codes(), [&] { return h.normal(); });
      second.fill(unsigned_codes(), [&] { return std::abs(h.normal()); });
      AdamW op;
      op.parameters = parameters.device(), op.gradients = gradients.device();
      op.first_moment = first.values.device(), op.second_moment = second.values.device();
      if (kept == DType::kU8)
        op.first_scales = first.scales.device(), op.second_scales = second.scales.device();
      h.bench(line, fmt::format("n={}", count), op.bytes(), op.flops(), Harness::Peak::kF32,
              [&] { h.chip().adamw(op); });
    });
  }
}

}  // namespace qiao::conformance
