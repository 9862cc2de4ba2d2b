#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace qiao::train {
namespace {

constexpr size_t kStateLine = 64;  // states begin at whole cache lines

size_t take_line(size_t& used, int64_t bytes) {
  const size_t at = used;
  used += (static_cast<size_t>(bytes) + kStateLine - 1) / kStateLine * kStateLine;
  return at;
}

int64_t blocks_of(int64_t count) { return (count + kCodeBlock - 1) / kCodeBlock; }

}  // namespace

void check_optimizer(const OptimizerSettings& s) {
  const auto need = [](bool right, std::string_view option, auto value, std::string_view expected) {
    if (!right) throw_error(ErrorKind::kInvalidInput, "--{} is {}; {} was expected", option, value, expected);
  };
  need(s.kind == "adamw" || s.kind == "muon", "optimizer", s.kind, "adamw or muon");
  need(std::isfinite(s.learning_rate) && s.learning_rate >= 0, "lr", s.learning_rate, "0 or more");
  if (const std::optional<double> rate = s.adam_learning_rate) {
    need(std::isfinite(*rate) && *rate >= 0, "adam-lr", *rate, "0 or more");
    need(s.kind == "muon", "adam-lr", *rate, "none but with --optimizer muon (AdamW's alone is --lr)");
  }
  need(s.beta1 >= 0 && s.beta1 < 1, "beta1", s.beta1, "a number from 0 to below 1");
  need(s.beta2 >= 0 && s.beta2 < 1, "beta2", s.beta2, "a number from 0 to below 1");
  need(s.weight_decay >= 0 && std::isfinite(s.weight_decay), "weight-decay", s.weight_decay, "0 or more");
  need(s.adam_states == "f32" || s.adam_states == "bf16" || s.adam_states == "8bit", "adam-states",
       s.adam_states, "f32, bf16 or 8bit");
  need(s.muon_momentum >= 0 && s.muon_momentum < 1, "muon-momentum", s.muon_momentum,
       "a number from 0 to below 1");
  need(s.muon_lr_adjust == "original" || s.muon_lr_adjust == "match_rms_adamw", "muon-lr-adjust",
       s.muon_lr_adjust, "original or match_rms_adamw");
}

std::string optimizer_warning(const OptimizerSettings& s) {
  if (s.adam_states != "bf16" || s.beta2 <= 1 - 0x1p-9) return {};
  return fmt::format(
      "--beta2 {} with --adam-states bf16: the second moment never fades, as BF16 loses changes below 1/512 "
      "of a "
      "number; 0.998 or less, or 8bit or f32 states, do",
      s.beta2);
}

Optimizer::Optimizer(Backend& backend, Parameters& parameters, const OptimizerSettings& settings,
                     std::span<const Weight* const> outer)
    : backend_(backend), parameters_(parameters), settings_(settings) {
  const DType small = settings.adam_states == "8bit"   ? DType::kU8
                      : settings.adam_states == "bf16" ? DType::kBF16
                                                       : DType::kF32;
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    const Parameters::Named& named = parameters.tensors()[i];
    if (!named.is_here || named.count == 0) continue;
    const bool is_matrix = named.weight != nullptr && std::ranges::find(outer, named.weight) == outer.end();
    const size_t begin = units_.size();
    const int64_t count = named.count / named.runs;
    for (int64_t run = 0; run < named.runs; ++run) {
      Unit unit{.tensor = i, .run = run, .is_muon = settings.kind == "muon" && is_matrix};
      // Of a tensor that is spread over ranks all of it counts: its states do not tell by how many.
      if (!unit.is_muon && named.part.whole_count() >= kLeastSmallStates) unit.kept = small;
      if (named.is_kept) take_memory(unit, count);
      units_.push_back(unit);
    }
    add_states(i, begin);
    if (!named.is_kept) units_.resize(begin);
  }
  for (const Unit& unit : units_) {
    if (!unit.is_muon) continue;
    const Parameters::Named& named = parameters.tensors()[unit.tensor];
    const int64_t columns = named.weight->columns();
    Muon op;
    op.parameters = Tensor(nullptr, DType::kF32, {named.count / named.runs / columns, columns});
    workspace_bytes_ = std::max(workspace_bytes_, backend.workspace_bytes(op));
  }
}

void Optimizer::prepare() {
  memory_ = backend_.allocate(bytes_);
  clear_memory(backend_, memory_.data(), memory_.bytes());
  workspace_ = backend_.allocate(workspace_bytes_);
}

void Optimizer::take_memory(Unit& unit, int64_t count) {
  const int64_t bytes = row_bytes(unit.kept, count);
  unit.first = take_line(bytes_, bytes);
  if (!unit.is_muon) unit.second = take_line(bytes_, bytes);
  if (unit.kept != DType::kU8) return;
  unit.first_scales = take_line(bytes_, row_bytes(DType::kF32, blocks_of(count)));
  unit.second_scales = take_line(bytes_, row_bytes(DType::kF32, blocks_of(count)));
}

// The units of one tensor lie in the same way, one behind the other.
void Optimizer::add_states(size_t tensor, size_t begin) {
  const Parameters::Named& named = parameters_.tensors()[tensor];
  const Unit& unit = units_[begin];
  const auto add = [&](std::string name, DType dtype, std::vector<int64_t> shape, int64_t count,
                       size_t Unit::*place) {
    State state{fmt::format("{}.{}", name, named.name), dtype, std::move(shape), tensor, unit.*place};
    state.run_bytes = named.is_kept ? static_cast<size_t>(row_bytes(dtype, count)) : 0;
    state.bytes = state.run_bytes * static_cast<size_t>(named.runs);
    state.stride = named.runs > 1 ? units_[begin + 1].*place - unit.*place : 0;
    states_.push_back(std::move(state));
  };
  const int64_t count = named.count / named.runs;
  add(unit.is_muon ? "momentum" : "first_moment", unit.kept, named.shape, count, &Unit::first);
  if (!unit.is_muon) add("second_moment", unit.kept, named.shape, count, &Unit::second);
  if (unit.kept == DType::kU8) {
    const int64_t blocks = blocks_of(count);
    const std::vector<int64_t> shape = {named.runs, blocks};
    add("first_moment_scales", DType::kF32, shape, blocks, &Unit::first_scales);
    add("second_moment_scales", DType::kF32, shape, blocks, &Unit::second_scales);
  }
}

Tensor Optimizer::place(size_t offset, DType dtype, int64_t count) const {
  return Tensor(static_cast<std::byte*>(memory_.data()) + offset, dtype, {count});
}

void Optimizer::adamw(const Unit& unit, double learning_rate, double gradient_scale, int64_t step) {
  const Parameters::Named& named = parameters_.tensors()[unit.tensor];
  const int64_t count = named.count / named.runs;
  AdamW op;
  op.parameters = parameters_.master(named, unit.run);
  op.gradients = parameters_.gradient(named, unit.run);
  op.first_moment = place(unit.first, unit.kept, count);
  op.second_moment = place(unit.second, unit.kept, count);
  if (unit.kept == DType::kU8) {
    op.first_scales = place(unit.first_scales, DType::kF32, blocks_of(count));
    op.second_scales = place(unit.second_scales, DType::kF32, blocks_of(count));
  }
  op.learning_rate = learning_rate;
  op.beta1 = settings_.beta1;
  op.beta2 = settings_.beta2;
  op.epsilon = settings_.epsilon;
  op.weight_decay = settings_.weight_decay;
  op.gradient_scale = gradient_scale;
  op.step = step;
  backend_.adamw(op);
}

Muon Optimizer::muon(const Unit& unit) const {
  const Parameters::Named& named = parameters_.tensors()[unit.tensor];
  const int64_t count = named.count / named.runs, columns = named.weight->columns();
  const auto matrix = [&](const Tensor& flat) {
    return Tensor(flat.data, DType::kF32, {count / columns, columns});
  };
  Muon op;
  op.parameters = matrix(parameters_.master(named, unit.run));
  op.gradients = matrix(parameters_.gradient(named, unit.run));
  op.momentum = matrix(place(unit.first, DType::kF32, count));
  op.beta = settings_.muon_momentum;
  op.weight_decay = settings_.weight_decay;
  op.adjustment = settings_.muon_lr_adjust == "match_rms_adamw" ? Muon::Adjustment::kMatchRmsAdamW
                                                                : Muon::Adjustment::kOriginal;
  return op;
}

void Optimizer::update(double learning_rate, double adam_learning_rate, double gradient_scale, int64_t step) {
  for (const Unit& unit : units_) {
    if (!unit.is_muon) {
      adamw(unit, adam_learning_rate, gradient_scale, step);
      continue;
    }
    Muon op = muon(unit);
    op.learning_rate = learning_rate;
    op.gradient_scale = gradient_scale;
    const size_t needed = backend_.workspace_bytes(op);
    if (needed > 0) op.workspace = Tensor(workspace_.data(), DType::kU8, {static_cast<int64_t>(needed)});
    backend_.muon(op);
  }
}

void Optimizer::read(const State& state, std::span<std::byte> bytes) const {
  QIAO_ASSERT(bytes.size() == state.bytes);
  for (size_t at = 0, from = state.first; at < state.bytes; at += state.run_bytes, from += state.stride)
    backend_.download(bytes.data() + at, static_cast<std::byte*>(memory_.data()) + from, state.run_bytes);
}

void Optimizer::write(const State& state, std::span<const std::byte> bytes) {
  QIAO_ASSERT(bytes.size() == state.bytes);
  for (size_t at = 0, to = state.first; at < state.bytes; at += state.run_bytes, to += state.stride)
    backend_.upload(static_cast<std::byte*>(memory_.data()) + to, bytes.data() + at, state.run_bytes);
}

}  // namespace qiao::train
