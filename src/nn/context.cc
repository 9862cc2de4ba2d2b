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

Tensor Context::take(DType dtype, std::initializer_list<int64_t> dimensions) {
  Tensor tensor(base_ + used_, dtype, dimensions);
  const size_t bytes = (static_cast<size_t>(tensor.bytes()) + kAlignment - 1) / kAlignment * kAlignment;
  QIAO_ASSERT(bytes <= bytes_ - used_);
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return tensor;
}

Tensor Context::workspace(size_t bytes) {
  return bytes == 0 ? Tensor() : take(DType::kU8, {static_cast<int64_t>(bytes)});
}

void Context::linear(Linear op) {
  const Scope scope(*this);
  op.workspace = workspace(backend_.workspace_bytes(op));
  if (!measuring_) backend_.linear(op);
}

void Context::grouped_linear(GroupedLinear op) {
  const Scope scope(*this);
  op.workspace = workspace(backend_.workspace_bytes(op));
  if (!measuring_) backend_.grouped_linear(op);
}

void Context::attention_paged(AttentionPaged op) {
  const Scope scope(*this);
  op.workspace = workspace(backend_.workspace_bytes(op));
  if (!measuring_) backend_.attention_paged(op);
}

void Context::attention_varlen(AttentionVarlen op) {
  const Scope scope(*this);
  op.workspace = workspace(backend_.workspace_bytes(op));
  if (!measuring_) backend_.attention_varlen(op);
}

void Context::gather(const Gather& op) {
  if (!measuring_) backend_.gather(op);
}
void Context::gather_rows(const GatherRows& op) {
  if (!measuring_) backend_.gather_rows(op);
}
void Context::moe_route(const MoeRoute& op) {
  if (!measuring_) backend_.moe_route(op);
}
void Context::moe_permute(const MoePermute& op) {
  if (!measuring_) backend_.moe_permute(op);
}
void Context::moe_combine(const MoeCombine& op) {
  if (!measuring_) backend_.moe_combine(op);
}
void Context::add_rms_norm(const AddRmsNorm& op) {
  if (!measuring_) backend_.add_rms_norm(op);
}
void Context::layer_norm(const LayerNorm& op) {
  if (!measuring_) backend_.layer_norm(op);
}
void Context::rope(const Rope& op) {
  if (!measuring_) backend_.rope(op);
}
void Context::gated_activation(const GatedActivation& op) {
  if (!measuring_) backend_.gated_activation(op);
}
void Context::kv_write(const KvWrite& op) {
  if (!measuring_) backend_.kv_write(op);
}

}  // namespace qiao::nn
