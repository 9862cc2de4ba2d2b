#include "train/trainer.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "backend/backend.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "formats/model_files.h"
#include "train/checkpoint.h"
#include "train/model_directory.h"
#include "train/next_token.h"
#include "train/open_data.h"
#include "train/policy.h"
#include "train/preference.h"

namespace qiao::train {
namespace {

// Everything of a run that lives from step to step.
class Run {
 public:
  Run(const TrainOptions& options, TrainObserver& observer);
  void go();

 private:
  StepRecord step(int64_t number);
  std::unique_ptr<Objective> make_objective();
  ReferencePass make_reference(const Objective& objective);
  double accumulate(int64_t part);
  void save(int64_t step);

  const TrainOptions& options_;
  TrainObserver& observer_;
  std::shared_ptr<ModelFiles> files_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Parameters> parameters_;
  std::shared_ptr<Decoder> decoder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<DataStream> data_;
  std::unique_ptr<Objective> objective_;
  std::unique_ptr<DecoderTraining> passes_;
  std::unique_ptr<Decoder> reference_;  // what is measured against: the initial weights
  std::unique_ptr<DecoderTraining> reference_passes_;
  int64_t done_ = 0;
  std::vector<float> dlogprob_;
};

Run::Run(const TrainOptions& options, TrainObserver& observer) : options_(options), observer_(observer) {
  check_options(options);
  files_ = ModelFiles::open(options.init);
  if (files_->kind() != ModelFiles::Kind::kHuggingFace) {
    throw_error(ErrorKind::kUnsupported, "{}: a Hugging Face directory was expected to train from",
                options.init.string());
  }
  backend_ = make_backend(options.device, {.threads = options.threads});
  const bool bf16 = options.dtype == "bf16";
  parameters_ = std::make_unique<Parameters>(
      *backend_, bf16 ? Parameters::SmallTensors::kAsInFile : Parameters::SmallTensors::kF32);
  DecoderOptions decoder;
  decoder.float_weights = bf16 ? DType::kBF16 : DType::kF32;
  decoder.laid_out = [&](const LaidOutTensor& tensor) { parameters_->add(tensor); };
  decoder_ = Decoder::load(*files_, *backend_, decoder);
  parameters_->prepare(*files_);
  if (!files_->tokenizer_json().is_null()) tokenizer_ = Tokenizer::from_model(*files_);
  objective_ = make_objective();
  const Recompute recompute = options.recompute == "on"    ? Recompute::kOn
                              : options.recompute == "off" ? Recompute::kOff
                                                           : Recompute::kAuto;
  passes_ = std::make_unique<DecoderTraining>(*decoder_, objective_->most_tokens(),
                                              objective_->most_documents(), recompute);
  if (options.resume) {
    const CheckpointState state = load_checkpoint(options.out, *parameters_);
    done_ = state.step;
    objective_->set_state(state.objective);
  }
}

std::unique_ptr<Objective> Run::make_objective() {
  const auto warn = [&](const std::string& text) { observer_.on_warning(text); };
  if (options_.mode == "grpo") {
    auto policy = std::make_unique<Policy>(Policy::Setup{.options = options_.policy,
                                                         .data = options_.data,
                                                         .batch = options_.batch,
                                                         .micro_batch = options_.micro_batch,
                                                         .files = *files_,
                                                         .decoder = decoder_,
                                                         .warn = warn});
    if (options_.policy.beta > 0) policy->set_reference(make_reference(*policy));
    return policy;
  }
  data_ = open_data(options_, *files_, tokenizer_.get(), decoder_->config().vocabulary_size, warn);
  if (options_.mode != "dpo")
    return std::make_unique<NextToken>(*data_, options_.batch, options_.micro_batch);
  auto preference =
      std::make_unique<Preference>(*data_, options_.batch, options_.micro_batch, options_.preference);
  preference->set_reference(make_reference(*preference));
  return preference;
}

ReferencePass Run::make_reference(const Objective& objective) {
  DecoderOptions frozen;
  frozen.float_weights = options_.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  reference_ = Decoder::load(*files_, *backend_, frozen);
  reference_passes_ =
      std::make_unique<DecoderTraining>(*reference_, objective.most_tokens(), objective.most_documents());
  return [this](const PackedBatch& batch) { return reference_passes_->forward(batch); };
}

// Adds the gradients of one part of a step; its share of the loss.
double Run::accumulate(int64_t part) {
  const PackedBatch batch = objective_->part(part);
  const std::span<const float> logprob = passes_->forward(batch);
  dlogprob_.assign(batch.tokens.size(), 0.0f);
  const double loss = objective_->loss(part, logprob, dlogprob_);
  passes_->backward(dlogprob_, *parameters_);
  return loss;
}

StepRecord Run::step(int64_t number) {
  const auto begin = std::chrono::steady_clock::now();
  StepRecord record;
  record.step = number;
  record.learning_rate = learning_rate(options_, number);
  objective_->begin_step(number);
  parameters_->zero_gradients();
  for (int64_t part = 0; part < objective_->parts(); ++part) record.loss += accumulate(part);
  record.gradient_norm = parameters_->gradient_norm();
  if (!std::isfinite(record.loss) || !std::isfinite(record.gradient_norm)) {
    throw_error(
        ErrorKind::kInvalidInput,
        "step {}: the loss is {} and the gradient's norm {}: the run ends here, its last checkpoint stays; a "
        "lower --lr or a --clip may help",
        number, record.loss, record.gradient_norm);
  }
  AdamWSettings settings = options_.optimizer;
  settings.learning_rate = record.learning_rate;
  // As torch.nn.utils.clip_grad_norm_ has it.
  const double scale = options_.clip > 0 ? std::min(1.0, options_.clip / (record.gradient_norm + 1e-6)) : 1.0;
  parameters_->update(settings, scale, number);
  record.more = objective_->report();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  record.tokens_per_second = static_cast<double>(objective_->tokens()) / seconds.count();
  return record;
}

void Run::save(int64_t step) {
  save_checkpoint(options_.out, {step, objective_->state()}, *parameters_, options_.keep_checkpoints);
  write_model_directory(options_.out / "model", options_.init, *files_, *parameters_);
}

void Run::go() {
  TrainReport report;
  report.parameters = parameters_->count();
  report.memory_bytes =
      decoder_->weight_bytes() + parameters_->bytes() + passes_->bytes() + objective_->bytes();
  if (reference_) report.memory_bytes += reference_->weight_bytes() + reference_passes_->bytes();
  observer_.on_start(report);
  if (options_.dry_run) return;
  std::filesystem::create_directories(options_.out);
  if (!options_.resume && std::filesystem::exists(options_.out / "metrics.jsonl")) {
    throw_error(ErrorKind::kInvalidInput, "{}: a run is here already; --resume goes on with it",
                options_.out.string());
  }
  if (options_.resume) cut_metrics(options_.out, done_);
  if (!options_.settings.empty()) write_file_atomically(options_.out / kSettingsFile, options_.settings);
  std::ofstream metrics(options_.out / "metrics.jsonl", std::ios::app);
  bool stops = false, due = false;  // due: a checkpoint, as soon as the objective is at rest
  for (int64_t number = done_ + 1; number <= options_.steps; ++number) {
    const StepRecord record = step(number);
    Json line = {{"step", record.step},
                 {"loss", record.loss},
                 {"grad_norm", record.gradient_norm},
                 {"lr", record.learning_rate},
                 {"tokens_per_second", record.tokens_per_second}};
    line.update(record.more);
    metrics << dump_json(line) << std::endl;
    observer_.on_step(record);
    stops = stops || observer_.should_stop();
    due = due || stops || number == options_.steps ||
          (options_.checkpoint_every > 0 && number % options_.checkpoint_every == 0);
    if (!due || !objective_->at_rest()) continue;
    save(number);
    due = false;
    if (stops) break;
  }
}

}  // namespace

void train(const TrainOptions& options, TrainObserver& observer) { Run(options, observer).go(); }

}  // namespace qiao::train
