// The CPU chip. Each op's kernel and its launch live in one file named after the op; SIMD code of one
// instruction set in <op>_avx2.cc, <op>_avx512.cc …, compiled with that set's flags (module.cmake) and
// reached through a table of function pointers chosen once by active_isa().
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cpu/isa.h"
#include "backend/cpu/weight_memory.h"
#include "base/thread_pool.h"

namespace qiao::cpu {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options);
  std::string_view chip() const override { return "cpu"; }
  DeviceInfo describe() const override;
  DevicePeaks measure_peaks() override;
  DevicePeaks measure_arithmetic() override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void synchronize() override {}
  void settle() override { weight_memory_.settle(); }
  using Backend::workspace_bytes;
  size_t workspace_bytes(const AttentionPaged& op) const override;
  size_t workspace_bytes(const AttentionVarlen& op) const override;
  size_t workspace_bytes(const Sample& op) const override;
  size_t workspace_bytes(const VectorSearch& op) const override;
  size_t workspace_bytes(const EmbeddingBagBackward& op) const override;
  size_t workspace_bytes(const LinearBackward& op) const override;
  size_t workspace_bytes(const GroupedLinearBackward& op) const override;
  size_t workspace_bytes(const AttentionVarlenBackward& op) const override;
  size_t workspace_bytes(const TokenLogprob& op) const override;
  size_t workspace_bytes(const TokenLogprobBackward& op) const override;
  size_t workspace_bytes(const TokenLoss& op) const override;
  size_t workspace_bytes(const Muon& op) const override;

 protected:
  size_t kernel_workspace_bytes(const Linear& op) const override;
  size_t kernel_workspace_bytes(const GroupedLinear& op) const override;
  void* do_allocate(size_t bytes) override;
  void do_free(void* data, size_t bytes) override;
  std::unique_ptr<Weight> do_make_weight(const WeightSource& source) override;
  void do_read_weight(const Weight& weight, int64_t expert, size_t segment, std::byte* bytes) override;
  void do_write_weight(Weight& weight, int64_t expert, const Tensor& values) override;
  std::unique_ptr<KvPages> do_make_kv_pages(const KvPagesSpec& spec) override;
  void do_export_kv_page(const KvPages& pages, int64_t page, std::byte* bytes) override;
  void do_import_kv_page(KvPages& pages, int64_t page, const std::byte* bytes) override;

  void do_gather(const Gather& op) override;
  void do_gather_rows(const GatherRows& op) override;
  void do_linear(const Linear& op) override;
  void do_grouped_linear(const GroupedLinear& op) override;
  void do_moe_route(const MoeRoute& op) override;
  void do_moe_permute(const MoePermute& op) override;
  void do_moe_combine(const MoeCombine& op) override;
  void do_add_rms_norm(const AddRmsNorm& op) override;
  void do_layer_norm(const LayerNorm& op) override;
  void do_rope(const Rope& op) override;
  void do_gated_activation(const GatedActivation& op) override;
  void do_kv_write(const KvWrite& op) override;
  void do_attention_paged(const AttentionPaged& op) override;
  void do_attention_varlen(const AttentionVarlen& op) override;
  void do_sample(const Sample& op) override;
  void do_feed_drawn(const FeedDrawn& op) override;
  void do_embedding_bag(const EmbeddingBag& op) override;
  void do_vector_search(const VectorSearch& op) override;
  void do_gather_backward(const GatherBackward& op) override;
  void do_embedding_bag_backward(const EmbeddingBagBackward& op) override;
  void do_linear_backward(const LinearBackward& op) override;
  void do_grouped_linear_backward(const GroupedLinearBackward& op) override;
  void do_moe_route_backward(const MoeRouteBackward& op) override;
  void do_moe_permute_backward(const MoePermuteBackward& op) override;
  void do_moe_combine_backward(const MoeCombineBackward& op) override;
  void do_add_rms_norm_backward(const AddRmsNormBackward& op) override;
  void do_gated_activation_backward(const GatedActivationBackward& op) override;
  void do_attention_varlen_backward(const AttentionVarlenBackward& op) override;
  void do_token_logprob(const TokenLogprob& op) override;
  void do_token_logprob_backward(const TokenLogprobBackward& op) override;
  void do_sum_of_squares(const SumOfSquares& op) override;
  void do_token_loss(const TokenLoss& op) override;
  void do_dropout(const Dropout& op) override;
  void do_accumulate(const Accumulate& op) override;
  void do_adamw(const AdamW& op) override;
  void do_muon(const Muon& op) override;

 private:
  ThreadPool pool_;
  WeightMemory weight_memory_;
};

}  // namespace qiao::cpu
