// What layers call ops through: a backend and scratch memory for one step. In training a tape records here;
// layers know nothing of it.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>
#include <string_view>

#include "backend/backend.h"
#include "nn/tape.h"

namespace qiao::nn {

// Rows [first, first + count) of the activations that layers see belong to requests of this adapter.
struct AdapterRows {
  int32_t adapter;
  int64_t first, count;
};

// Memory of the caller's in which a layer's router leaves what training reads of it; absent: in none.
struct RouterTap {
  Tensor logits;  // F32 [T, E]
  Tensor counts;  // I32 [E]: the picks of each expert
};

// What low-rank adapters' inputs are dropped by in training; probability 0: nothing. A mask's row is that of
// the step.
struct AdapterDropout {
  float probability = 0;
  uint64_t seed = 0;  // of the step
  uint32_t first_row = 0;
};

// One step's memory is taken from a block that is planned beforehand: running the same layers on a measuring
// context tells how much. Nothing here allocates.
class Context {
 public:
  // Measures: ops are skipped, peak() tells the scratch memory they would have taken.
  explicit Context(Backend& backend);
  // Runs ops at once. `scratch` is memory of the backend's chip, 64-byte aligned; taking more than it holds
  // is an assertion.
  Context(Backend& backend, void* scratch, size_t bytes);
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Backend& backend() const { return backend_; }
  bool measuring() const { return measuring_; }
  size_t peak() const { return peak_; }

  // Ops are recorded from now on, and what is taken stays until the context ends. `tape` outlives it.
  void record_on(Tape& tape);
  bool records() const { return tape_ != nullptr; }
  // Where an op's result may take its input's place, it takes what over(input) gives: the input itself, or
  // new memory where the input is wanted later on.
  void keep_inputs() { keeps_inputs_ = true; }
  Tensor over(const Tensor& input);

  // Contiguous, not initialised, valid until the enclosing Scope ends.
  Tensor take(DType dtype, std::initializer_list<int64_t> dimensions);

  // Gives back what was taken since it was made.
  class Scope {
   public:
    explicit Scope(Context& context) : context_(context), mark_(context.used_) {}
    ~Scope() {
      if (context_.tape_ == nullptr) context_.used_ = mark_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Context& context_;
    size_t mark_;
  };

  // The rows of the step, or of what is left of it, that adapters change; the caller's memory.
  void set_adapter_rows(std::span<const AdapterRows> rows) { adapter_rows_ = rows; }
  std::span<const AdapterRows> adapter_rows() const { return adapter_rows_; }
  void set_router_tap(const RouterTap& tap) { router_tap_ = tap; }
  const RouterTap& router_tap() const { return router_tap_; }
  // As if it had been taken.
  Tensor given(const Tensor& memory);
  // Weights are spread over ranks: what is partial is summed over them. Null: nothing is.
  void set_collectives(Collectives* collectives) { collectives_ = collectives; }
  void sum_over_ranks(const Tensor& partial) {
    if (collectives_ != nullptr && !measuring_) collectives_->all_reduce_sum(partial);
  }
  // What follows reads `x` in products that are spread over the ranks; what came before it does not.
  void spread_over_ranks(const Tensor& x) {
    if (collectives_ != nullptr) record(SpreadReads{x, collectives_});
  }
  void set_adapter_dropout(const AdapterDropout& dropout) { adapter_dropout_ = dropout; }
  const AdapterDropout& adapter_dropout() const { return adapter_dropout_; }

  // The ops of Backend; workspaces are taken from the scratch memory.
  // Unless it `learns`, no tape records it: the table's gradient is another rank's to add.
  void gather(const Gather& op, bool learns = true);
  void gather_rows(const GatherRows& op);
  void embedding_bag(const EmbeddingBag& op);
  void vector_search(const VectorSearch& op);
  void linear(const Linear& op);
  void grouped_linear(const GroupedLinear& op);
  void moe_route(const MoeRoute& op);
  void moe_permute(const MoePermute& op);
  void moe_combine(const MoeCombine& op);
  void add_rms_norm(const AddRmsNorm& op);
  void layer_norm(const LayerNorm& op);
  void rope(const Rope& op);
  void gated_activation(const GatedActivation& op);
  void dropout(const Dropout& op);
  void rope_kv_write(const RopeKvWrite& op);
  void attention_paged(const AttentionPaged& op);
  void attention_varlen(AttentionVarlen op);

 private:
  // Calls the backend with a workspace of its own for the op, where it needs one.
  template <class Op>
  void run(Op op, void (Backend::*method)(const Op&));
  template <class Op>
  void record(const Op& op) {
    if (tape_ != nullptr) tape_->record(op);
  }
  // Of an op without a way back: throws Error(kUnsupported) while a tape records.
  void refuse_recording(std::string_view op) const;

  Backend& backend_;
  bool measuring_;
  std::byte* base_;
  size_t bytes_, used_ = 0, peak_ = 0;
  std::span<const AdapterRows> adapter_rows_;
  AdapterDropout adapter_dropout_;
  RouterTap router_tap_;
  Collectives* collectives_ = nullptr;
  Tape* tape_ = nullptr;
  bool keeps_inputs_ = false;
};

}  // namespace qiao::nn
