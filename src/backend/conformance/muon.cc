// muon: wide, tall and square matrices, momentum that cancels, zeros, tiny and large gradients.
#include "backend/ops/muon.h"

#include <cmath>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

void muon_case(Harness& h, size_t line) {
  // Beyond some dozens of rows the bound says nothing (ops/muon.h); the sum's other dimension may be longer
  // than what kernels pack at a time.
  int64_t rows = h.pick<int64_t>({1, 2, 7, 16, 17, h.between(1, 33)});
  int64_t columns = h.pick<int64_t>({1, 16, 65, h.between(1, 130), 700});
  if (columns == 700) rows = std::min<int64_t>(rows, 8);
  if (h.chance(0.5)) std::swap(rows, columns);
  const auto make = [&] { return Guarded(h, DType::kF32, {rows, columns}); };
  Guarded parameters = make(), gradients = make(), momentum = make();
  const float size = h.pick({1.0f, 1e-3f, 1e-12f, 1e8f, 0.0f});
  parameters.fill([&] { return h.chance(0.05) ? 0.0f : h.normal(); });
  gradients.fill([&] { return h.chance(0.05) ? 0.0f : size * h.normal(); });
  momentum.fill([&] { return h.chance(0.1) ? 0.0f : h.pick({size, 0.1f * size}) * h.normal(); });
  Muon op;
  op.learning_rate = h.pick({0.02, 1e-3, 0.5, 0.0});
  op.beta = h.pick({0.95, 0.9, 0.0});
  op.weight_decay = h.pick({0.1, 0.0, 0.01});
  op.nesterov = h.chance(0.7);
  op.adjustment = h.pick({Muon::Adjustment::kOriginal, Muon::Adjustment::kMatchRmsAdamW});
  op.gradient_scale = h.pick({1.0, 0.37, -2.0});
  Muon law = op;
  law.parameters = parameters.host(), law.gradients = gradients.host(), law.momentum = momentum.host();
  op.parameters = parameters.device(), op.gradients = gradients.device(), op.momentum = momentum.device();
  const reference::MuonTerms terms = reference::exact_muon(law);
  h.give_workspace(&op);
  h.chip().muon(op);
  parameters.download(line, "parameters");
  momentum.download(line, "momentum");
  gradients.download(line, "gradients", false);
  constexpr double kLeast = 0x1p-124;
  for (int64_t i = 0; i < rows * columns; ++i) {
    const auto at = static_cast<size_t>(i);
    h.element(line, momentum.result_at(i), terms.momentum[at], gamma(5) * terms.momentum_size[at] + kLeast,
              i / columns, i % columns);
    const double bound =
        gamma(3) * std::abs(terms.decayed[at]) +
        op.step_size() * (gamma(3) * std::abs(terms.orthogonal[at]) + 1.01 * terms.orthogonal_error) + kLeast;
    h.element(line, parameters.result_at(i), terms.parameters[at], bound, rows + i / columns, i % columns);
  }
}

}  // namespace

void conform_muon(Harness& h) {
  const size_t line = h.line("muon", "F32");
  for (int i = 0; i < (h.options().quick ? 16 : 80); ++i) h.run_case(line, [&] { muon_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    constexpr int64_t kRows = 576, kColumns = 1536;
    const auto make = [&] { return Guarded(h, DType::kF32, {kRows, kColumns}); };
    Guarded parameters = make(), gradients = make(), momentum = make();
    for (Guarded* tensor : {&parameters, &gradients, &momentum}) tensor->fill([&] { return h.normal(); });
    Muon op;
    op.parameters = parameters.device(), op.gradients = gradients.device(), op.momentum = momentum.device();
    h.give_workspace(&op);
    h.bench(line, fmt::format("N={} K={}", kRows, kColumns), op.bytes(), op.flops(), Harness::Peak::kF32,
            [&] { h.chip().muon(op); });
  });
}

}  // namespace qiao::conformance
