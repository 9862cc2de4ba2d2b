// What is trained: a canonical F32 master of every tensor of the model with its gradient and AdamW's moments,
// all on the chip, and the weights' handles that are rewritten from them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/decoder.h"
#include "nn/tape.h"

namespace qiao::train {

struct AdamWSettings {
  double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
};

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
  // After loading: takes memory for masters, gradients (zero) and moments (zero), and fills the masters from
  // `files`, which the decoder was loaded from.
  void prepare(const ModelFiles& files);

  Tensor of(const Weight& weight) override;
  Tensor of_parameter(const Tensor& value) override;

  int64_t count() const { return count_; }  // of numbers trained
  size_t bytes() const { return static_cast<size_t>(count_) * 4 * sizeof(float); }

  void zero_gradients();
  double gradient_norm();
  // One step of AdamW with the gradients times `gradient_scale`, and the model's weights rewritten. `step`
  // from 1.
  void update(const AdamWSettings& settings, double gradient_scale, int64_t step);

  // The file's tensors in its order, each with its place in the flat arrays: one run of numbers, or one for
  // each expert where the experts' other rows lie between.
  struct Named {
    std::string name;
    std::vector<int64_t> shape;
    int64_t first = 0, count = 0;
    int64_t runs = 1, stride = 0;  // of count / runs numbers, from run to run
  };
  const std::vector<Named>& tensors() const { return named_; }
  enum class Kind { kMaster, kGradient, kFirstMoment, kSecondMoment };
  std::vector<float> read(Kind kind, const Named& tensor);
  // Of a checkpoint; rewrite() after the last.
  void write(Kind kind, const Named& tensor, std::span<const float> values);
  void rewrite();

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
  };
  void clear(const Buffer& buffer);
  // body(memory of a run, where it begins in the tensor, its numbers)
  template <class Body>
  void each_run(Kind kind, const Named& tensor, Body body) const;
  Tensor flat(const Buffer& buffer, int64_t first, int64_t count) const;
  Group& group_of(const LaidOutTensor& tensor);

  Backend& backend_;
  SmallTensors small_tensors_;
  int64_t count_ = 0;
  std::vector<Group> groups_;
  std::map<const void*, size_t> weights_, small_;  // groups by weight, by a small tensor's memory
  std::vector<Named> named_;
  std::map<std::string, size_t> by_name_;  // of named_
  Buffer masters_, gradients_, first_moments_, second_moments_, sum_;
};

}  // namespace qiao::train
