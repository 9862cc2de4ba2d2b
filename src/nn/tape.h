// What a context that records keeps: the ops of a forward pass in order, and where the gradients of tensors
// lie. Walked backwards it calls each op's way back.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <variant>
#include <vector>

#include "backend/backend.h"

namespace qiao::nn {

// Where gradients of what is trained are added up: dense F32, canonical. Absent tensors: not trained.
class ParameterGradients {
 public:
  virtual ~ParameterGradients() = default;
  virtual Tensor of(const Weight& weight) = 0;  // [N, K], of experts one below the other: [E * N, K]
  // As `value`: a norm's gamma, a bias, a table of bags.
  virtual Tensor of_parameter(const Tensor& value) = 0;
};

// An activation that is read by products that are spread over ranks: on the way back what each has of its
// gradient is summed over them (f of Shoeybi et al. 2019).
struct SpreadReads {
  Tensor x;  // F32, a whole block
  Collectives* ranks = nullptr;
};

// Gradients of activations are taken from a block that is planned as activations are: walking a measuring
// tape tells how much. A tensor's gradient lies as the tensor does in the memory that it was taken with, so
// views (the query's part of a fused projection) have theirs inside.
class Tape {
 public:
  // Measures: nothing is run.
  explicit Tape(Backend& backend) : backend_(backend) {}
  // `memory` is not used before backward().
  Tape(Backend& backend, void* memory, size_t bytes)
      : backend_(backend), base_(static_cast<std::byte*>(memory)), bytes_(bytes) {}

  size_t peak() const { return peak_; }

  // Memory that activations lie in. Context::take calls this.
  void add_block(const void* data, size_t bytes);
  // Where the gradient of a whole block lies, for what is shared with the caller: an input's, which then is
  // written (or added to, where `written`), or an output's, which is read.
  void place_gradient(const Tensor& tensor, const Tensor& gradient, bool written);
  // What the loss gives to a router's logits (MoeRoute) beside the layers behind it: is added.
  void add_gradient(const Tensor& logits, const Tensor& gradient) { more_[logits.data] = gradient; }

  template <class Op>
  void record(const Op& op) {
    ops_.emplace_back(op);
  }

  // Calls the ways back, last op first, and forgets them all, with the blocks. A measuring tape needs no
  // `parameters`.
  void backward(ParameterGradients* parameters = nullptr);

 private:
  struct Block {
    size_t bytes;
    std::byte* gradient = nullptr;
    bool written = false;                 // all of it
    std::vector<const std::byte*> parts;  // or these views of it, by their beginning
  };
  using Op = std::variant<Linear, Gather, AddRmsNorm, Rope, GatedActivation, AttentionVarlen, GroupedLinear,
                          MoeRoute, MoePermute, MoeCombine, Dropout, SpreadReads, EmbeddingBag>;

  Block& block_of(const Tensor& tensor, const std::byte** begin);
  // The gradient's memory, taken on first use; `written` says whether something is in it already, and it
  // counts as written from now on.
  Tensor write_gradient(const Tensor& tensor, bool* written);
  // Of a tensor that some op has read: written by its way back.
  Tensor read_gradient(const Tensor& tensor);
  bool has_gradient(const Tensor& tensor);
  bool is_taken(const Tensor& tensor);  // in some block: an activation
  void share_gradient(const Tensor& tensor, const Tensor& with);
  std::byte* take(size_t bytes);
  Tensor workspace(size_t bytes);
  template <class Body>
  void with_workspace(Body body);

  void back(const Linear& op);
  void back(const Gather& op);
  void back(const AddRmsNorm& op);
  void back(const Rope& op);
  void back(const GatedActivation& op);
  void back(const AttentionVarlen& op);
  void back(const GroupedLinear& op);
  void back(const MoeRoute& op);
  void back(const MoePermute& op);
  void back(const MoeCombine& op);
  void back(const Dropout& op);
  void back(const SpreadReads& op);
  void back(const EmbeddingBag& op);

  Backend& backend_;
  std::byte* base_ = nullptr;  // null: measures
  size_t bytes_ = 0, used_ = 0, peak_ = 0;
  ParameterGradients* parameters_ = nullptr;
  std::vector<Op> ops_;
  std::map<const std::byte*, Block, std::greater<>> blocks_;  // by their beginning
  std::map<const void*, Tensor> more_;
};

}  // namespace qiao::nn
