// What is trained: a canonical F32 master of every tensor of the model with its gradient, on the chip, and
// the weights' handles that are rewritten from them. optimizer.h has what turns gradients into steps.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "models/decoder.h"
#include "nn/tape.h"
#include "train/tensor_part.h"

namespace qiao::train {

class Parameters final : public nn::ParameterGradients {
 public:
  // What the passes read of norms and biases: their masters, or those rounded as the file will have them, so
  // that a server of the file computes the same. (Weights are rounded to what they are laid out in.)
  enum class SmallTensors { kF32, kAsInFile };
  explicit Parameters(Backend& backend, SmallTensors small = SmallTensors::kF32)
      : backend_(backend), small_tensors_(small) {}

  // DecoderOptions::laid_out of the decoder that is to be trained. Throws Error(kUnsupported), naming the
  // tensor, for what cannot be trained.
  void add(const LaidOutTensor& tensor);
  // A matrix that no file of the model has (an adapter's), of which this rank has `part`, from row first_row
  // of `weight` on, which holds `scale` times its master.
  void add_matrix(std::string name, TensorPart part, Weight& weight, int64_t first_row, float scale);
  // After loading: takes memory for masters, gradients (zero) and moments (zero), and fills the masters from
  // `files`, which the decoder was loaded from, or with what `fill` gives for each.
  void prepare(const ModelFiles& files);
  struct Named;
  void prepare(const std::function<void(const Named& tensor, std::vector<float>& values)>& fill);

  Tensor of(const Weight& weight) override;
  Tensor of_parameter(const Tensor& value) override;

  // Before prepare(): the masters of which tensors() are in this process (all of them, else), and how many
  // gradients of its own the process adds up in a step: 1, 2 or 4.
  void share(std::vector<bool> here, int64_t gradients);

  int64_t count() const { return count_; }  // of numbers trained
  size_t bytes() const;                     // of the chip's memory, once share() or prepare() has been called

  // Around the passes of each of a step's gradients, from 0: they begin with zeros and are added up as
  // (0 + 1) + (2 + 3). At their end they are turned from gradients of what the weights hold to those of the
  // masters.
  void begin_gradient(int64_t index);
  void end_gradient(int64_t index);

  // A tensor of the file, or of those that fuse to a weight, with its place in the flat arrays: one run of
  // numbers, or one for each expert where the experts' other rows lie between.
  struct Named {
    std::string name;
    std::vector<int64_t> shape;
    const Weight* weight = nullptr;  // null: a norm, a bias
    int64_t first = 0, count = 0;
    int64_t runs = 1, stride = 0;  // of count / runs numbers, from run to run
    // Over ranks that train one model: what of it this one has, which are the `count` numbers.
    TensorPart part;
    bool is_summed = false;      // DecoderWeights::summed
    std::vector<Range> counted;  // numbers of a run that no rank before this one has; ascending
    bool is_here = true;         // its master, and so its states
    // Of a group's ranks one keeps the states of a matrix that is whole on all of them, or that is joined:
    // each has a part, and the optimizer's step takes all of it (joined_steps.h).
    bool is_kept = true, is_joined = false;
    int64_t master = 0, master_stride = 0;

    // Of a run, what the optimizer's step takes.
    int64_t step_count() const { return is_joined ? part.whole_count() : count / runs; }
  };
  const std::vector<Named>& tensors() const { return named_; }  // in the file's order
  // Of several ranks: marks what DecoderWeights::summed lists, as far as it is trained.
  void mark_summed(std::span<const void* const> memory);
  // Of several ranks, by tensor: Named::counted, is_kept and is_joined.
  void count_once(std::vector<std::vector<Range>> counted, const std::vector<bool>& kept,
                  const std::vector<bool>& joined);
  // One run's numbers, F32 [count / runs]; a master that is here.
  Tensor master(const Named& tensor, int64_t run) const;
  Tensor gradient(const Named& tensor, int64_t run) const;

  // The sum of the squared gradients that are counted of each tensor that is here, in float64; 0 of others.
  std::vector<double> gradient_squares();

  enum class Kind { kMaster, kGradient };
  void read(Kind kind, const Named& tensor, std::span<float> values) const;
  // Of a checkpoint, all of the tensor's numbers; rewrite() after the last.
  void write_master(const Named& tensor, std::span<const float> values);
  // The weights that the passes read, from the masters: where not all are here, as `fill` gives them, a run
  // of tensors()[tensor] at a time, F32 [count / runs].
  using Fill = std::function<void(size_t tensor, int64_t run, const Tensor& to)>;
  void rewrite(const Fill& fill = {});

 private:
  struct Group {  // a weight's rows, or a small tensor
    Weight* weight = nullptr;
    Tensor parameter;
    int64_t first = 0, rows = 0, columns = 0;  // rows: of all experts
    struct Part {                              // of a small tensor: one of the file's
      int64_t first, count;
      DType dtype;
    };
    std::vector<Part> parts;
    struct Piece {  // a run of a tensor, at `first` of the group's numbers
      size_t tensor;
      int64_t run, first;
    };
    std::vector<Piece> pieces;
    float scale = 1.0f;  // of the master in the weight
  };
  std::vector<float> scaled(const Group& group, const void* values) const;
  void place_masters();
  void rewrite_weight(const Group& group, int64_t expert, const void* masters);
  void rewrite_small(const Group& group, const void* masters);
  Tensor flat(const Buffer& buffer, int64_t first, int64_t count) const;
  Group& group_of(const LaidOutTensor& tensor);

  Backend& backend_;
  SmallTensors small_tensors_;
  int64_t count_ = 0;
  std::vector<Group> groups_;
  std::map<const void*, size_t> weights_, small_;  // groups by weight, by a small tensor's memory
  std::vector<Named> named_;
  std::map<std::string, size_t> by_name_;  // of named_
  bool all_here_ = true, counts_once_ = false;
  int64_t master_count_ = 0, staging_count_ = 0;
  Buffer masters_, sums_, staging_;
  std::vector<Buffer> gradients_;  // sums of some of a step's; the passes add to the current one
  size_t current_ = 0;
};

// Gives a tensor's whole master, by its place among Parameters::tensors(); valid until the next call.
using MasterOf = std::function<std::span<const float>(size_t tensor)>;

// Writes zeros.
void clear_memory(Backend& backend, void* memory, size_t bytes);
// Of gradient_squares (of all processes): the name of the first tensor whose gradient holds an infinity or
// NaN; empty: none does.
std::string first_not_finite(const Parameters& parameters, std::span<const double> squares);
// The root of a norm's squares, added in the order of tensors.
double norm_of(std::span<const double> squares);

}  // namespace qiao::train
