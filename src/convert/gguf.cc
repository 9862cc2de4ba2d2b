#include "convert/gguf.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "base/error.h"
#include "base/quote.h"
#include "base/thread_pool.h"
#include "convert/gguf_metadata.h"
#include "convert/gguf_types.h"
#include "convert/tensor_map.h"
#include "formats/gguf_write.h"
#include "models/rotary_rows.h"
#include "models/tensor_loader.h"
#include "tensor/dequantize.h"
#include "tensor/floats.h"
#include "tensor/quantize.h"
#include "text/tokenizer_to_gguf.h"

namespace qiao::convert {
namespace {

namespace fs = std::filesystem;

const GgufKind& kind_named(std::string_view name) {
  for (const GgufKind& kind : gguf_kind_table())
    if (kind.name == name) return kind;
  throw_error(ErrorKind::kInvalidInput, "GGUF type {}: {} were expected", quote_text(std::string(name)),
              fmt::join(gguf_kinds(), ", "));
}

int64_t layer_of(std::string_view name) {
  constexpr std::string_view kStart = "blk.";
  int64_t layer = -1;
  if (name.starts_with(kStart))
    std::from_chars(name.data() + kStart.size(), name.data() + name.size(), layer);
  return layer;
}

struct GgufJob {
  const TensorInfo* source;
  TensorPair target;
  DType dtype;
};

class GgufModelWriter {
 public:
  GgufModelWriter(const ModelFiles& files, const GgufOptions& options)
      : files_(files), kind_(kind_named(options.kind)), pool_(options.threads) {
    if (files.kind() != ModelFiles::Kind::kHuggingFace) {
      throw_error(ErrorKind::kUnsupported,
                  "{}: a Hugging Face directory was expected to write as GGUF; this is such a file",
                  files.path().string());
    }
    config_ = read_decoder_config(files);
    metadata_ = gguf_metadata(files, config_, kind_.file_type);
    divisors_ = gguf_rope_divisors(files, config_);
    if (!files.tokenizer_json().is_null()) {
      const GgufWriteEntries tokenizer = gguf_tokenizer_of(files, config_.vocabulary_size);
      metadata_.insert(metadata_.end(), tokenizer.begin(), tokenizer.end());
    }
    plan();
  }

  void write(const fs::path& out) {
    std::vector<TensorToWrite> tensors;
    if (!divisors_.empty()) {
      tensors.push_back({"rope_freqs.weight", DType::kF32, {std::ssize(divisors_)}, [&] {
                           return std::as_bytes(std::span(divisors_));
                         }});
    }
    for (const GgufJob& job : jobs_)
      tensors.push_back({job.target.gguf, job.dtype, job.source->shape, [&] { return bytes_of(job); }});
    write_gguf(out, metadata_, tensors);
  }

 private:
  void plan() {
    const std::string root(decoder_root(files_));
    std::map<std::string_view, const TensorInfo*> left;
    for (const TensorInfo& tensor : files_.tensors()) left[tensor.name] = &tensor;
    for (TensorPair& pair : tensor_pairs(find_family(ConfigReader(files_)), config_, root)) {
      const auto found = left.find(pair.hugging_face);
      if (found == left.end()) continue;
      const TensorInfo* tensor = found->second;
      const bool floats = is_dense_float(tensor->dtype) || tensor->dtype == DType::kF8_128;
      if (!floats || tensor->shape != pair.shape) {
        throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}; floats of [{}] were expected",
                    files_.path().string(), quote_text(tensor->name), shape_text(*tensor),
                    fmt::join(pair.shape, ", "));
      }
      left.erase(found);
      if (pair.gguf == "output.weight" && config_.tie_word_embeddings) continue;
      const DType dtype = gguf_tensor_dtype(kind_, config_, pair.gguf, layer_of(pair.gguf), pair.shape);
      jobs_.push_back({tensor, std::move(pair), dtype});
    }
    for (const auto& [name, tensor] : left) {
      // A vision tower beside the language model is no part of it.
      if (!name.starts_with(root) || name.ends_with("rotary_emb.inv_freq")) continue;
      throw_error(ErrorKind::kUnsupported,
                  "{}: tensor {} ({}) has no name in llama.cpp's files that is known", files_.path().string(),
                  quote_text(std::string(name)), shape_text(*tensor));
    }
  }

  std::span<const std::byte> bytes_of(const GgufJob& job) {
    const std::byte* source = files_.bytes(*job.source).data();
    const std::vector<int64_t>& shape = job.source->shape;
    const int64_t rows = shape.size() > 1 ? shape.front() : 1, columns = shape.back();
    const int64_t from_bytes = row_bytes(job.source->dtype, columns),
                  to_bytes = row_bytes(job.dtype, columns);
    std::vector<std::byte> ordered;
    if (job.target.paired_rows > 0) {  // of a bias the rows are its elements
      const auto all = files_.bytes(*job.source);
      ordered.assign(all.begin(), all.end());
      reorder_rotary_rows(source, static_cast<int64_t>(all.size()) / shape.front(), job.target.paired_rows,
                          config_.head_dim, true, ordered.data());
      source = ordered.data();
    }
    bytes_.resize(static_cast<size_t>(rows * to_bytes));
    pool_.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
      std::vector<float> row(static_cast<size_t>(columns));
      for (int64_t n = begin; n < end; ++n) {
        if (is_dense_float(job.source->dtype)) {
          to_floats(job.source->dtype, source + n * from_bytes, row);
        } else {
          dequantize(job.source->dtype, source + n * from_bytes, columns, row.data());
        }
        for (float& value : row) value += job.target.gguf_offset;
        quantize(row, job.dtype, bytes_.data() + n * to_bytes);
      }
    });
    files_.release(*job.source);
    return bytes_;
  }

  const ModelFiles& files_;
  const GgufKind& kind_;
  ThreadPool pool_;
  DecoderConfig config_;
  GgufWriteEntries metadata_;
  std::vector<float> divisors_;
  std::vector<GgufJob> jobs_;
  std::vector<std::byte> bytes_;
};

}  // namespace

std::vector<std::string> gguf_kinds() {
  std::vector<std::string> names;
  for (const GgufKind& kind : gguf_kind_table()) names.emplace_back(kind.name);
  return names;
}

void write_gguf_model(const ModelFiles& files, const fs::path& out, const GgufOptions& options) {
  GgufModelWriter(files, options).write(out);
}

}  // namespace qiao::convert
