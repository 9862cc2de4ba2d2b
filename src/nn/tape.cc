#include "nn/tape.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "base/error.h"

namespace qiao::nn {
namespace {

size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }  // of 64 bytes, as contexts take memory

}  // namespace

void Tape::add_block(const void* data, size_t bytes) {
  blocks_.insert_or_assign(static_cast<const std::byte*>(data), Block{bytes});
}

Tape::Block& Tape::block_of(const Tensor& tensor, const std::byte** begin) {
  const auto* data = static_cast<const std::byte*>(tensor.data);
  const auto found = blocks_.lower_bound(data);  // the last block that begins at or before it
  QIAO_ASSERT(found != blocks_.end() && data < found->first + found->second.bytes);
  *begin = found->first;
  return found->second;
}

void Tape::place_gradient(const Tensor& tensor, const Tensor& gradient, bool written) {
  const std::byte* begin = nullptr;
  Block& block = block_of(tensor, &begin);
  QIAO_ASSERT(begin == tensor.data && tensor.contiguous() && gradient.contiguous());
  block.gradient = static_cast<std::byte*>(gradient.data);
  block.written = written;
}

std::byte* Tape::take(size_t bytes) {
  // A measuring tape's memory begins at an address that nothing reads.
  std::byte* base = base_ != nullptr ? base_ : reinterpret_cast<std::byte*>(uintptr_t{1} << 46);
  QIAO_ASSERT(base_ == nullptr || whole_lines(bytes) <= bytes_ - used_);
  std::byte* data = base + used_;
  used_ += whole_lines(bytes);
  peak_ = std::max(peak_, used_);
  return data;
}

Tensor Tape::write_gradient(const Tensor& tensor, bool* written) {
  const std::byte* begin = nullptr;
  Block& block = block_of(tensor, &begin);
  const auto* data = static_cast<const std::byte*>(tensor.data);
  if (block.gradient == nullptr) block.gradient = take(block.bytes);
  *written = block.written || std::find(block.parts.begin(), block.parts.end(), data) != block.parts.end();
  if (!*written) {
    const bool is_all = data == begin && tensor.contiguous();
    QIAO_ASSERT(!is_all || block.parts.empty());  // a whole after its parts would forget them
    is_all ? void(block.written = true) : block.parts.push_back(data);
  }
  Tensor gradient = tensor;
  gradient.data = block.gradient + (data - begin);
  return gradient;
}

Tensor Tape::read_gradient(const Tensor& tensor) {
  const std::byte* begin = nullptr;
  const Block& block = block_of(tensor, &begin);
  QIAO_ASSERT(block.gradient != nullptr && (block.written || !block.parts.empty()));
  Tensor gradient = tensor;
  gradient.data = block.gradient + (static_cast<const std::byte*>(tensor.data) - begin);
  return gradient;
}

bool Tape::has_gradient(const Tensor& tensor) {
  const std::byte* begin = nullptr;
  const Block& block = block_of(tensor, &begin);
  return block.written || !block.parts.empty();
}

bool Tape::is_taken(const Tensor& tensor) {
  const auto* data = static_cast<const std::byte*>(tensor.data);
  const auto found = blocks_.lower_bound(data);
  return found != blocks_.end() && data < found->first + found->second.bytes;
}

// Two tensors that are only ever added have one gradient, where neither is read by another op.
void Tape::share_gradient(const Tensor& tensor, const Tensor& with) {
  const std::byte *begin = nullptr, *other = nullptr;
  Block& block = block_of(tensor, &begin);
  const Block& source = block_of(with, &other);
  QIAO_ASSERT(block.gradient == nullptr && begin == tensor.data && other == with.data);
  block.gradient = source.gradient;
  block.written = true;
}

void Tape::backward(ParameterGradients* parameters) {
  QIAO_ASSERT(base_ == nullptr || parameters != nullptr);
  parameters_ = parameters;
  for (auto op = ops_.rbegin(); op != ops_.rend(); ++op)
    std::visit([this](const auto& each) { back(each); }, *op);
  ops_.clear();
  blocks_.clear();
  more_.clear();
  used_ = 0;
}

Tensor Tape::workspace(size_t bytes) {
  return bytes == 0 ? Tensor() : Tensor(take(bytes), DType::kU8, {static_cast<int64_t>(bytes)});
}

template <class Body>
void Tape::with_workspace(Body body) {
  const size_t mark = used_;
  body();
  used_ = mark;
}

void Tape::back(const Linear& op) {
  QIAO_ASSERT(op.activation == Activation::kNone);
  LinearBackward back;
  back.dy = read_gradient(op.y);
  back.x = op.x;
  back.weight = op.weight;
  back.compute = gradient_compute(op.compute, *op.weight);
  back.dx = write_gradient(op.x, &back.add_dx);
  if (parameters_ != nullptr) {
    back.dw = parameters_->of(*op.weight);
    if (op.bias.present()) back.dbias = parameters_->of_parameter(op.bias);
  }
  // What was added to in place has y's gradient already.
  if (op.residual.present() && op.residual.data != op.y.data) share_gradient(op.residual, op.y);
  with_workspace([&] {
    back.workspace = workspace(backend_.workspace_bytes(back));
    if (base_ != nullptr) backend_.linear_backward(back);
  });
}

void Tape::back(const Gather& op) {
  GatherBackward back;
  back.ids = op.ids;
  back.scale = op.scale;
  back.dout = read_gradient(op.out);
  if (base_ == nullptr) return;
  back.dtable = parameters_->of(*op.table);
  if (back.dtable.present()) backend_.gather_backward(back);
}

void Tape::back(const AddRmsNorm& op) {
  AddRmsNormBackward back;
  back.dy = read_gradient(op.y);
  back.h = op.x;
  QIAO_ASSERT(!op.residual.present() || op.residual_out.present());  // else the sum is not kept
  if (op.residual_out.present()) {
    back.h = op.residual_out;
    if (has_gradient(op.residual_out)) back.dresidual_out = read_gradient(op.residual_out);
  }
  back.gamma = op.gamma;
  back.gamma_offset = op.gamma_offset;
  back.epsilon = op.epsilon;
  bool written = false;
  back.dh = write_gradient(op.x, &written);
  if (written) {  // the stream itself was normed, and goes on beside it: what it has already is added
    QIAO_ASSERT(!op.residual_out.present());
    back.dresidual_out = back.dh;
  }
  if (op.residual.present()) share_gradient(op.residual, op.x);
  if (base_ == nullptr) return;
  if (op.gamma.present()) back.dgamma = parameters_->of_parameter(op.gamma);
  backend_.add_rms_norm_backward(back);
}

void Tape::back(const Rope& op) {  // in place, forwards and back
  Rope back = op;
  back.inverse = !op.inverse;
  back.q = read_gradient(op.q);
  if (op.k.present()) back.k = read_gradient(op.k);
  if (base_ != nullptr) backend_.rope(back);
}

void Tape::back(const GatedActivation& op) {
  GatedActivationBackward back;
  back.x = op.x;
  back.activation = op.activation;
  back.dy = read_gradient(op.y);
  bool written = false;
  back.dx = write_gradient(op.x, &written);
  QIAO_ASSERT(!written);
  if (base_ != nullptr) backend_.gated_activation_backward(back);
}

void Tape::back(const AttentionVarlen& op) {
  AttentionVarlenBackward back;
  back.q = op.q;
  back.k = op.k;
  back.v = op.v;
  back.starts = op.starts;
  back.scale = op.scale;
  back.causal = op.causal;
  back.window = op.window;
  back.soft_cap = op.soft_cap;
  back.compute = op.compute;
  back.out = op.out;
  back.log_sum_exp = op.log_sum_exp;
  back.dout = read_gradient(op.out);
  bool written = false;
  back.dq = write_gradient(op.q, &written);
  back.dk = write_gradient(op.k, &written);
  back.dv = write_gradient(op.v, &written);
  with_workspace([&] {
    back.workspace = workspace(backend_.workspace_bytes(back));
    if (base_ != nullptr) backend_.attention_varlen_backward(back);
  });
}

void Tape::back(const GroupedLinear& op) {
  GroupedLinearBackward back;
  back.dy = read_gradient(op.y);
  back.x = op.x;
  back.weight = op.weight;
  back.counts = op.counts;
  back.compute = gradient_compute(op.compute, *op.weight);
  back.dx = write_gradient(op.x, &back.add_dx);
  if (parameters_ != nullptr) {
    if (const Tensor dw = parameters_->of(*op.weight); dw.present())
      back.dw = Tensor(dw.data, dw.dtype, {op.weight->experts(), op.weight->rows(), op.weight->columns()});
  }
  with_workspace([&] {
    back.workspace = workspace(backend_.workspace_bytes(back));
    if (base_ != nullptr) backend_.grouped_linear_backward(back);
  });
}

void Tape::back(const MoeRoute& op) {
  MoeRouteBackward back;
  back.logits = op.logits;
  back.kind = op.kind;
  back.normalize = op.normalize;
  back.scale = op.scale;
  back.ids = op.ids;
  back.dweights = read_gradient(op.weights);
  bool written = false;
  back.dlogits = write_gradient(op.logits, &written);
  QIAO_ASSERT(!written);
  if (base_ == nullptr) return;
  backend_.moe_route_backward(back);
  const auto more = more_.find(op.logits.data);
  if (more == more_.end()) return;
  const auto flat = [](const Tensor& tensor) {
    return Tensor(tensor.data, DType::kF32, {tensor.elements()});
  };
  backend_.accumulate({flat(more->second), flat(back.dlogits)});
}

void Tape::back(const MoePermute& op) {
  MoePermuteBackward back;
  back.dsorted = read_gradient(op.sorted);
  back.places = op.places;
  back.dx = write_gradient(op.x, &back.add_dx);
  if (base_ != nullptr) backend_.moe_permute_backward(back);
}

void Tape::back(const MoeCombine& op) {
  MoeCombineBackward back;
  back.dy = read_gradient(op.y);
  back.sorted = op.sorted;
  back.places = op.places;
  back.weights = op.weights;
  bool sorted_written = false, weights_written = false;
  back.dsorted = write_gradient(op.sorted, &sorted_written);
  back.dweights = write_gradient(op.weights, &weights_written);
  QIAO_ASSERT(!sorted_written && !weights_written);
  if (op.residual.present()) share_gradient(op.residual, op.y);
  if (base_ != nullptr) backend_.moe_combine_backward(back);
}

void Tape::back(const Dropout& op) {  // the same mask
  Dropout back = op;
  back.x = read_gradient(op.y);
  back.y = write_gradient(op.x, &back.add);
  if (base_ != nullptr) backend_.dropout(back);
}

void Tape::back(const EmbeddingBag& op) {
  EmbeddingBagBackward back;
  back.table = op.table;
  back.ids = op.ids;
  back.offsets = op.offsets;
  back.weights = op.weights;
  back.mean = op.mean;
  back.dout = read_gradient(op.out);
  if (op.weights.present() && is_taken(op.weights)) {
    bool written = false;
    back.dweights = write_gradient(op.weights, &written);
    QIAO_ASSERT(!written);
  }
  if (parameters_ != nullptr) back.dtable = parameters_->of_parameter(op.table);
  with_workspace([&] {
    back.workspace = workspace(backend_.workspace_bytes(back));
    if (base_ != nullptr && (back.dtable.present() || back.dweights.present()))
      backend_.embedding_bag_backward(back);
  });
}

void Tape::back(const SpreadReads& op) {
  const Tensor gradient = read_gradient(op.x);
  if (base_ != nullptr) op.ranks->all_reduce_sum(gradient);
}

}  // namespace qiao::nn
