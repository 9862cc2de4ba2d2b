// Turns named tensors of a file into layers: checks dtypes and shapes, groups parts that may share a weight,
// releases the file's pages. Runs twice over the same model: a checking pass that lays out nothing, then the
// real one.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "models/decoder.h"
#include "models/shards.h"
#include "nn/layers.h"

namespace qiao {

// Where language models lie in a checkpoint: alone, or beside a vision tower.
inline constexpr std::array<std::string_view, 4> kDecoderRoots = {"model.", "language_model.model.",
                                                                  "model.language_model.", ""};

// The one that stands before these files' names of layers and embedding; empty for GGUF.
std::string_view decoder_root(const ModelFiles& files);

// "F32[16, 64]", for messages.
std::string shape_text(const TensorInfo& tensor);

class TensorLoader {
 public:
  // `root` stands before the stems of layers, embedding and final norm.
  TensorLoader(const ModelFiles& files, Backend& backend, const DecoderOptions& options);
  // With a root that the caller has found, and what the stems of layers begin with after it.
  TensorLoader(const ModelFiles& files, Backend& backend, const DecoderOptions& options, std::string root,
               std::string_view layers);

  // Lists, in a checking pass, what a Hugging Face checkpoint of `files`' configuration has, in place of
  // looking for it: names as Transformers writes them.
  struct Listing {
    bool fused = false;  // Family::Defaults::fused
    DType dtype = DType::kF32;
    std::deque<TensorInfo> tensors;
  };
  TensorLoader(const ModelFiles& files, Listing& listing);

  bool checking() const { return checking_; }
  // Ends the checking pass: refuses a model that does not fit in the chip's memory.
  void start_loading();

  // A stem with its indices filled in, and the file's prefix where it has one.
  std::string name(std::string_view stem, int64_t layer = 0, int64_t expert = 0) const;
  bool has(const std::string& stem, std::string_view suffix = ".weight") const;

  // One run of rows of a stacked weight; the same segment of every expert.
  struct Segment {
    std::vector<const TensorInfo*> tensors;  // one for each expert, or one that holds them all
    int64_t rows;                            // of one expert
    int64_t columns;
    // Of these the segment is rows [taken_rows.first, …) and columns [taken_columns.first, …).
    Range taken_rows, taken_columns;
    uint64_t bytes(int64_t experts) const;  // that are read of the file
  };
  // Part of a whole segment.
  static Segment narrow(Segment whole, const Range& rows, const Range& columns);
  Segment segment(const std::string& stem, int64_t rows, int64_t columns);
  // Experts stacked in one tensor [E, rows, columns].
  Segment stacked(const std::string& stem, int64_t experts, int64_t rows, int64_t columns);

  // kLayer: what DecoderOptions::quantize_f8 is for.
  enum class Part { kLayer, kOther };
  // `columns`: those that are taken.
  std::vector<nn::WeightPiece> pieces(const std::vector<Segment>& segments, int64_t experts, int64_t columns,
                                      Part part);
  nn::Parameter parameter(const std::string& stem, std::string_view suffix, int64_t count);
  // Elements [taken.first, …) of `count`.
  struct ParameterPart {
    std::string stem;
    int64_t count;
    Range taken;
  };
  nn::Parameter joined_parameter(const std::vector<ParameterPart>& parts, std::string_view suffix);
  // Another rank has them: who hears of what is laid out hears that.
  void leave_elsewhere(const std::vector<ParameterPart>& parts, std::string_view suffix) const;
  // A float tensor [rows, columns] in host memory; empty while checking.
  std::vector<float> matrix(const std::string& stem, int64_t rows, int64_t columns);

  // Hints that these tensors come soon.
  void will_need_layer(int64_t layer) const;
  // Throws for a tensor of the first `layers` layers that nothing asked for: the family does not have it.
  void refuse_unknown(int64_t layers) const;
  uint64_t laid_out_bytes() const { return laid_out_; }
  // What attention behind these projections computes in.
  Compute attention_compute(const nn::LinearLayer& projections) const;

 private:
  // What ends a message about a tensor that is not as expected (quantization_config.h).
  std::string advice() const;
  const TensorInfo& need(const std::string& name, const std::vector<int64_t>& shape);
  std::vector<float> floats(const TensorInfo& tensor);
  void done_with(const TensorInfo& tensor, uint64_t bytes);
  // Gives back the file pages of a part of a tensor.
  void release_bytes(const std::byte* bytes, int64_t count) const;
  Compute compute_for(DType dtype) const;
  // The dtype in which a tensor of `columns` is laid out.
  DType kept_as(const TensorInfo& tensor, int64_t columns, Part part) const;
  // Rows of a tensor in another dtype.
  std::vector<std::byte> converted(DType from, DType to, const std::byte* bytes, int64_t rows,
                                   int64_t columns);
  void tell_laid_out(std::span<const Segment> segments, Weight& weight) const;
  // The layer that a tensor belongs to; -1: none.
  int64_t layer_of(std::string_view tensor) const;

  const TensorInfo& list(const std::string& name, const std::vector<int64_t>& shape);

  const ModelFiles& files_;
  Backend* backend_;  // null: lists
  const DecoderOptions& options_;
  std::string root_;
  std::string_view layers_ = "layers.";
  Listing* listing_ = nullptr;
  bool checking_ = true;
  std::set<std::string, std::less<>> used_;
  uint64_t total_ = 0, done_ = 0, laid_out_ = 0;
  uint64_t saved_ = 0;  // bytes that quantizing saves
  bool quantizes_ = false;
  std::unique_ptr<ThreadPool> pool_;  // that quantizes, made when it is first needed
};

}  // namespace qiao
