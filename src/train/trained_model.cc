#include "train/trained_model.h"

#include <algorithm>

#include "base/error.h"
#include "base/thread_pool.h"
#include "hub/digest.h"
#include "models/decoder_ranks.h"
#include "models/initial_weights.h"
#include "models/weights.h"
#include "train/model_directory.h"

namespace qiao::train {
namespace {

// Ranks that share cores share them out.
int threads_of(const TrainOptions& options, const Communicator& communicator) {
  if (options.threads > 0 || communicator.size() == 1) return options.threads;
  return std::max(1, usable_cpus() / communicator.sharing_cores());
}

bool is_gguf(const ModelFiles& files) { return files.kind() == ModelFiles::Kind::kGguf; }

// Tells weights apart without reading all of them: names and shapes, and how each tensor begins and ends.
std::string fingerprint(const ModelFiles& files) {
  constexpr size_t kEdge = 256;  // bytes
  Digest digest(Digest::Kind::kSha256);
  for (const TensorInfo& tensor : files.tensors()) {
    digest.update(fmt::format("{} {} [{}]", tensor.name, tensor.type_name(), fmt::join(tensor.shape, ", ")));
    if (files.files().empty()) continue;  // drawn by the seed, which is fixed, too
    const std::span<const std::byte> bytes = files.bytes(tensor);
    const size_t edge = std::min(kEdge, bytes.size());
    for (const std::span<const std::byte> part : {bytes.first(edge), bytes.last(edge)})
      digest.update({reinterpret_cast<const char*>(part.data()), part.size()});
    files.release(tensor);
  }
  return digest.hex().substr(0, 16);
}

}  // namespace

TrainedModel::TrainedModel(const TrainOptions& options_of_run, const Communicator& communicator, Ranks& ranks)
    : options(options_of_run) {
  files = open_or_initialize(options.init, options.data.seed, {.fp8_as_floats = !options.lora.on()});
  const bool gguf = is_gguf(*files);
  if (gguf && !options.lora.on()) {
    throw_error(
        ErrorKind::kUnsupported,
        "{}: a Hugging Face directory was expected to train all of a model; an adapter is trained on a "
        "GGUF file too (--lora-rank), and `qiao export --hf` makes a directory of it",
        options.init.string());
  }
  backend = make_backend(
      options.device, {.threads = threads_of(options, communicator), .device = communicator.place_on_host()});
  if (options.profile) {
    peaks = backend->measure_peaks();
  } else if (options.measure_peak) {
    peaks = backend->measure_arithmetic();
  }
  if (ranks.group().size() > 1) group = backend->make_collectives(ranks.group());
  if (ranks.data().size() > 1) data = backend->make_collectives(ranks.data());
  ranks.connect(group.get(), data.get());
  const bool f32 = options.dtype == "f32";
  parameters = std::make_unique<Parameters>(
      *backend, f32 ? Parameters::SmallTensors::kF32 : Parameters::SmallTensors::kAsInFile);
  DecoderOptions load;
  load.quantize_f8 = options.dtype == "fp8";
  load.trainers = group.get();
  load.ranks = &ranks.group();  // for rollouts and samples
  load.laid_out = [&](const LaidOutTensor& tensor) {
    count_matrix(tensor);
    if (!options.lora.on()) parameters->add(tensor);
  };
  if (!options.lora.on()) {
    load.float_weights = f32 ? DType::kF32 : DType::kBF16;
    decoder = Decoder::load(*files, *backend, load);
  } else {
    // The base stays as the files have it, but for fp8. A quantized one computes as it is served.
    if (!f32) load.float_weights = DType::kBF16;
    if (f32 && !gguf) load.compute = DecoderOptions::Policy::kF32;
    decoder = Decoder::load(*files, *backend, load);
    lora = std::make_unique<LoraAdapter>(options.lora, options.data.seed, options.init, *files, *decoder,
                                         *parameters);
  }
  if (group != nullptr) {
    agree_on_model(ranks.group(), *backend,
                   fmt::format("{} of weights {}", options.init.filename().string(), fingerprint(*files)));
  }
  parameters->mark_summed(decoder->weights().summed);
  std::vector<const Weight*> outer = {decoder->weights().embedding.table.get()};
  for (const nn::WeightPiece& piece : decoder->weights().head.pieces) outer.push_back(piece.weight.get());
  ranks.share(*parameters, [&](const Parameters::Named& tensor) {
    return whole_step_cost(options.optimizer, outer, tensor);
  });
  optimizer = std::make_unique<Optimizer>(*backend, *parameters, options.optimizer, outer, &ranks);
  const bool has_tokenizer =
      gguf ? files->metadata().find("tokenizer.ggml.model") != nullptr : !files->tokenizer_json().is_null();
  if (has_tokenizer) tokenizer = Tokenizer::from_model(*files);
}

// A matrix of all experts is told of once for each.
void TrainedModel::count_matrix(const LaidOutTensor& tensor) {
  if (tensor.weight == nullptr || tensor.expert > 0) return;
  if (tensor.weight->segments().front().dtype == DType::kF8_128) {
    ++f8_matrices;
  } else if (tensor.weight->columns() % kF8Block != 0) {
    unfit_matrices.push_back(tensor.source->name);
  }
}

void TrainedModel::prepare() {
  if (lora != nullptr) {
    lora->prepare(*parameters);
  } else {
    parameters->prepare(*files);
  }
  optimizer->prepare();
}

std::unique_ptr<Decoder> TrainedModel::load_frozen() const {
  DecoderOptions frozen;
  frozen.float_weights = options.dtype == "f32" ? DType::kF32 : DType::kBF16;
  frozen.quantize_f8 = options.dtype == "fp8";
  frozen.trainers = group.get();
  return Decoder::load(*files, *backend, frozen);
}

void TrainedModel::write(const std::filesystem::path& folder, const MasterOf& master) const {
  if (lora != nullptr) {
    lora->write(folder, *parameters, master);
  } else {
    write_model_directory(folder, options.init, *files, *parameters, master);
  }
}

Json TrainedModel::fixed() const {
  Json fixed = {{"mode", options.mode}};
  fixed.update(lora != nullptr ? lora->fixed() : Json{{"--lora-rank", 0}});
  const bool measures_against_init =
      options.mode == "dpo" || (options.mode == "grpo" && options.policy.beta > 0);
  // Else it gives names, shapes and the tokenizer alone.
  if (lora != nullptr || measures_against_init)
    fixed["--init"] = fmt::format("a model of weights {}", fingerprint(*files));
  return fixed;
}

// Matrix products, and attention's over the pairs that are seen. The way back costs twice as much as the way
// there, or, of weights that are not trained, as much. Only tokens with a loss reach the head, a group's
// share of them each rank's.
double TrainedModel::flops(const PackedBatch& batch) const {
  const DecoderConfig& config = decoder->config();
  const DecoderWork work = decoder->work();
  double pairs = 0;  // of all layers
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const bool slides = config.layer_slides[static_cast<size_t>(layer)];
    for (size_t s = 1; s < batch.starts.size(); ++s) {
      const auto length = static_cast<double>(batch.starts[s] - batch.starts[s - 1]);
      const double window = slides ? std::min(static_cast<double>(config.sliding_window), length) : length;
      pairs += length * window - window * (window - 1) / 2;
    }
  }
  const double attention = 4 * static_cast<double>(config.num_attention_heads * config.head_dim) * pairs;
  const auto tokens = static_cast<double>(batch.tokens.size());
  const auto labels =
      static_cast<double>(std::ranges::count_if(batch.labels, [](int32_t id) { return id >= 0; })) /
      (group != nullptr ? group->size() : 1);
  const double passes = lora != nullptr ? 2 : 3;
  return passes * (tokens * work.layer_flops_per_token + labels * work.logits_flops_per_row) + 3 * attention;
}

}  // namespace qiao::train
