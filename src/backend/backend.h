// The one boundary between Qiao and hardware. A chip is a folder beside this file that derives from Backend
// and one line in registry/registry.cc. docs/port-a-chip.md tells how; `qiao conformance --backend NAME`
// proves it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/collectives.h"
#include "backend/ops/attention.h"
#include "backend/ops/attention_varlen.h"
#include "backend/ops/dropout.h"
#include "backend/ops/embedding_bag.h"
#include "backend/ops/feed_drawn.h"
#include "backend/ops/gated_activation.h"
#include "backend/ops/gather.h"
#include "backend/ops/layer_norm.h"
#include "backend/ops/linear.h"
#include "backend/ops/moe.h"
#include "backend/ops/muon.h"
#include "backend/ops/norm.h"
#include "backend/ops/optimizer.h"
#include "backend/ops/rope.h"
#include "backend/ops/rope_kv_write.h"
#include "backend/ops/sample.h"
#include "backend/ops/token_logprob.h"
#include "backend/ops/vector_search.h"
#include "backend/weight.h"
#include "parallel/communicator.h"

namespace qiao {

struct DeviceInfo {
  std::string name;           // "AMD EPYC, 2 threads, AVX-512 VNNI BF16"
  uint64_t memory_bytes = 0;  // all of it
  uint64_t free_bytes = 0;    // what an allocation may take now
  int threads = 0;            // 0 where that says nothing
  bool own_memory = false;    // a device's: all of it is there for what runs on the device
};

// The name without the number of threads, on which no result depends.
std::string name_without_threads(const DeviceInfo& info);

// Measured, not looked up: by the chip's own loops, a second or so. 0 where the chip has no such unit.
struct DevicePeaks {
  double read_bytes_per_second = 0;
  double f32_flops = 0;  // two operations a multiply-add, as everywhere
  double bf16_flops = 0;
  double int8_ops = 0;
  double f8_flops = 0;  // of Compute::kF8, by whatever units the chip makes it with
};

// Hears of every op that a Backend runs, in order.
class OpWatch {
 public:
  virtual ~OpWatch() = default;
  // `op` is the method's name. `flops` and `bytes`: the op's own counts, of attention over packed sequences
  // the pairs that are seen; 0 where it counts none.
  virtual void on_op(std::string_view op, double seconds, double flops, double bytes) = 0;
};

// What a chip has not written yet. Conformance fails on an op that neither passes nor is listed, and a chip
// is green for a profile only when nothing is listed for it.
struct MissingOp {
  std::string_view op;       // "attention_paged"
  std::string_view profile;  // "serve" or "train"
  std::string_view reason;
};

// Ops that a chip keeps to give them to its device again at once (Backend::repeat); gone before its chip.
class Recording {
 public:
  virtual ~Recording() = default;
};

// Host memory that a chip's results come to while the host goes on (Backend::start_download); gone before its
// chip.
class Landing {
 public:
  virtual ~Landing() = default;
};

class Backend;

// Memory of a chip, 64-byte aligned at least; freed with this object. Not initialised.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Backend* backend, void* data, size_t bytes) : backend_(backend), data_(data), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Calls are ordered: each sees what the ones before it wrote. One thread at a time uses a Backend. Public
// methods check arguments (throwing Error(kInvalidInput) that names op, argument and both shapes), then call
// the chip's hook; a hook may assume valid arguments. A hook that a chip has not written throws
// Error(kUnsupported) "op X: chip Y has no …".
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view chip() const = 0;  // "cpu"
  virtual DeviceInfo describe() const = 0;
  virtual DevicePeaks measure_peaks() = 0;
  // The arithmetic alone, without the memory that measuring the bandwidth takes; some tenths of a second.
  virtual DevicePeaks measure_arithmetic() { return measure_peaks(); }
  // Fraction bits that are kept of each addend, below the largest, where products of E4M3 are added up inside
  // a block (ops/linear.h): 23 where that is done in F32.
  virtual int e4m3_sum_bits() const { return 23; }
  // Whether attention_varlen rounds in kBF16 (ops/attention_varlen.h): causal, it has the bits of BF16 pages
  // then, else those of F32 pages.
  virtual bool rounds_packed_attention() const { return false; }
  // Whether a row's bits follow from that row alone: false with BackendOptions::fast.
  virtual bool batch_invariant() const { return true; }
  // A table of the chip's own (<chip>/missing.cc); nothing is missing where a chip has none.
  virtual std::span<const MissingOp> missing() const { return {}; }

  // Memory. Throws Error(kTooLarge), with both sizes, where there is not enough.
  Buffer allocate(size_t bytes);
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device,
                        size_t bytes) = 0;  // waits for what was called before
  virtual void synchronize() = 0;

  // Whether calls return before the device has done them. Who gives such a chip the next work before it asks
  // for the results of the last keeps it busy; elsewhere that has no use.
  virtual bool runs_behind() const { return false; }
  // A download in two parts: what is called between them is not waited for. `landing` is made (null the first
  // time), or made larger, where need be; one download at a time lands there.
  virtual void start_download(std::unique_ptr<Landing>& landing, const void* device, size_t bytes);
  // What came, valid until the next start_download there.
  virtual const std::byte* finish_download(Landing& landing);

  // Waits for what the chip still does beside the work after weights were made, that they may be read faster:
  // for who measures.
  virtual void settle() {}

  // Weights and pages. make_weight checks that parts fit the source's description and each other.
  std::unique_ptr<Weight> make_weight(const WeightSource& source);
  // The bytes of one segment of one expert as the file had them.
  void read_weight(const Weight& weight, int64_t expert, size_t segment, std::byte* bytes);
  // Rewrites the rows of one expert from canonical F32 values [N, K] on the chip, rounded to nearest even to
  // each segment's dtype: F32, F16 or BF16 (too large for it: infinite), or quantized to F8_128 of square
  // scales by way of BF16 (quantize_f8_of_bf16, tensor/fp8.h). What the optimizer changed is so what every op
  // reads next. Error(kUnsupported) where a segment is of another block format.
  void write_weight(Weight& weight, int64_t expert, const Tensor& values);
  std::unique_ptr<KvPages> make_kv_pages(const KvPagesSpec& spec);
  // A page's contents as pages.page_bytes() bytes, and back: the same bits on any chip.
  void export_kv_page(const KvPages& pages, int64_t page, std::byte* bytes);
  void import_kv_page(KvPages& pages, int64_t page, const std::byte* bytes);

  // Calls `work`, whose ops of this chip are always the same, with the same shapes, numbers and addresses;
  // what the tensors hold may differ. A chip may leave in `recording` (null the first time) what it gave its
  // device, and give that again another time in place of calling. `work` calls nothing but ops.
  void repeat(std::unique_ptr<Recording>& recording, const std::function<void()>& work);

  // What the communicator's ranks do together, each with its own chip; this and the communicator outlive it.
  // All of them call it. The common one goes through the host; a chip's own may throw Error(kUnavailable)
  // that says what is missing.
  virtual std::unique_ptr<Collectives> make_collectives(Communicator& communicator);

  // Each op is waited for, timed and told from now on; null: no more. `watch` outlives that.
  void set_watch(OpWatch* watch) { watch_ = watch; }

  // How much scratch memory an op needs for its shapes (data pointers are not read); monotone in T and S.
  size_t workspace_bytes(const Linear& op) const;
  size_t workspace_bytes(const GroupedLinear& op) const;
  virtual size_t workspace_bytes(const MoePermute&) const { return 0; }
  virtual size_t workspace_bytes(const AttentionPaged&) const { return 0; }
  virtual size_t workspace_bytes(const AttentionVarlen&) const { return 0; }
  virtual size_t workspace_bytes(const Sample&) const { return 0; }
  virtual size_t workspace_bytes(const VectorSearch&) const { return 0; }
  virtual size_t workspace_bytes(const EmbeddingBagBackward&) const { return 0; }
  virtual size_t workspace_bytes(const LinearBackward&) const { return 0; }
  virtual size_t workspace_bytes(const GroupedLinearBackward&) const { return 0; }
  virtual size_t workspace_bytes(const AttentionVarlenBackward&) const { return 0; }
  virtual size_t workspace_bytes(const TokenLogprob&) const { return 0; }
  virtual size_t workspace_bytes(const TokenLogprobBackward&) const { return 0; }
  virtual size_t workspace_bytes(const TokenLoss& op) const;
  virtual size_t workspace_bytes(const Muon&) const { return 0; }

  // The ops.
  void gather(const Gather& op);
  void gather_rows(const GatherRows& op);
  void linear(const Linear& op);
  void grouped_linear(const GroupedLinear& op);
  void moe_route(const MoeRoute& op);
  void moe_permute(const MoePermute& op);
  void moe_combine(const MoeCombine& op);
  void add_rms_norm(const AddRmsNorm& op);
  void layer_norm(const LayerNorm& op);
  void rope(const Rope& op);
  void gated_activation(const GatedActivation& op);
  void kv_write(const KvWrite& op);
  void rope_kv_write(const RopeKvWrite& op);
  void attention_paged(const AttentionPaged& op);
  void attention_varlen(const AttentionVarlen& op);
  void sample(const Sample& op);
  void feed_drawn(const FeedDrawn& op);
  void embedding_bag(const EmbeddingBag& op);
  void vector_search(const VectorSearch& op);

  // The way back, and what training alone needs.
  void gather_backward(const GatherBackward& op);
  void embedding_bag_backward(const EmbeddingBagBackward& op);
  void linear_backward(const LinearBackward& op);
  void grouped_linear_backward(const GroupedLinearBackward& op);
  void moe_route_backward(const MoeRouteBackward& op);
  void moe_permute_backward(const MoePermuteBackward& op);
  void moe_combine_backward(const MoeCombineBackward& op);
  void add_rms_norm_backward(const AddRmsNormBackward& op);
  void gated_activation_backward(const GatedActivationBackward& op);
  void attention_varlen_backward(const AttentionVarlenBackward& op);
  void token_logprob(const TokenLogprob& op);
  void token_logprob_backward(const TokenLogprobBackward& op);
  void token_loss(const TokenLoss& op);
  void dropout(const Dropout& op);
  void sum_of_squares(const SumOfSquares& op);
  void accumulate(const Accumulate& op);
  void adamw(const AdamW& op);
  void muon(const Muon& op);

 protected:
  friend class Buffer;
  virtual void* do_allocate(size_t bytes) = 0;
  virtual void do_free(void* data, size_t bytes) = 0;
  virtual std::unique_ptr<Weight> do_make_weight(const WeightSource& source) = 0;
  virtual void do_read_weight(const Weight& weight, int64_t expert, size_t segment, std::byte* bytes) = 0;
  virtual void do_write_weight(Weight& weight, int64_t expert, const Tensor& values);
  virtual std::unique_ptr<KvPages> do_make_kv_pages(const KvPagesSpec& spec) = 0;
  virtual void do_export_kv_page(const KvPages& pages, int64_t page, std::byte* bytes) = 0;
  virtual void do_import_kv_page(KvPages& pages, int64_t page, const std::byte* bytes) = 0;
  virtual void do_repeat(std::unique_ptr<Recording>&, const std::function<void()>& work) { work(); }

  // Of do_linear and do_grouped_linear themselves.
  virtual size_t kernel_workspace_bytes(const Linear&) const { return 0; }
  virtual size_t kernel_workspace_bytes(const GroupedLinear&) const { return 0; }
  // Whether do_linear takes Linear::norm; else add_rms_norm is called before it. gates_to: the most T with
  // which `gated` is taken; else gated_activation is called behind it. Both follow from the weight, the
  // compute kind and the activation alone.
  virtual bool norms(const Linear&) const { return false; }
  virtual int64_t gates_to(const Linear&) const { return 0; }
  virtual int64_t gates_to(const GroupedLinear&) const { return 0; }

  virtual void do_gather(const Gather& op);
  virtual void do_gather_rows(const GatherRows& op);
  virtual void do_linear(const Linear& op);
  virtual void do_grouped_linear(const GroupedLinear& op);
  virtual void do_moe_route(const MoeRoute& op);
  virtual void do_moe_permute(const MoePermute& op);
  virtual void do_moe_combine(const MoeCombine& op);
  virtual void do_add_rms_norm(const AddRmsNorm& op);
  virtual void do_layer_norm(const LayerNorm& op);
  virtual void do_rope(const Rope& op);
  virtual void do_gated_activation(const GatedActivation& op);
  virtual void do_kv_write(const KvWrite& op);
  virtual void do_rope_kv_write(const RopeKvWrite& op);  // unless a chip has it in one: the ops apart
  virtual void do_attention_paged(const AttentionPaged& op);
  virtual void do_attention_varlen(const AttentionVarlen& op);
  virtual void do_sample(const Sample& op);
  virtual void do_feed_drawn(const FeedDrawn& op);
  virtual void do_embedding_bag(const EmbeddingBag& op);
  virtual void do_vector_search(const VectorSearch& op);
  virtual void do_gather_backward(const GatherBackward& op);
  virtual void do_embedding_bag_backward(const EmbeddingBagBackward& op);
  virtual void do_linear_backward(const LinearBackward& op);
  virtual void do_grouped_linear_backward(const GroupedLinearBackward& op);
  virtual void do_moe_route_backward(const MoeRouteBackward& op);
  virtual void do_moe_permute_backward(const MoePermuteBackward& op);
  virtual void do_moe_combine_backward(const MoeCombineBackward& op);
  virtual void do_add_rms_norm_backward(const AddRmsNormBackward& op);
  virtual void do_gated_activation_backward(const GatedActivationBackward& op);
  virtual void do_attention_varlen_backward(const AttentionVarlenBackward& op);
  virtual void do_token_logprob(const TokenLogprob& op);
  virtual void do_token_logprob_backward(const TokenLogprobBackward& op);
  virtual void do_token_loss(const TokenLoss& op);
  virtual void do_dropout(const Dropout& op);
  virtual void do_sum_of_squares(const SumOfSquares& op);
  virtual void do_accumulate(const Accumulate& op);
  virtual void do_adamw(const AdamW& op);
  virtual void do_muon(const Muon& op);

 private:
  // A product, Linear or GroupedLinear, with the ops around it that the chip has no kernel for in one with
  // it.
  template <class Op>
  struct Around;
  template <class Op>
  Around<Op> around(const Op& op) const;
  template <class Op, class Run>
  void run_around(std::string_view name, const Op& op, Run run);
  // Runs the hook `run`, telling the watch.
  template <class Op, class Run>
  void watched(std::string_view name, const Op& op, Run run);

  OpWatch* watch_ = nullptr;
};

struct BackendOptions {
  int threads = 0;  // 0: as many as this process may use
  int device = 0;   // of several alike: "cuda:1"
  // Sums in whatever order is quickest for a call's shape, within the same bounds: a row's bits may depend on
  // how many are computed with it. For a chip that has no such choice it says nothing.
  bool fast = false;
};

// The chips built into this program, best first ("cpu", "reference").
std::vector<std::string_view> chip_names();
// "auto" (the first that can be had), "cpu", "reference", "cuda", "cuda:1"… Error(kNotFound) for an unknown
// name, listing the known; Error(kUnavailable) for a chip whose driver or device is missing.
std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options = {});

}  // namespace qiao
