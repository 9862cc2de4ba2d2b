// The one decoder: every language-model family, run from its DecoderConfig.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "formats/model_files.h"
#include "models/config.h"
#include "models/shards.h"

namespace qiao {

class Communicator;
class LoraFiles;
struct DecoderWeights;
struct LaidOutLora;

// Where a tensor of a file went: rows of a weight, or a small F32 tensor on the chip. One that is on another
// rank alone went nowhere: no weight, no parameter, no rows.
struct LaidOutTensor {
  const TensorInfo* source;
  Weight* weight = nullptr;
  Tensor parameter;  // where `weight` is null: all that lies with it
  // Rows of one expert of the weight, or elements of the parameter: [first_row, first_row + rows).
  int64_t expert = 0, first_row = 0, rows = 0;
  // Which part of the source's matrix (of one expert; one column where it is small) lies there: these rows,
  // from source_row on, of so many, and these columns.
  int64_t source_row = 0, source_rows = 0, source_columns = 0;
  Range columns;
};

struct DecoderOptions {
  enum class Policy { kAuto, kF32, kBF16, kQ8 };
  // kAuto: F32 and F16 weights compute in kF32, BF16 in kBF16, F8_128 in kF8, other block formats in kQ8.
  // Attention over the cache computes in kBF16 where kBF16 is asked for, or its projections do or in kF8.
  Policy compute = Policy::kAuto;
  int64_t context = 0;  // see read_decoder_config
  // Float weights are laid out in this dtype (F32 or BF16, what training computes in) rather than in the
  // file's, or quantized from it.
  std::optional<DType> float_weights;
  // Matrices of layers and experts (not the embedding, the output matrix and routers) that are floats, with
  // rows of whole blocks, are quantized to F8_128 (quantize_f8) as they are laid out. Loading throws
  // Error(kUnsupported) where one is of another block format, or where there is none at all. What is made so,
  // and what an FP8 checkpoint has with the same scales for 128 rows, has its way back in E4M3, too.
  bool quantize_f8 = false;
  // The processes that the model is spread over (models/shards.h), each of which loads its part: the first is
  // called as one alone is, the others follow. Outlives the decoder. Null: one process.
  Communicator* ranks = nullptr;
  // Of the processes that are to train the model together, all of which make the same passes
  // (models/decoder_training.h). The head is whole on each. With `ranks` beside it, the same processes, there
  // are steps too, between lead() and let_go(); without it none. Outlives the decoder.
  Collectives* trainers = nullptr;
  // Called for every tensor once it is laid out: training keeps a canonical copy of each.
  std::function<void(const LaidOutTensor& tensor)> laid_out;
  // Called as tensors are laid out, with bytes done and bytes in all; may throw to stop loading.
  std::function<void(uint64_t done, uint64_t total)> progress;
};

// Pages of every layer: page p of each layer belongs together, one page table serves all. Or two groups of
// layers, where sliding_pages > 0: those with a window have so many pages, in numbers and with a table of
// their own, and the others `pages`; the pages before a sequence's window can then be given to another.
class KvCache {
 public:
  KvCache(Backend& backend, const DecoderConfig& config, int64_t pages, int64_t page_tokens, DType dtype,
          int64_t sliding_pages = 0);
  KvPages& layer(int64_t index) { return *layers_[static_cast<size_t>(index)]; }
  const KvPages& layer(int64_t index) const { return *layers_[static_cast<size_t>(index)]; }
  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t pages() const { return pages_; }
  int64_t sliding_pages() const { return sliding_pages_; }                          // 0: one group
  bool slides(int64_t layer) const { return slides_[static_cast<size_t>(layer)]; }  // is of the sliding group
  int64_t page_tokens() const { return page_tokens_; }
  uint64_t serial() const { return serial_; }  // no other cache of this process has had it
  // Bytes that one page more takes on the chip over all layers of a group: to plan by before making a cache.
  // With one group a page takes both. Throws Error(kInvalidInput) where the model's heads do not divide into
  // the dtype's blocks.
  struct PageBytes {
    uint64_t full = 0, sliding = 0;
  };
  static PageBytes bytes_per_page(Backend& backend, const DecoderConfig& config, int64_t page_tokens,
                                  DType dtype);

 private:
  int64_t pages_, page_tokens_, sliding_pages_;
  uint64_t serial_;
  std::vector<bool> slides_;
  std::vector<std::unique_ptr<KvPages>> layers_;
};

// One step's work, in host memory. Sequence s owns tokens [query_starts[s], query_starts[s+1]); see
// AttentionPaged.
struct StepBatch {
  std::span<const int32_t> tokens;        // [T], each in [0, V): checked
  std::span<const int32_t> positions;     // [T]
  std::span<const int32_t> slots;         // [T]
  std::span<const int32_t> page_table;    // [S, M] row-major
  std::span<const int32_t> lengths;       // [S]
  std::span<const int32_t> query_starts;  // [S + 1]
  std::span<const int32_t> output_rows;   // [O] rows of T whose outputs are wanted, ascending
  // [S] the adapter of each sequence, as add_adapter numbered it; -1: none. Empty: none at all. Sequences of
  // one adapter that lie side by side are computed together.
  std::span<const int32_t> adapters;
  // As slots and page_table, of the sliding group where the cache has one, else empty. A page that the first
  // of a sequence's tokens does not see may be -1.
  std::span<const int32_t> sliding_slots, sliding_table;
  // Tokens that an earlier step drew and the host has not seen yet, as FeedDrawn has them: where
  // from_drawn[t] is 0 or more, token t is that one of drawn_ids. Absent and empty: there are none.
  Tensor drawn_ids;                     // I32 [R], in the chip's memory
  std::span<const int32_t> from_drawn;  // [T], each in [-1, R)
  // Of several ranks only the first has drawn_ids: the others take all tokens from its chip, in the order of
  // the chips' work, and no host waits for them.
  bool takes_tokens = false;
};

// What a step costs at the least: benches take shares of the machine from it.
struct DecoderWork {
  Compute compute = Compute::kF32;   // of the layers' matrices
  double layer_flops_per_token = 0;  // matrix products of all layers, active experts only, without the logits
  double logits_flops_per_row = 0;
  double bytes_per_step = 0;  // of weights that a step of one token reads: active experts, logits
};

class Decoder {
 public:
  // Reads, checks and lays out every tensor, releasing the file's pages one by one. Throws
  // Error(kInvalidInput) naming a missing or misshapen tensor, with both shapes; Error(kTooLarge) before
  // loading where memory will not do. Over several ranks: Error(kUnsupported) where it cannot be spread over
  // so many, Error(kInvalidInput) where a rank has another model or device.
  static std::unique_ptr<Decoder> load(const ModelFiles& files, Backend& backend,
                                       const DecoderOptions& options = {});
  ~Decoder();

  const DecoderConfig& config() const;  // of several ranks: its heads are this one's
  const DecoderWeights& weights() const;
  Backend& backend() const;
  uint64_t weight_bytes() const;  // adapters with them

  // Of pages over which attention has the bits of the same sequences in training.
  DType packed_kv_dtype() const;

  // How many processes share the model.
  int ranks() const;
  // Of several processes, called by all: throws Error(kInvalidInput) in the first, naming another, where
  // `what` differs.
  void agree(const std::string& what) const;
  Collectives* trainers() const;  // DecoderOptions::trainers, where those are several; else null
  // Of the ranks behind the first: takes part in what the first one's callers do, until its decoder is
  // destroyed, or of trainers lets them go. Throws what a step throws.
  void follow() const;
  // Of trainers the first: the others are in follow(), and caches, workspaces and steps can be had, from one
  // call to the other. What was made stays for the next time.
  void lead() const;
  void let_go() const;
  // What a cache may take on each rank.
  uint64_t free_bytes() const;

  // Loads a LoRA adapter beside the weights, for steps to name; returns its number: 0, 1, … Only before the
  // first workspace is made. Errors as add_lora's (models/lora.h), which tells `laid_out` too.
  int32_t add_adapter(const LoraFiles& files,
                      const std::function<void(const LaidOutLora& pair)>& laid_out = {});
  int32_t adapters() const;  // how many there are
  DecoderWork work() const;

  // Memory that a step of at most T tokens, S sequences of M pages and O outputs needs; made once, reused
  // each step.
  struct Limits {
    int64_t tokens = 512, sequences = 1, pages_per_sequence = 1;
    int64_t outputs = 1;  // rows of hidden, where logits are not wanted
    int64_t logits = -1;  // rows of both, where they are: at most outputs; -1: as many
  };
  class Workspace;
  // What it takes beside the cache: to plan by, with a cache of any number of pages.
  size_t workspace_bytes(const Limits& limits, const KvCache& cache) const;
  std::unique_ptr<Workspace> make_workspace(const Limits& limits, const KvCache& cache) const;

  // A page of one group's layers (KvCache) as bytes, of all ranks one after another, and back. Of several
  // ranks the cache is one that a workspace was made for.
  int64_t page_bytes(const KvCache& cache, bool sliding) const;
  void export_page(const KvCache& cache, int64_t page, bool sliding, std::span<std::byte> bytes) const;
  void import_page(KvCache& cache, int64_t page, bool sliding, std::span<const std::byte> bytes) const;

  // Runs one step. Returns views in the chip's memory, valid until the workspace's next use:
  struct Outputs {
    Tensor hidden;  // F32 [O, C]: after the final norm
    Tensor logits;  // F32 [O, V]; absent where want_logits is false, and on ranks that follow
  };
  Outputs forward(const StepBatch& batch, KvCache& cache, Workspace& workspace,
                  bool want_logits = true) const;

 private:
  struct Parts;
  explicit Decoder(std::unique_ptr<Parts> parts);
  // A step that was checked.
  Outputs compute(const StepBatch& batch, KvCache& cache, Workspace& workspace, bool want_logits) const;
  std::unique_ptr<Parts> parts_;
};

class Decoder::Workspace {
 public:
  virtual ~Workspace() = default;
  virtual size_t bytes() const = 0;
};

}  // namespace qiao
