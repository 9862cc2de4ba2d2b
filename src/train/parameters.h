// What is trained: a canonical F32 master of every tensor of the model with its gradient and AdamW's moments,
// all on the chip, and the weights' handles that are rewritten from them.
#pragma once

#include <cstdint>
#include <map>
#include <span>
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
  explicit Parameters(Backend& backend) : backend_(backend) {}

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

  // The file's tensors in its order, each with its place in the flat arrays.
  struct Named {
    std::string name;
    std::vector<int64_t> shape;
    int64_t first = 0, count = 0;
  };
  const std::vector<Named>& tensors() const { return named_; }
  enum class Kind { kMaster, kFirstMoment, kSecondMoment, kGradient };
  void read(Kind kind, const Named& tensor, std::span<float> values);
  // The name of the first tensor whose gradient holds an infinity or NaN; empty: none does.
  std::string first_not_finite_gradient();
  // Of a checkpoint; rewrite() after the last.
  void write(Kind kind, const Named& tensor, std::span<const float> values);
  void rewrite();

 private:
  struct Group {  // a weight's rows, or a small tensor
    Weight* weight = nullptr;
    Tensor parameter;
    int64_t first = 0, rows = 0, columns = 0;
  };
  void clear(const Buffer& buffer);
  float* place(Kind kind, const Named& tensor) const;
  Tensor flat(const Buffer& buffer, int64_t first, int64_t count) const;
  Group& group_of(const LaidOutTensor& tensor);

  Backend& backend_;
  int64_t count_ = 0;
  std::vector<Group> groups_;
  std::map<const void*, size_t> weights_, small_;  // groups by weight, by a small tensor's memory
  std::vector<Named> named_;
  Buffer masters_, gradients_, first_moments_, second_moments_, sum_;
};

}  // namespace qiao::train
