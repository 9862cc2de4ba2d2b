#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "backend/backend.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "formats/model_files.h"
#include "models/weights.h"
#include "train/checkpoint.h"
#include "train/model_directory.h"
#include "train/next_token.h"
#include "train/open_data.h"
#include "train/policy.h"
#include "train/preference.h"
#include "train/ranks.h"

namespace qiao::train {
namespace {

// Everything of a run that lives from step to step.
class Run {
 public:
  Run(const TrainOptions& options, TrainObserver& observer, Communicator& communicator);
  void go();

 private:
  StepRecord step(int64_t number);
  std::unique_ptr<Objective> make_objective();
  ReferencePass make_reference(const Objective& objective);
  double accumulate(int64_t part);
  double add_gradients();
  double gradient_norm();
  void save(int64_t step);
  void open_run();
  void tell(const StepRecord& record);

  const TrainOptions& options_;
  TrainObserver& observer_;
  Ranks ranks_;
  std::shared_ptr<ModelFiles> files_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Parameters> parameters_;
  std::shared_ptr<Decoder> decoder_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<DataStream> data_;
  std::unique_ptr<Objective> objective_;
  std::unique_ptr<DecoderTraining> passes_;
  std::unique_ptr<Decoder> reference_;  // what is measured against: the initial weights
  std::unique_ptr<DecoderTraining> reference_passes_;
  int64_t done_ = 0;
  std::vector<float> dlogprob_;
  std::ofstream metrics_;
};

// Ranks that share cores share them out.
int threads_of(const TrainOptions& options, const Communicator& communicator) {
  if (options.threads > 0 || communicator.size() == 1) return options.threads;
  return std::max(1, usable_cpus() / communicator.sharing_cores());
}

Run::Run(const TrainOptions& options, TrainObserver& observer, Communicator& communicator)
    : options_(options), observer_(observer), ranks_(communicator, options.virtual_ranks) {
  if (const std::string text = optimizer_warning(options.optimizer); !text.empty()) observer.on_warning(text);
  files_ = ModelFiles::open(options.init);
  if (files_->kind() != ModelFiles::Kind::kHuggingFace) {
    throw_error(ErrorKind::kUnsupported, "{}: a Hugging Face directory was expected to train from",
                options.init.string());
  }
  backend_ = make_backend(options.device, {.threads = threads_of(options, communicator)});
  const bool bf16 = options.dtype == "bf16";
  parameters_ = std::make_unique<Parameters>(
      *backend_, bf16 ? Parameters::SmallTensors::kAsInFile : Parameters::SmallTensors::kF32);
  DecoderOptions decoder;
  decoder.float_weights = bf16 ? DType::kBF16 : DType::kF32;
  decoder.laid_out = [&](const LaidOutTensor& tensor) { parameters_->add(tensor); };
  decoder_ = Decoder::load(*files_, *backend_, decoder);
  ranks_.share(*parameters_);
  parameters_->prepare(*files_);
  std::vector<const Weight*> outer = {decoder_->weights().embedding.table.get()};
  for (const nn::WeightPiece& piece : decoder_->weights().head.pieces) outer.push_back(piece.weight.get());
  optimizer_ = std::make_unique<Optimizer>(*backend_, *parameters_, options.optimizer, outer);
  optimizer_->prepare();
  if (!files_->tokenizer_json().is_null()) tokenizer_ = Tokenizer::from_model(*files_);
  objective_ = make_objective();
  const Recompute recompute = options.recompute == "on"    ? Recompute::kOn
                              : options.recompute == "off" ? Recompute::kOff
                                                           : Recompute::kAuto;
  passes_ = std::make_unique<DecoderTraining>(*decoder_, objective_->most_tokens(),
                                              objective_->most_documents(), recompute);
  if (options.resume) {
    const CheckpointState state = load_checkpoint(options.out, *parameters_, *optimizer_, ranks_);
    ranks_.publish(*backend_, *parameters_);
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
    return std::make_unique<NextToken>(*data_, options_.batch, options_.micro_batch, ranks_.shares());
  auto preference = std::make_unique<Preference>(*data_, options_.batch, options_.micro_batch,
                                                 options_.preference, ranks_.shares());
  preference->set_reference(make_reference(*preference));
  return preference;
}

ReferencePass Run::make_reference(const Objective& objective) {
  DecoderOptions frozen;
  frozen.float_weights = options_.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  reference_ = Decoder::load(*files_, *backend_, frozen);
  // Goes forward alone: what layers make need not be kept.
  reference_passes_ = std::make_unique<DecoderTraining>(*reference_, objective.most_tokens(),
                                                        objective.most_documents(), Recompute::kOn);
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

// The gradients of all of a step's parts, each tensor's where its master is; the loss.
double Run::add_gradients() {
  if (objective_->parts() % ranks_.shares() != 0) {
    throw_error(ErrorKind::kUnsupported, "{} parts of a step cannot be dealt out to {} virtual ranks",
                objective_->parts(), ranks_.shares());
  }
  const int64_t parts = objective_->parts() / ranks_.shares();
  std::vector<double> losses(static_cast<size_t>(ranks_.shares()));
  for (int64_t i = 0; i < ranks_.own_shares(); ++i) {
    const int64_t share = ranks_.first_share() + i;
    parameters_->begin_gradient(i);
    for (int64_t part = share * parts; part < (share + 1) * parts; ++part)
      losses[static_cast<size_t>(share)] += accumulate(part);
    parameters_->end_gradient(i);
  }
  ranks_.reduce(*backend_, *parameters_);
  ranks_.agree_by_share(objective_->sums());
  return ranks_.fold(losses);
}

double Run::gradient_norm() {
  std::vector<double> squares = parameters_->gradient_squares();
  ranks_.agree(squares, ranks_.owners());
  return norm_of(squares);
}

StepRecord Run::step(int64_t number) {
  const auto begin = std::chrono::steady_clock::now();
  StepRecord record;
  record.step = number;
  record.learning_rate = learning_rate(options_, number);
  objective_->begin_step(number);
  record.loss = add_gradients();
  record.gradient_norm = gradient_norm();
  if (!std::isfinite(record.loss) || !std::isfinite(record.gradient_norm)) {
    throw_error(
        ErrorKind::kInvalidInput,
        "step {}: the loss is {} and the gradient's norm {}: the run ends here, its last checkpoint stays; a "
        "lower --lr or a --clip may help",
        number, record.loss, record.gradient_norm);
  }
  // As torch.nn.utils.clip_grad_norm_ has it.
  const double scale = options_.clip > 0 ? std::min(1.0, options_.clip / (record.gradient_norm + 1e-6)) : 1.0;
  optimizer_->update(record.learning_rate, adam_learning_rate(options_, number), scale, number);
  ranks_.publish(*backend_, *parameters_);
  record.more = objective_->report();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  record.tokens_per_second = static_cast<double>(objective_->tokens()) / seconds.count();
  return record;
}

void Run::save(int64_t step) {
  save_checkpoint(options_.out, {step, objective_->state()}, *parameters_, *optimizer_, ranks_,
                  options_.keep_checkpoints);
  write_model_directory(options_.out / "model", options_.init, *files_, *parameters_, ranks_);
}

void Run::go() {
  TrainReport report;
  report.parameters = parameters_->count();
  report.memory_bytes = decoder_->weight_bytes() + parameters_->bytes() + optimizer_->bytes() +
                        passes_->bytes() + objective_->bytes();
  if (reference_) report.memory_bytes += reference_->weight_bytes() + reference_passes_->bytes();
  observer_.on_start(report);
  if (options_.dry_run) return;
  if (ranks_.leads()) open_run();
  bool stops = false, due = false;  // due: a checkpoint, as soon as the objective is at rest
  for (int64_t number = done_ + 1; number <= options_.steps; ++number) {
    const StepRecord record = step(number);
    if (ranks_.leads()) tell(record);
    stops = ranks_.any(stops || observer_.should_stop());
    due = due || stops || number == options_.steps ||
          (options_.checkpoint_every > 0 && number % options_.checkpoint_every == 0);
    if (!due || !objective_->at_rest()) continue;
    save(number);
    due = false;
    if (stops) break;
  }
}

void Run::open_run() {
  std::filesystem::create_directories(options_.out);
  if (!options_.resume && std::filesystem::exists(options_.out / "metrics.jsonl")) {
    throw_error(ErrorKind::kInvalidInput, "{}: a run is here already; --resume goes on with it",
                options_.out.string());
  }
  if (options_.resume) cut_metrics(options_.out, done_);
  if (!options_.settings.empty()) write_file_atomically(options_.out / kSettingsFile, options_.settings);
  metrics_.open(options_.out / "metrics.jsonl", std::ios::app);
}

void Run::tell(const StepRecord& record) {
  Json line = {{"step", record.step},
               {"loss", record.loss},
               {"grad_norm", record.gradient_norm},
               {"lr", record.learning_rate},
               {"tokens_per_second", record.tokens_per_second}};
  line.update(record.more);
  metrics_ << dump_json(line) << std::endl;
  observer_.on_step(record);
}

// Of the ranks that are not the first.
class QuietObserver final : public TrainObserver {
 public:
  explicit QuietObserver(TrainObserver& asked) : asked_(asked) {}
  void on_start(const TrainReport&) override {}
  void on_step(const StepRecord&) override {}
  void on_warning(const std::string&) override {}
  bool should_stop() override { return asked_.should_stop(); }

 private:
  TrainObserver& asked_;
};

}  // namespace

void train(const TrainOptions& options, TrainObserver& observer) {
  const std::unique_ptr<Communicator> alone = make_lone_communicator();
  train(options, observer, *alone);
}

void train(const TrainOptions& options, TrainObserver& observer, Communicator& communicator) {
  TrainOptions checked = options;
  if (checked.virtual_ranks == 0) checked.virtual_ranks = communicator.size() > 1 ? kVirtualRanks : 1;
  check_options(checked);
  QuietObserver quiet(observer);
  Run(checked, communicator.rank() == 0 ? observer : quiet, communicator).go();
}

}  // namespace qiao::train
