#include "nn/context.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/error.h"

namespace qiao::nn {
namespace {

constexpr size_t kAlignment = 64;  // what ops ask of workspaces, and a cache line

// Tensors of a measuring context point here; nothing reads or writes them.
std::byte* nowhere() { return reinterpret_cast<std::byte*>(uintptr_t{kAlignment}); }

}  // namespace

Context::Context(Backend& backend)
    : backend_(backend), measuring_(true), base_(nowhere()), bytes_(std::numeric_limits<size_t>::max() / 2) {}

Context::Context(Backend& backend, void* scratch, size_t bytes)
    : backend_(backend), measuring_(false), base_(static_cast<std::byte*>(scratch)), bytes_(bytes) {}

void Context::record_on(Tape& tape) {
  tape_ = &tape;
  keeps_inputs_ = true;
}

Tensor Context::take(DType dtype, std::initializer_list<int64_t> dimensions) {
  Tensor tensor(base_ + used_, dtype, dimensions);
  const size_t bytes = (static_cast<size_t>(tensor.bytes()) + kAlignment - 1) / kAlignment * kAlignment;
  QIAO_ASSERT(bytes <= bytes_ - used_);
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  if (tape_ != nullptr) tape_->add_block(tensor.data, bytes);
  return tensor;
}

Tensor Context::given(const Tensor& memory) {
  QIAO_ASSERT(memory.contiguous());
  if (tape_ != nullptr) tape_->add_block(memory.data, static_cast<size_t>(memory.bytes()));
  return memory;
}

Tensor Context::over(const Tensor& input) {
  if (!keeps_inputs_) return input;
  QIAO_ASSERT(input.rank == 2 || input.rank == 3);
  if (input.rank == 2) return take(input.dtype, {input.shape[0], input.shape[1]});
  return take(input.dtype, {input.shape[0], input.shape[1], input.shape[2]});
}

void Context::refuse_recording(std::string_view op) const {
  if (tape_ != nullptr)
    throw_error(ErrorKind::kUnsupported, "op {} has no way back yet: models that use it cannot be trained",
                op);
}

template <class Op>
void Context::run(Op op, void (Backend::*method)(const Op&)) {
  if constexpr (requires { op.workspace; }) {
    const size_t mark = used_;
    if (const size_t bytes = backend_.workspace_bytes(op); bytes > 0)
      op.workspace = take(DType::kU8, {static_cast<int64_t>(bytes)});
    if (!measuring_) (backend_.*method)(op);
    used_ = mark;
  } else {
    if (!measuring_) (backend_.*method)(op);
  }
}

void Context::linear(const Linear& op) {
  if (op.gated || op.norm.present) refuse_recording("linear, gated or normed,");
  record(op);
  run(op, &Backend::linear);
}
void Context::grouped_linear(const GroupedLinear& op) {
  if (op.gated) refuse_recording("grouped_linear, gated,");
  record(op);
  run(op, &Backend::grouped_linear);
}
void Context::attention_paged(const AttentionPaged& op) {
  refuse_recording("attention_paged");
  run(op, &Backend::attention_paged);
}
void Context::attention_varlen(AttentionVarlen op) {
  if (tape_ != nullptr) op.log_sum_exp = take(DType::kF32, {op.q.shape[0], op.q.shape[1]});
  record(op);
  run(op, &Backend::attention_varlen);
}
void Context::gather(const Gather& op, bool learns) {
  if (learns) record(op);
  run(op, &Backend::gather);
}
void Context::gather_rows(const GatherRows& op) {
  refuse_recording("gather_rows");
  run(op, &Backend::gather_rows);
}
void Context::embedding_bag(const EmbeddingBag& op) {
  record(op);
  run(op, &Backend::embedding_bag);
}
void Context::vector_search(const VectorSearch& op) {
  refuse_recording("vector_search");
  run(op, &Backend::vector_search);
}
void Context::moe_route(const MoeRoute& op) {
  record(op);
  run(op, &Backend::moe_route);
}
void Context::moe_permute(const MoePermute& op) {
  record(op);
  run(op, &Backend::moe_permute);
}
void Context::moe_combine(const MoeCombine& op) {
  record(op);
  run(op, &Backend::moe_combine);
}
void Context::add_rms_norm(const AddRmsNorm& op) {
  record(op);
  run(op, &Backend::add_rms_norm);
}
void Context::layer_norm(const LayerNorm& op) {
  refuse_recording("layer_norm");
  run(op, &Backend::layer_norm);
}
void Context::rope(const Rope& op) {
  record(op);
  run(op, &Backend::rope);
}
void Context::gated_activation(const GatedActivation& op) {
  record(op);
  run(op, &Backend::gated_activation);
}
void Context::dropout(const Dropout& op) {
  record(op);
  run(op, &Backend::dropout);
}
void Context::rope_kv_write(const RopeKvWrite& op) {
  refuse_recording("rope_kv_write");
  run(op, &Backend::rope_kv_write);
}

}  // namespace qiao::nn
