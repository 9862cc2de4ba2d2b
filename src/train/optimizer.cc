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

// Whether it is a layer's matrix.
bool is_muons(const OptimizerSettings& settings, std::span<const Weight* const> outer,
              const Parameters::Named& tensor) {
  return settings.kind == "muon" && tensor.weight != nullptr &&
         std::ranges::find(outer, tensor.weight) == outer.end();
}

// What AdamW's moments of it are kept in.
DType kept_in(const OptimizerSettings& settings, const Parameters::Named& tensor) {
  // Of a tensor that is spread over ranks all of it counts: its states do not tell by how many.
  if (tensor.part.whole_count() < kLeastSmallStates || settings.adam_states == "f32") return DType::kF32;
  return settings.adam_states == "8bit" ? DType::kU8 : DType::kBF16;
}

}  // namespace

// A product of N x K with K x N for each of Newton and Schulz's: beside those nothing counts.
int64_t whole_step_cost(const OptimizerSettings& settings, std::span<const Weight* const> outer,
                        const Parameters::Named& tensor) {
  const int64_t count = tensor.runs * tensor.part.whole_count();
  if (is_muons(settings, outer, tensor))
    return count * std::min(tensor.part.whole_rows, tensor.part.whole_columns);
  return kept_in(settings, tensor) == DType::kU8 ? count : 0;
}

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
                     std::span<const Weight* const> outer, const Ranks* ranks)
    : backend_(backend),
      parameters_(parameters),
      settings_(settings),
      first_units_(parameters.tensors().size()) {
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    const Parameters::Named& named = parameters.tensors()[i];
    if (!named.is_here || named.step_count() == 0) continue;
    const size_t begin = first_units_[i] = units_.size();
    for (int64_t run = 0; run < named.runs; ++run) {
      Unit unit{.tensor = i, .run = run, .is_muon = is_muons(settings, outer, named)};
      if (!unit.is_muon) unit.kept = kept_in(settings, named);
      if (named.is_kept) take_memory(unit, named.step_count());
      units_.push_back(unit);
    }
    add_states(i, begin);
    if (!named.is_kept) units_.resize(begin);
  }
  for (const Unit& unit : units_) {
    if (!unit.is_muon) continue;
    const Muon op = muon_of(parameters.tensors()[unit.tensor]);
    workspace_bytes_ = std::max(workspace_bytes_, backend.workspace_bytes(op));
  }
  if (ranks != nullptr && ranks->group().size() > 1) joined_.emplace(backend, parameters, *ranks);
}

void Optimizer::prepare() {
  memory_ = backend_.allocate(bytes_);
  clear_memory(backend_, memory_.data(), memory_.bytes());
  workspace_ = backend_.allocate(workspace_bytes_);
  if (joined_) joined_->prepare();
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
                       int64_t whole_count, size_t Unit::*place) {
    State state{fmt::format("{}.{}", name, named.name), dtype, std::move(shape), tensor, unit.*place};
    state.run_bytes = named.is_kept ? static_cast<size_t>(row_bytes(dtype, count)) : 0;
    state.bytes = state.run_bytes * static_cast<size_t>(named.runs);
    state.whole_bytes = static_cast<size_t>(named.runs * row_bytes(dtype, whole_count));
    state.stride = named.runs > 1 ? units_[begin + 1].*place - unit.*place : 0;
    states_.push_back(std::move(state));
  };
  const int64_t count = named.step_count(), whole = named.part.whole_count();
  add(unit.is_muon ? "momentum" : "first_moment", unit.kept, named.shape, count, whole, &Unit::first);
  if (!unit.is_muon) add("second_moment", unit.kept, named.shape, count, whole, &Unit::second);
  if (unit.kept == DType::kU8) {
    const int64_t blocks = blocks_of(count);
    const std::vector<int64_t> shape = {named.runs, blocks};
    add("first_moment_scales", DType::kF32, shape, blocks, blocks, &Unit::first_scales);
    add("second_moment_scales", DType::kF32, shape, blocks, blocks, &Unit::second_scales);
  }
}

Tensor Optimizer::place(size_t offset, DType dtype, int64_t count) const {
  return Tensor(static_cast<std::byte*>(memory_.data()) + offset, dtype, {count});
}

void Optimizer::adamw(const Unit& unit, const Numbers& numbers, const Step& step) {
  const int64_t count = numbers.master.elements();
  AdamW op;
  op.parameters = numbers.master;
  op.gradients = numbers.gradient;
  op.first_moment = place(unit.first, unit.kept, count);
  op.second_moment = place(unit.second, unit.kept, count);
  if (unit.kept == DType::kU8) {
    op.first_scales = place(unit.first_scales, DType::kF32, blocks_of(count));
    op.second_scales = place(unit.second_scales, DType::kF32, blocks_of(count));
  }
  op.learning_rate = step.adam_learning_rate;
  op.beta1 = settings_.beta1;
  op.beta2 = settings_.beta2;
  op.epsilon = settings_.epsilon;
  op.weight_decay = settings_.weight_decay;
  op.gradient_scale = step.gradient_scale;
  op.step = step.number;
  backend_.adamw(op);
}

// Without its tensors, but for the shape.
Muon Optimizer::muon_of(const Parameters::Named& tensor) const {
  Muon op;
  op.parameters = Tensor(nullptr, DType::kF32, {tensor.part.whole_rows, tensor.part.whole_columns});
  op.beta = settings_.muon_momentum;
  op.weight_decay = settings_.weight_decay;
  op.adjustment = settings_.muon_lr_adjust == "match_rms_adamw" ? Muon::Adjustment::kMatchRmsAdamW
                                                                : Muon::Adjustment::kOriginal;
  return op;
}

void Optimizer::muon(const Unit& unit, const Numbers& numbers, const Step& step) {
  Muon op = muon_of(parameters_.tensors()[unit.tensor]);
  op.gradients = op.momentum = op.parameters;
  op.parameters.data = numbers.master.data;
  op.gradients.data = numbers.gradient.data;
  op.momentum.data = place(unit.first, DType::kF32, numbers.master.elements()).data;
  op.learning_rate = step.learning_rate;
  op.gradient_scale = step.gradient_scale;
  const size_t needed = backend_.workspace_bytes(op);
  if (needed > 0) op.workspace = Tensor(workspace_.data(), DType::kU8, {static_cast<int64_t>(needed)});
  backend_.muon(op);
}

void Optimizer::take_step(const Unit& unit, const Numbers& numbers, const Step& step) {
  unit.is_muon ? muon(unit, numbers, step) : adamw(unit, numbers, step);
}

void Optimizer::update(double learning_rate, double adam_learning_rate, double gradient_scale, int64_t step) {
  const Step of_all{learning_rate, adam_learning_rate, gradient_scale, step};
  for (const Unit& unit : units_) {
    const Parameters::Named& named = parameters_.tensors()[unit.tensor];
    if (named.is_joined) continue;
    take_step(unit, {parameters_.master(named, unit.run), parameters_.gradient(named, unit.run)}, of_all);
  }
  if (!joined_) return;
  joined_->take([&](size_t tensor, int64_t run, const Tensor& master, const Tensor& gradient) {
    take_step(units_[first_units_[tensor] + static_cast<size_t>(run)], {master, gradient}, of_all);
  });
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
