#include "convert/hugging_face.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "base/quote.h"
#include "convert/hugging_face_config.h"
#include "convert/tensor_map.h"
#include "formats/quantization_config.h"
#include "formats/safetensors_write.h"
#include "models/lora_slots.h"
#include "models/rotary_rows.h"
#include "models/tensor_loader.h"
#include "tensor/dequantize.h"
#include "tensor/floats.h"
#include "text/tokenizer_export.h"

namespace qiao::convert {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostFileBytes = size_t{256} << 20;  // of a tokenizer, the largest

// What an adapter adds to one matrix, rows in Transformers' order.
struct Addition {
  int64_t rank = 0;
  double scale = 0;
  std::vector<float> a, b;  // [rank, columns], [rows, rank]
};

// One tensor on its way.
struct Job {
  const TensorInfo* source;
  TensorPair target;  // by gguf's or by the directory's own name
  DType dtype;
  const LoraPair* pair = nullptr;  // of the adapter
  const LoraModule* module = nullptr;
};

class DirectoryWriter {
 public:
  DirectoryWriter(const ModelFiles& files, const HuggingFaceOptions& options)
      : files_(files),
        options_(options),
        is_gguf_(files.kind() == ModelFiles::Kind::kGguf),
        config_(read_decoder_config(files)) {
    if (options.lora != nullptr) modules_ = lora_modules(files, config_);
    is_gguf_ ? plan_gguf() : plan_directory();
    plan_adapter();
  }

  void write(const fs::path& out) {
    std::map<std::string, std::string> texts;
    if (is_gguf_) texts = gguf_texts();
    fs::create_directories(out);
    for (const auto& [name, text] : texts) write_file_atomically(out / name, text);
    if (!is_gguf_) copy_files(out);
    std::vector<TensorToWrite> tensors;
    for (const Job& job : jobs_) {
      tensors.push_back(
          {job.target.hugging_face, job.dtype, job.source->shape, [&] { return bytes_of(job); }});
    }
    write_safetensors(out / "model.safetensors", tensors, {{"format", "pt"}});
  }

 private:
  void plan_directory() {
    const std::string advice = quantization_advice(files_.config(), files_.tensors());
    for (const TensorInfo& tensor : files_.tensors()) {
      if (!advice.empty() && !is_dense_float(tensor.dtype) && !traits(tensor.dtype).quantized) {
        throw_error(ErrorKind::kUnsupported, "{}: tensor {} is {}; floats were expected{}",
                    files_.path().string(), quote_text(tensor.name), shape_text(tensor), advice);
      }
      Job job{.source = &tensor, .target = {}, .dtype = tensor.dtype};
      job.target.hugging_face = tensor.name;
      if (options_.dtype && is_dense_float(tensor.dtype)) job.dtype = *options_.dtype;
      if (files_.is_fp8(tensor)) {  // floats again
        job.dtype = options_.dtype.value_or(DType::kBF16);
        was_f8_ = true;
      }
      jobs_.push_back(std::move(job));
    }
  }

  void plan_gguf() {
    check_convertible(files_, config_);
    const Family& family = find_family(ConfigReader(files_));
    std::map<std::string_view, const TensorInfo*> left;
    for (const TensorInfo& tensor : files_.tensors()) left[tensor.name] = &tensor;
    for (TensorPair& pair : tensor_pairs(family, config_, kDecoderRoots.front())) {
      const TensorInfo* tensor = files_.find(pair.gguf);
      if (tensor == nullptr || tensor->shape != pair.shape) continue;
      left.erase(pair.gguf);
      jobs_.push_back(
          {.source = tensor, .target = std::move(pair), .dtype = options_.dtype.value_or(DType::kBF16)});
    }
    left.erase("rope_freqs.weight");  // config.json says them
    for (const auto& [name, tensor] : left) {
      throw_error(ErrorKind::kUnsupported, "{}: tensor {} ({}) has no name in Transformers' {} that is known",
                  files_.path().string(), quote_text(std::string(name)), shape_text(*tensor), family.name);
    }
  }

  void plan_adapter() {
    if (options_.lora == nullptr) return;
    const LoraFiles& lora = *options_.lora;
    for (const LoraPair& pair : lora.pairs()) {
      const LoraModule* module = find_lora_module(modules_, pair.module, lora.gguf());
      const auto job = std::ranges::find_if(
          jobs_, [&](const Job& each) { return module != nullptr && each.source->name == module->tensor; });
      if (job == jobs_.end()) {
        throw_error(ErrorKind::kUnsupported,
                    "{}: module {}: the base has no such module that takes an adapter", lora.source(),
                    quote_text(pair.module));
      }
      if (pair.b->shape[0] != module->rows || pair.a->shape[1] != module->columns) {
        throw_error(ErrorKind::kInvalidInput, "{}: module {} is [{}, {}]; [{}, {}] was expected",
                    lora.source(), quote_text(pair.module), pair.b->shape[0], pair.a->shape[1], module->rows,
                    module->columns);
      }
      if (!is_gguf_ && !is_dense_float(job->source->dtype) && job->source->dtype != DType::kF8_128) {
        throw_error(ErrorKind::kUnsupported, "{}: tensor {} is {}; floats were expected to merge into",
                    files_.path().string(), quote_text(job->source->name), shape_text(*job->source));
      }
      lora.scale(pair);  // checks the rank
      job->pair = &pair;
      job->module = module;
    }
  }

  std::map<std::string, std::string> gguf_texts() const {
    std::map<std::string, std::string> texts;
    const DType dtype = options_.dtype.value_or(DType::kBF16);
    texts["config.json"] = dump_json(config_json(files_, config_, dtype), 2) + "\n";
    const GgufMetadata& metadata = files_.metadata();
    if (metadata.find("tokenizer.ggml.model") == nullptr) return texts;
    texts["tokenizer.json"] = dump_json(tokenizer_json_of(metadata)) + "\n";
    texts["tokenizer_config.json"] =
        dump_json(tokenizer_config_of(metadata, config_.max_position_embeddings), 2) + "\n";
    texts["generation_config.json"] = dump_json(generation_config_of(metadata), 2) + "\n";
    return texts;
  }

  void copy_files(const fs::path& out) const {
    for (const fs::directory_entry& entry : fs::directory_iterator(files_.path())) {
      const std::string name = entry.path().filename().string();
      if (!entry.is_regular_file() || name.ends_with(".safetensors") || name.ends_with(".bin") ||
          name.ends_with(".safetensors.index.json") || name.ends_with(".gguf"))
        continue;
      if (was_f8_ && name == kQuantizationFile) continue;
      if (name == "config.json" && was_f8_) {
        write_file_atomically(out / name, dump_json(without_quantization(files_.config()), 2) + "\n");
        continue;
      }
      write_file_atomically(out / name, read_regular_file(entry.path(), kMostFileBytes));
    }
  }

  std::span<const std::byte> bytes_of(const Job& job) {
    const std::span<const std::byte> raw = files_.bytes(*job.source);
    if (job.pair == nullptr && !is_gguf_ && job.dtype == job.source->dtype) {
      bytes_.assign(raw.begin(), raw.end());
      files_.release(*job.source);
      return bytes_;
    }
    const int64_t rows = job.source->shape.size() > 1 ? job.source->shape[0] : 1,
                  columns = job.source->elements() / rows;
    const int64_t width = row_bytes(job.source->dtype, columns);
    std::vector<std::byte> ordered;
    const std::byte* source = raw.data();
    if (job.target.paired_rows > 0) {  // of a bias the rows are its elements
      ordered.assign(raw.begin(), raw.end());
      const int64_t each = static_cast<int64_t>(raw.size()) / job.source->shape[0];
      reorder_rotary_rows(raw.data(), each, job.target.paired_rows, config_.head_dim, false, ordered.data());
      source = ordered.data();
    }
    const std::optional<Addition> addition = addition_of(job);
    bytes_.resize(static_cast<size_t>(rows * row_bytes(job.dtype, columns)));
    std::vector<float> row(static_cast<size_t>(columns));
    std::vector<double> sum;
    for (int64_t n = 0; n < rows; ++n) {
      dequantize(job.source->dtype, source + n * width, columns, row.data());
      for (float& value : row) value -= job.target.gguf_offset;
      if (addition) add(*addition, n, row, sum);
      from_floats(row, job.dtype, bytes_.data() + n * row_bytes(job.dtype, columns));
    }
    files_.release(*job.source);
    return bytes_;
  }

  std::optional<Addition> addition_of(const Job& job) const {
    if (job.pair == nullptr) return std::nullopt;
    const LoraFiles& lora = *options_.lora;
    Addition made{job.pair->a->shape[0], lora.scale(*job.pair), lora.floats(*job.pair->a),
                  lora.floats(*job.pair->b)};
    if (lora.gguf() && job.module->rotary_rows > 0)
      made.b = reordered_rotary_rows(made.b, made.rank, job.module->rotary_rows, config_.head_dim, false);
    return made;
  }

  // To row n of a matrix, in float64: rounded to float32 here, which a narrower dtype then rounds once more
  // only where float32 lies in the very middle of two of its values.
  static void add(const Addition& addition, int64_t n, std::vector<float>& row, std::vector<double>& sum) {
    sum.assign(row.begin(), row.end());
    const auto columns = static_cast<int64_t>(row.size());
    for (int64_t r = 0; r < addition.rank; ++r) {
      const double factor =
          addition.scale * static_cast<double>(addition.b[static_cast<size_t>(n * addition.rank + r)]);
      const float* a = addition.a.data() + r * columns;
      for (int64_t k = 0; k < columns; ++k) sum[static_cast<size_t>(k)] += factor * static_cast<double>(a[k]);
    }
    for (size_t k = 0; k < row.size(); ++k) row[k] = static_cast<float>(sum[k]);
  }

  const ModelFiles& files_;
  const HuggingFaceOptions& options_;
  bool is_gguf_, was_f8_ = false;
  DecoderConfig config_;
  std::vector<LoraModule> modules_;
  std::vector<Job> jobs_;
  std::vector<std::byte> bytes_;
};

}  // namespace

void write_hugging_face(const ModelFiles& files, const fs::path& out, const HuggingFaceOptions& options) {
  std::error_code ignored;  // what is not there is not the same
  if (fs::equivalent(out, files.path(), ignored)) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: holds the model itself; another folder was expected to write to", out.string());
  }
  DirectoryWriter(files, options).write(out);
}

}  // namespace qiao::convert
