#include "train/parameters.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "tensor/floats.h"

namespace qiao::train {
namespace {

constexpr int64_t kGap = 16;  // groups begin at whole cache lines

}  // namespace

Parameters::Group& Parameters::group_of(const LaidOutTensor& tensor) {
  const bool is_weight = tensor.weight != nullptr;
  const auto [found, is_new] = is_weight ? weights_.try_emplace(tensor.weight, groups_.size())
                                         : small_.try_emplace(tensor.parameter.data, groups_.size());
  if (is_new) {
    Group group;
    group.first = count_;
    group.weight = tensor.weight;
    group.parameter = tensor.parameter;
    group.rows = is_weight ? tensor.weight->experts() * tensor.weight->rows() : 1;
    group.columns = is_weight ? tensor.weight->columns() : tensor.parameter.elements();
    count_ += (group.rows * group.columns + kGap - 1) / kGap * kGap;
    groups_.push_back(group);
  }
  return groups_[found->second];
}

void Parameters::add(const LaidOutTensor& tensor) {
  const TensorInfo& source = *tensor.source;
  if (!is_dense_float(source.dtype)) {
    throw_error(ErrorKind::kUnsupported,
                "tensor {} is {}; all of a model is trained in floats only: train an adapter on it "
                "(--lora-rank), or its floats, which `qiao export --hf` writes",
                source.name, source.type_name());
  }
  const bool is_weight = tensor.weight != nullptr, is_elsewhere = tensor.rows == 0;
  Group* const group = is_elsewhere ? nullptr : &group_of(tensor);
  const int64_t row = is_weight ? group->columns : 1;
  const int64_t expert_rows = is_weight ? tensor.weight->rows() : 0, count = tensor.rows * row;
  if (!is_weight && !is_elsewhere) group->parts.push_back({tensor.first_row, tensor.rows, source.dtype});
  const int64_t first =
      is_elsewhere ? count_ : group->first + (tensor.expert * expert_rows + tensor.first_row) * row;
  // A tensor of all experts is told of once for each, in their order; one that fuses several, of which a rank
  // has some rows each, once for each of those, which lie together.
  const auto [found, is_new] = by_name_.try_emplace(source.name, named_.size());
  if (is_new) named_.push_back({source.name, source.shape, tensor.weight, first});
  Named& named = named_[found->second];
  named.part.whole_rows = tensor.source_rows;
  named.part.whole_columns = tensor.source_columns;
  named.part.columns = tensor.columns;
  if (!is_new && tensor.expert == named.runs) {
    named.runs += 1;
    named.stride = expert_rows * row;
  } else if (!is_elsewhere) {
    const int64_t before = named.count - (named.runs - 1) * named.part.count();  // in this run
    QIAO_ASSERT(first == named.first + (named.runs - 1) * named.stride + before);
    if (named.runs == 1) named.part.rows.push_back({tensor.source_row, tensor.rows});
  }
  named.count += count;
}

void Parameters::add_matrix(std::string name, TensorPart part, Weight& weight, int64_t first_row,
                            float scale) {
  LaidOutTensor place{};
  place.weight = &weight;
  Group& group = group_of(place);
  group.scale = scale;
  named_.push_back({std::move(name),
                    {part.whole_rows, part.whole_columns},
                    &weight,
                    group.first + first_row * group.columns,
                    part.count()});
  named_.back().part = std::move(part);
}

Tensor Parameters::flat(const Buffer& buffer, int64_t first, int64_t count) const {
  return Tensor(static_cast<float*>(buffer.data()) + first, DType::kF32, {count});
}

void Parameters::prepare(const ModelFiles& files) {
  prepare([&](const Named& named, std::vector<float>& values) {
    const TensorInfo& source = *files.find(named.name);
    to_floats(source.dtype, files.bytes(source).data(), values);
    files.release(source);
  });
}

void Parameters::prepare(const std::function<void(const Named&, std::vector<float>&)>& fill) {
  if (gradients_.empty()) share(std::vector<bool>(named_.size(), true), 1);
  staging_ = backend_.allocate(static_cast<size_t>(staging_count_) * sizeof(float));
  masters_ = backend_.allocate(static_cast<size_t>(master_count_) * sizeof(float));
  clear_memory(backend_, masters_.data(), masters_.bytes());
  for (Buffer& buffer : gradients_) {
    buffer = backend_.allocate(static_cast<size_t>(count_) * sizeof(float));
    clear_memory(backend_, buffer.data(), buffer.bytes());
  }
  sums_ = backend_.allocate(named_.size() * sizeof(double));
  std::vector<float> values;
  for (const Named& named : named_) {
    if (!named.is_here) continue;
    values.resize(static_cast<size_t>(named.runs * named.part.whole_count()));
    fill(named, values);
    write_master(named, values);
  }
  if (all_here_) rewrite();  // else they are what the decoder has loaded
}

Tensor Parameters::of(const Weight& weight) {
  const auto found = weights_.find(&weight);
  if (found == weights_.end()) return {};
  const Group& group = groups_[found->second];
  return Tensor(static_cast<float*>(gradients_[current_].data()) + group.first, DType::kF32,
                {group.rows, group.columns});
}

Tensor Parameters::of_parameter(const Tensor& value) {
  // A bias of one piece of a fused projection is a part of its group's.
  auto found = small_.upper_bound(value.data);
  if (found == small_.begin()) return {};
  const Group& group = groups_[(--found)->second];
  const int64_t offset = value.as<float>() - group.parameter.as<float>();
  if (offset >= group.columns) return {};
  QIAO_ASSERT(offset + value.elements() <= group.columns);
  return flat(gradients_[current_], group.first + offset, value.elements());
}

std::vector<float> Parameters::scaled(const Group& group, const void* values) const {
  std::vector<float> made(static_cast<size_t>(group.rows * group.columns));
  backend_.download(made.data(), values, made.size() * sizeof(float));
  for (float& value : made) value *= group.scale;
  return made;
}

size_t Parameters::bytes() const {
  const int64_t numbers = master_count_ + staging_count_ + std::ssize(gradients_) * count_;
  return static_cast<size_t>(numbers) * sizeof(float);
}

// Sums wait for their like in as many buffers as the index has bits set: 0 waits for 1, both for 2 and 3.
void Parameters::begin_gradient(int64_t index) {
  current_ = static_cast<size_t>(std::popcount(static_cast<uint64_t>(index)));
  clear_memory(backend_, gradients_[current_].data(), gradients_[current_].bytes());
}

void Parameters::end_gradient(int64_t index) {
  for (const Group& group : groups_) {
    if (group.scale == 1.0f) continue;
    float* gradient = static_cast<float*>(gradients_[current_].data()) + group.first;
    const std::vector<float> values = scaled(group, gradient);
    backend_.upload(gradient, values.data(), values.size() * sizeof(float));
  }
  for (; (index & 1) != 0; index /= 2, --current_)
    backend_.accumulate({flat(gradients_[current_], 0, count_), flat(gradients_[current_ - 1], 0, count_)});
}

std::vector<double> Parameters::gradient_squares() {
  std::vector<double> sums(named_.size());
  backend_.upload(sums_.data(), sums.data(), sums.size() * sizeof(double));
  for (size_t i = 0; i < named_.size(); ++i) {
    for (int64_t run = 0; named_[i].is_here && run < named_[i].runs; ++run) {
      for (const Range& counted : named_[i].counted) {
        SumOfSquares op;
        op.x = gradient(named_[i], run).slice(counted.first, counted.count);
        op.sum = Tensor(static_cast<double*>(sums_.data()) + i, DType::kF64, {1});
        backend_.sum_of_squares(op);
      }
    }
  }
  backend_.download(sums.data(), sums_.data(), sums.size() * sizeof(double));
  return sums;
}

void Parameters::rewrite_weight(const Group& group, int64_t expert, const void* masters) {
  Buffer held;
  if (group.scale != 1.0f) {
    const std::vector<float> values = scaled(group, masters);
    held = backend_.allocate(values.size() * sizeof(float));
    backend_.upload(held.data(), values.data(), held.bytes());
    masters = held.data();
  }
  backend_.write_weight(
      *group.weight, expert,
      Tensor(const_cast<void*>(masters), DType::kF32, {group.weight->rows(), group.columns}));
}

void Parameters::rewrite_small(const Group& group, const void* masters) {
  std::vector<float> values(static_cast<size_t>(group.columns));
  std::vector<std::byte> rounded;
  backend_.download(values.data(), masters, values.size() * sizeof(float));
  for (const Group::Part& part : group.parts) {
    if (small_tensors_ == SmallTensors::kF32 || part.dtype == DType::kF32) continue;
    const std::span<float> of_part =
        std::span(values).subspan(static_cast<size_t>(part.first), static_cast<size_t>(part.count));
    rounded.resize(static_cast<size_t>(row_bytes(part.dtype, part.count)));
    from_floats(of_part, part.dtype, rounded.data());
    to_floats(part.dtype, rounded.data(), of_part);
  }
  backend_.upload(group.parameter.data, values.data(), values.size() * sizeof(float));
}

void Parameters::rewrite(const Fill& fill) {
  QIAO_ASSERT(all_here_ || fill);
  for (const Group& group : groups_) {
    const int64_t experts = group.weight != nullptr ? group.weight->experts() : 1;
    const int64_t numbers = group.rows / experts * group.columns;
    for (int64_t expert = 0; expert < experts; ++expert) {
      const void* masters = static_cast<float*>(masters_.data()) + group.first + expert * numbers;
      if (!all_here_) {
        masters = staging_.data();
        // Of a fused bias the file may have some parts only.
        if (group.weight == nullptr)
          clear_memory(backend_, staging_.data(), static_cast<size_t>(numbers) * sizeof(float));
        for (const Group::Piece& piece : group.pieces) {
          if (piece.first / numbers != expert) continue;
          const Named& named = named_[piece.tensor];
          fill(piece.tensor, piece.run,
               flat(staging_, piece.first - expert * numbers, named.count / named.runs));
        }
      }
      if (group.weight != nullptr) {
        rewrite_weight(group, expert, masters);
      } else {
        rewrite_small(group, masters);
      }
    }
  }
}

void Parameters::share(std::vector<bool> here, int64_t gradients) {
  for (size_t i = 0; i < named_.size(); ++i) {
    Named& named = named_[i];
    named.is_here = here[i];
    if (named.count > 0 && !counts_once_) named.counted = {{0, named.count / named.runs}};
  }
  all_here_ = std::ranges::all_of(here, [](bool is) { return is; });
  gradients_.resize(static_cast<size_t>(gradients == 4 ? 3 : gradients));
  place_masters();
}

// Where all are here, as the gradients lie, so that a weight's rows are rewritten from where they are; else
// those that are, one behind the other.
void Parameters::place_masters() {
  master_count_ = all_here_ ? count_ : 0;
  for (Named& named : named_) {
    named.master = all_here_ ? named.first : master_count_;
    named.master_stride = all_here_ ? named.stride : named.count / named.runs;
    if (!all_here_ && named.is_here) master_count_ += (named.count + kGap - 1) / kGap * kGap;
  }
  if (all_here_) return;
  std::map<int64_t, Group*> by_first;
  for (Group& group : groups_) {
    by_first[group.first] = &group;
    const int64_t experts = group.weight != nullptr ? group.weight->experts() : 1;
    staging_count_ = std::max(staging_count_, group.rows / experts * group.columns);
  }
  for (size_t i = 0; i < named_.size(); ++i) {
    for (int64_t run = 0; named_[i].count > 0 && run < named_[i].runs; ++run) {
      const int64_t first = named_[i].first + run * named_[i].stride;
      Group& group = *std::prev(by_first.upper_bound(first))->second;
      group.pieces.push_back({i, run, first - group.first});
    }
  }
}

void Parameters::mark_summed(std::span<const void* const> memory) {
  for (const void* const each : memory) {
    const auto weight = weights_.find(each), small = small_.find(each);
    if (weight == weights_.end() && small == small_.end()) continue;
    const Group& group = groups_[weight != weights_.end() ? weight->second : small->second];
    for (Named& named : named_)
      if (named.first >= group.first && named.first < group.first + group.rows * group.columns)
        named.is_summed = named.is_summed || named.count > 0;
  }
}

void Parameters::count_once(std::vector<std::vector<Range>> counted, const std::vector<bool>& kept,
                            const std::vector<bool>& joined) {
  counts_once_ = true;
  for (size_t i = 0; i < named_.size(); ++i) {
    named_[i].counted = std::move(counted[i]);
    named_[i].is_kept = kept[i];
    named_[i].is_joined = joined[i];
  }
}

Tensor Parameters::master(const Named& tensor, int64_t run) const {
  QIAO_ASSERT(tensor.is_here);
  return flat(masters_, tensor.master + run * tensor.master_stride, tensor.count / tensor.runs);
}

Tensor Parameters::gradient(const Named& tensor, int64_t run) const {
  return flat(gradients_.front(), tensor.first + run * tensor.stride, tensor.count / tensor.runs);
}

void Parameters::read(Kind kind, const Named& tensor, std::span<float> values) const {
  QIAO_ASSERT(std::ssize(values) == tensor.count);
  for (int64_t run = 0; tensor.count > 0 && run < tensor.runs; ++run) {
    const Tensor from = kind == Kind::kMaster ? master(tensor, run) : gradient(tensor, run);
    backend_.download(values.data() + run * from.elements(), from.data, static_cast<size_t>(from.bytes()));
  }
}

void Parameters::write_master(const Named& tensor, std::span<const float> values) {
  std::vector<float> own;
  if (!tensor.part.is_whole()) {
    own.resize(static_cast<size_t>(tensor.count));
    take_part(tensor.part, tensor.runs, sizeof(float), std::as_bytes(values),
              std::as_writable_bytes(std::span(own)));
    values = own;
  }
  QIAO_ASSERT(std::ssize(values) == tensor.count);
  for (int64_t run = 0; tensor.count > 0 && run < tensor.runs; ++run) {
    const Tensor to = master(tensor, run);
    backend_.upload(to.data, values.data() + run * to.elements(), static_cast<size_t>(to.bytes()));
  }
}

// A piece at a time: a buffer may be most of the memory.
void clear_memory(Backend& backend, void* memory, size_t bytes) {
  static constexpr std::array<std::byte, size_t{1} << 16> kZeros{};
  for (size_t at = 0; at < bytes; at += kZeros.size()) {
    backend.upload(static_cast<std::byte*>(memory) + at, kZeros.data(), std::min(kZeros.size(), bytes - at));
  }
}

double norm_of(std::span<const double> squares) {
  double sum = 0;
  for (const double square : squares) sum += square;
  return std::sqrt(sum);
}

std::string first_not_finite(const Parameters& parameters, std::span<const double> squares) {
  const auto found = std::ranges::find_if(squares, [](double square) { return !std::isfinite(square); });
  return found == squares.end() ? ""
                                : parameters.tensors()[static_cast<size_t>(found - squares.begin())].name;
}

}  // namespace qiao::train
