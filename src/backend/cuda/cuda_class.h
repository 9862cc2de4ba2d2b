// The CUDA chip. Each op's kernels and their launch live in one file named after the op (*.cu; kernel.h tells
// what is different from plain CUDA). All work goes to one stream, in order.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/runtime.h"

namespace qiao::cuda {

inline constexpr int64_t kMostTickets = 16384;

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options);
  ~CudaBackend() override;
  std::string_view chip() const override { return "cuda"; }
  DeviceInfo describe() const override;
  DevicePeaks measure_peaks() override;
  DevicePeaks measure_arithmetic() override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void synchronize() override;
  // Between GPUs by NCCL (nccl_collectives.h); through the host where QIAO_COLLECTIVES says so.
  std::unique_ptr<Collectives> make_collectives(Communicator& communicator) override;
  bool runs_behind() const override { return true; }
  bool batch_invariant() const override { return !fast_; }
  bool rounds_packed_attention() const override { return true; }
  int e4m3_sum_bits() const override { return stream_.compute_major() == 9 ? 13 : 23; }  // matmul_f8.h
  void start_download(std::unique_ptr<Landing>& landing, const void* device, size_t bytes) override;
  const std::byte* finish_download(Landing& landing) override;
  using Backend::workspace_bytes;  // 0 for the other ops
  size_t workspace_bytes(const MoePermute& op) const override;
  size_t workspace_bytes(const AttentionPaged& op) const override;
  size_t workspace_bytes(const AttentionVarlen& op) const override;
  size_t workspace_bytes(const AttentionVarlenBackward& op) const override;
  size_t workspace_bytes(const LinearBackward& op) const override;
  size_t workspace_bytes(const GroupedLinearBackward& op) const override;
  size_t workspace_bytes(const TokenLogprob& op) const override;
  size_t workspace_bytes(const TokenLogprobBackward& op) const override;
  size_t workspace_bytes(const VectorSearch& op) const override;
  size_t workspace_bytes(const EmbeddingBagBackward& op) const override;
  size_t workspace_bytes(const Sample& op) const override;
  size_t workspace_bytes(const Muon& op) const override;

  int multiprocessors() const { return stream_.multiprocessors(); }
  int block_shared_bytes() const { return block_shared_bytes_; }
  const Stream& stream() const { return stream_; }
  Memory& memory() { return memory_; }
  // kMostTickets zeros; kernels leave them so.
  unsigned* tickets() const { return static_cast<unsigned*>(tickets_.data()); }

 protected:
  size_t kernel_workspace_bytes(const Linear& op) const override;
  size_t kernel_workspace_bytes(const GroupedLinear& op) const override;
  bool norms(const Linear& op) const override;
  int64_t gates_to(const Linear& op) const override;
  int64_t gates_to(const GroupedLinear& op) const override;
  void* do_allocate(size_t bytes) override;
  void do_free(void* data, size_t bytes) override;
  void do_repeat(std::unique_ptr<Recording>& recording, const std::function<void()>& work) override;

  // weight.cu
  std::unique_ptr<Weight> do_make_weight(const WeightSource& source) override;
  void do_read_weight(const Weight& weight, int64_t expert, size_t segment, std::byte* bytes) override;
  void do_write_weight(Weight& weight, int64_t expert, const Tensor& values) override;

  // kv_pages.cc
  std::unique_ptr<KvPages> do_make_kv_pages(const KvPagesSpec& spec) override;
  void do_export_kv_page(const KvPages& pages, int64_t page, std::byte* bytes) override;
  void do_import_kv_page(KvPages& pages, int64_t page, const std::byte* bytes) override;

  // kv_write.cu, rope_kv_write.cu, attention.cu, attention_varlen.cu, attention_varlen_backward.cu
  void do_kv_write(const KvWrite& op) override;
  void do_rope_kv_write(const RopeKvWrite& op) override;
  void do_attention_paged(const AttentionPaged& op) override;
  void do_attention_varlen(const AttentionVarlen& op) override;
  void do_attention_varlen_backward(const AttentionVarlenBackward& op) override;

  // linear.cu, linear_backward.cu (with gradient_bf16.cu), token_logprob.cu
  void do_linear(const Linear& op) override;
  void do_grouped_linear(const GroupedLinear& op) override;
  void do_linear_backward(const LinearBackward& op) override;
  void do_grouped_linear_backward(const GroupedLinearBackward& op) override;
  void do_token_logprob(const TokenLogprob& op) override;
  void do_token_logprob_backward(const TokenLogprobBackward& op) override;

  // gather.cu
  void do_gather(const Gather& op) override;
  void do_gather_rows(const GatherRows& op) override;
  void do_gather_backward(const GatherBackward& op) override;

  // embedding_bag.cu, embedding_bag_backward.cu, vector_search.cu
  void do_embedding_bag(const EmbeddingBag& op) override;
  void do_embedding_bag_backward(const EmbeddingBagBackward& op) override;
  void do_vector_search(const VectorSearch& op) override;

  // moe.cu
  void do_moe_route(const MoeRoute& op) override;
  void do_moe_permute(const MoePermute& op) override;
  void do_moe_combine(const MoeCombine& op) override;
  void do_moe_route_backward(const MoeRouteBackward& op) override;
  void do_moe_permute_backward(const MoePermuteBackward& op) override;
  void do_moe_combine_backward(const MoeCombineBackward& op) override;

  // norm.cu, layer_norm.cu, rope.cu, gated_activation.cu
  void do_add_rms_norm(const AddRmsNorm& op) override;
  void do_add_rms_norm_backward(const AddRmsNormBackward& op) override;
  void do_layer_norm(const LayerNorm& op) override;
  void do_rope(const Rope& op) override;
  void do_gated_activation(const GatedActivation& op) override;
  void do_gated_activation_backward(const GatedActivationBackward& op) override;

  // sample.cu, feed_drawn.cu
  void do_sample(const Sample& op) override;
  void do_feed_drawn(const FeedDrawn& op) override;

  // dropout.cu
  void do_dropout(const Dropout& op) override;

  // optimizer.cu, muon.cu
  void do_sum_of_squares(const SumOfSquares& op) override;
  void do_accumulate(const Accumulate& op) override;
  void do_adamw(const AdamW& op) override;
  void do_muon(const Muon& op) override;

 private:
  DeviceHold hold_;  // ends last
  Stream stream_;
  bool fast_;               // BackendOptions::fast
  int block_shared_bytes_;  // the most that a block may have
  Memory memory_;
  Uploader uploader_;
  Buffer tickets_;  // of results whose parts meet in memory: zeros between launches
  Buffer codes_;    // of AdamW's moments, once they are asked for
};

}  // namespace qiao::cuda
