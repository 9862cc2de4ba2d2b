#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "backend/backend.h"
#include "base/error.h"
#include "base/file.h"
#include "base/process_memory.h"
#include "base/thread_pool.h"
#include "hub/digest.h"
#include "models/initial_weights.h"
#include "models/weights.h"
#include "train/background.h"
#include "train/checkpoint.h"
#include "train/memory_plan.h"
#include "train/model_directory.h"
#include "train/next_token.h"
#include "train/open_data.h"
#include "train/policy.h"
#include "train/preference.h"
#include "train/profile.h"
#include "train/ranks.h"
#include "train/run_folder.h"
#include "train/run_log.h"
#include "train/snapshot.h"
#include "train/validation.h"

namespace qiao::train {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Of a forward and a backward pass, which costs twice as much: the matrix products, and attention's over the
// pairs that are seen.
double training_flops(const Decoder& decoder, const PackedBatch& batch) {
  const DecoderConfig& config = decoder.config();
  const DecoderWork work = decoder.work();
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
  return 3 * (tokens * (work.layer_flops_per_token + work.logits_flops_per_row) + attention);
}

// Everything of a run that lives from step to step.
class Run {
 public:
  Run(const TrainOptions& options, TrainObserver& observer, Communicator& communicator);
  void go();

 private:
  void open_folder();
  std::unique_ptr<Objective> make_objective();
  void take_memory();
  void warm_up(Recompute recompute);
  void resume();
  int64_t own_parts() const { return objective_->parts() / ranks_.shares() * ranks_.own_shares(); }
  ReferencePass make_reference(const Objective& objective);
  double accumulate(int64_t part);
  double add_gradients();
  double gradient_norm();
  StepRecord step(int64_t number);
  [[noreturn]] void refuse_not_finite(const StepRecord& record);
  void estimate();
  void tell(const StepRecord& record);
  void sample(int64_t step);
  void save(int64_t step, bool is_last);
  void warn(const std::string& text) { observer_.on_warning(text); }

  const TrainOptions& options_;
  TrainObserver& observer_;
  Ranks ranks_;
  TrainReport report_;
  std::optional<RunFolder> folder_;
  std::shared_ptr<ModelFiles> files_;
  std::unique_ptr<Backend> backend_;
  DevicePeaks peaks_;
  std::unique_ptr<Parameters> parameters_;
  std::shared_ptr<Decoder> decoder_;
  std::unique_ptr<LoraAdapter> lora_;  // null: all of the model is trained
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<DataStream> data_;
  std::unique_ptr<Objective> objective_;
  std::unique_ptr<Validation> validation_;  // of rank 0, where there are rows for it
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<DecoderTraining> passes_;
  std::unique_ptr<Decoder> reference_;  // what is measured against: the initial weights
  std::unique_ptr<DecoderTraining> reference_passes_;
  int64_t done_ = 0;
  std::vector<float> dlogprob_;
  std::vector<double> squares_;  // of the last step's gradients, by tensor
  double flops_ = 0;             // of the step so far
  Profile profile_;
  std::optional<RunLog> log_;  // of rank 0
  std::unique_ptr<Snapshot> snapshot_;
  Background writer_;  // reads the snapshot
};

// Ranks that share cores share them out.
int threads_of(const TrainOptions& options, const Communicator& communicator) {
  if (options.threads > 0 || communicator.size() == 1) return options.threads;
  return std::max(1, usable_cpus() / communicator.sharing_cores());
}

Run::Run(const TrainOptions& options, TrainObserver& observer, Communicator& communicator)
    : options_(options), observer_(observer), ranks_(communicator, options.virtual_ranks) {
  give_back_large_pieces();
  if (const std::string text = optimizer_warning(options.optimizer); !text.empty()) warn(text);
  if (!options.dry_run && ranks_.leads()) open_folder();
  files_ = open_or_initialize(options.init, options.data.seed);
  const bool is_gguf = files_->kind() == ModelFiles::Kind::kGguf;
  if (is_gguf && !options.lora.on()) {
    throw_error(
        ErrorKind::kUnsupported,
        "{}: a Hugging Face directory was expected to train all of a model; an adapter is trained on a "
        "GGUF file too (--lora-rank), and `qiao export --hf` makes a directory of it",
        options.init.string());
  }
  backend_ = make_backend(options.device, {.threads = threads_of(options, communicator)});
  if (options.profile) {
    peaks_ = backend_->measure_peaks();
  } else if (options.measure_peak) {
    peaks_ = backend_->measure_arithmetic();
  }
  const bool bf16 = options.dtype == "bf16";
  parameters_ = std::make_unique<Parameters>(
      *backend_, bf16 ? Parameters::SmallTensors::kAsInFile : Parameters::SmallTensors::kF32);
  DecoderOptions decoder;
  if (!options.lora.on()) {
    decoder.float_weights = bf16 ? DType::kBF16 : DType::kF32;
    decoder.laid_out = [&](const LaidOutTensor& tensor) { parameters_->add(tensor); };
    decoder_ = Decoder::load(*files_, *backend_, decoder);
  } else {
    // The base stays as the files have it. A quantized one computes as it is served.
    if (bf16) decoder.float_weights = DType::kBF16;
    if (!bf16 && !is_gguf) decoder.compute = DecoderOptions::Policy::kF32;
    decoder_ = Decoder::load(*files_, *backend_, decoder);
    lora_ = std::make_unique<LoraAdapter>(options.lora, options.data.seed, options.init, *files_, *decoder_,
                                          *parameters_);
  }
  ranks_.share(*parameters_);
  std::vector<const Weight*> outer = {decoder_->weights().embedding.table.get()};
  for (const nn::WeightPiece& piece : decoder_->weights().head.pieces) outer.push_back(piece.weight.get());
  optimizer_ = std::make_unique<Optimizer>(*backend_, *parameters_, options.optimizer, outer);
  const bool has_tokenizer = is_gguf ? files_->metadata().find("tokenizer.ggml.model") != nullptr
                                     : !files_->tokenizer_json().is_null();
  if (has_tokenizer) tokenizer_ = Tokenizer::from_model(*files_);
  objective_ = make_objective();
  if (options.sample.every > 0 && ranks_.leads())
    sampler_ = std::make_unique<Sampler>(*files_, decoder_, options.sample, options.data.seed);
  take_memory();
  if (options.resume && !options.dry_run) resume();
}

void Run::open_folder() {
  namespace fs = std::filesystem;
  const bool is_run = fs::exists(options_.out / "lock") || fs::exists(options_.out / kSettingsFile) ||
                      fs::exists(options_.out / "metrics.jsonl");
  if (options_.resume && !is_run) {
    throw_error(ErrorKind::kNotFound, "{}: no whole checkpoint to go on from (there is no run)",
                options_.out.string());
  }
  if (!options_.resume && (fs::exists(options_.out / "metrics.jsonl") || has_checkpoint(options_.out))) {
    throw_error(ErrorKind::kInvalidInput, "{}: a run is here already; --resume goes on with it",
                options_.out.string());
  }
  folder_.emplace(options_.out);
  // At once: by it --resume goes on, however soon the process is killed.
  if (!options_.settings.empty()) write_file_atomically(options_.out / kSettingsFile, options_.settings);
}

// States what the run will take, refuses what there is not, and takes it.
void Run::take_memory() {
  MicroBatch batch;
  batch.tokens = objective_->most_tokens();
  batch.documents = objective_->most_documents();
  batch.sequences =
      options_.micro_batch > 0 ? std::min(options_.micro_batch, options_.batch) : options_.batch;
  batch.sequence = options_.data.sequence;
  const Recompute wanted = options_.recompute == "on"    ? Recompute::kOn
                           : options_.recompute == "off" ? Recompute::kOff
                                                         : Recompute::kAuto;
  MemoryPlan& memory = report_.memory;
  report_.parameters = parameters_->count();
  memory = plan_memory(*decoder_, *parameters_, *optimizer_, *files_, batch, wanted);
  check_memory(memory, *decoder_, batch, wanted);
  const Recompute recompute = memory.recomputes ? Recompute::kOn : Recompute::kOff;
  if (lora_ != nullptr) {
    lora_->prepare(*parameters_);
  } else {
    parameters_->prepare(*files_);
  }
  optimizer_->prepare();
  warm_up(recompute);
  const uint64_t resident = resident_bytes();
  memory.process = resident - std::min(resident, memory.weights + memory.parameters);
  if (reference_) {  // its weights are there already, its passes not
    memory.weights += reference_->weight_bytes();
    memory.process -= std::min(memory.process, reference_->weight_bytes());
    memory.activations += reference_passes_->bytes();
  }
  memory.activations += objective_->bytes();
  passes_ = std::make_unique<DecoderTraining>(*decoder_, batch.tokens, batch.documents, recompute);
  snapshot_ = std::make_unique<Snapshot>(*parameters_, *optimizer_);
}

// Runs all that a step and a checkpoint run, over a few tokens and without changing anything: their code is
// in memory when it is told how much the process takes.
void Run::warm_up(Recompute recompute) {
  const int64_t count = std::min<int64_t>(objective_->most_tokens(), 64);
  const auto size = static_cast<size_t>(count);
  const std::vector<int32_t> tokens(size, 0), starts = {0, static_cast<int32_t>(count)};
  std::vector<int32_t> positions(size);
  std::iota(positions.begin(), positions.end(), 0);
  DecoderTraining passes(*decoder_, count, 1, recompute);
  parameters_->begin_gradient(0);
  passes.forward({tokens, positions, tokens, starts});
  passes.backward(std::vector<float>(size, 0.0f), *parameters_);
  parameters_->begin_gradient(0);
  parameters_->gradient_squares();
  optimizer_->update(0, 0, 1.0, 1);  // no gradient, no rate, no states: nothing changes
  ranks_.publish(*backend_, *parameters_);
  Digest(Digest::Kind::kSha256).update("");
}

void Run::resume() {
  const CheckpointState state = load_checkpoint(options_.out, *parameters_, *optimizer_, ranks_,
                                                [&](const std::string& text) { warn(text); });
  done_ = state.step;
  if (done_ == 0) return;
  ranks_.publish(*backend_, *parameters_);
  if (state.seed != options_.data.seed) {
    throw_error(ErrorKind::kInvalidInput, "--seed is {}; the run began with {}", options_.data.seed,
                state.seed);
  }
  objective_->set_state(state.objective);
}

std::unique_ptr<Objective> Run::make_objective() {
  const auto warn_of = [this](const std::string& text) { warn(text); };
  if (options_.mode == "grpo") {
    auto policy = std::make_unique<Policy>(Policy::Setup{.options = options_.policy,
                                                         .data = options_.data,
                                                         .batch = options_.batch,
                                                         .micro_batch = options_.micro_batch,
                                                         .files = *files_,
                                                         .decoder = decoder_,
                                                         .warn = warn_of});
    if (options_.policy.beta > 0) policy->set_reference(make_reference(*policy));
    return policy;
  }
  data_ = open_data(options_, *files_, tokenizer_.get(), decoder_->config().vocabulary_size, warn_of);
  if (options_.mode != "dpo") {
    auto next = std::make_unique<NextToken>(*data_, options_.batch, options_.micro_batch, ranks_.shares());
    if (!options_.validation.empty() && ranks_.leads()) {
      TrainOptions held = options_;
      held.data.files = options_.validation;
      held.data.shuffle = false;
      validation_ = std::make_unique<Validation>(
          open_data(held, *files_, tokenizer_.get(), decoder_->config().vocabulary_size, warn_of),
          next->most_tokens() / held.data.sequence);
    }
    return next;
  }
  auto preference = std::make_unique<Preference>(*data_, options_.batch, options_.micro_batch,
                                                 options_.preference, ranks_.shares());
  preference->set_reference(make_reference(*preference));
  return preference;
}

ReferencePass Run::make_reference(const Objective& objective) {
  if (lora_ != nullptr)  // the base itself
    return [this](const PackedBatch& batch) { return passes_->forward(batch, false); };
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
  flops_ += training_flops(*decoder_, batch);
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
  squares_ = parameters_->gradient_squares();
  ranks_.agree(squares_, ranks_.owners());
  return norm_of(squares_);
}

StepRecord Run::step(int64_t number) {
  const Clock::time_point begin = Clock::now();
  flops_ = 0;
  StepRecord record;
  record.step = number;
  record.learning_rate = learning_rate(options_, number);
  objective_->begin_step(number);
  record.loss = add_gradients();
  record.gradient_norm = gradient_norm();
  if (!std::isfinite(record.loss) || !std::isfinite(record.gradient_norm)) refuse_not_finite(record);
  // As torch.nn.utils.clip_grad_norm_ has it.
  const double scale = options_.clip > 0 ? std::min(1.0, options_.clip / (record.gradient_norm + 1e-6)) : 1.0;
  optimizer_->update(record.learning_rate, adam_learning_rate(options_, number), scale, number);
  ranks_.publish(*backend_, *parameters_);
  record.more = objective_->report();
  record.flops = flops_;
  record.seconds = seconds_since(begin);
  record.tokens_per_second = static_cast<double>(objective_->tokens()) / record.seconds;
  return record;
}

void Run::refuse_not_finite(const StepRecord& record) {
  const std::string tensor = first_not_finite(*parameters_, squares_);
  throw_error(
      ErrorKind::kInvalidInput,
      "step {}: the loss is {} and the gradient's norm {}{}: the run ends here, its last checkpoint "
      "stays; a lower --lr or a --clip may help",
      record.step, record.loss, record.gradient_norm,
      tensor.empty() ? "" : fmt::format(" (the first tensor whose gradient is not finite: {})", tensor));
}

// Times one micro-batch, once its memory is there, and one update.
void Run::estimate() {
  objective_->begin_step(1);
  if (objective_->parts() == 0) return observer_.on_start(report_);  // a rollout with nothing to learn from
  const int64_t part = ranks_.first_share() * (objective_->parts() / ranks_.shares());
  parameters_->begin_gradient(0);
  accumulate(part);
  if (options_.profile) backend_->set_watch(&profile_);
  const Clock::time_point begin = Clock::now();
  accumulate(part);
  const double part_seconds = seconds_since(begin);
  gradient_norm();
  optimizer_->update(0, 0, 1.0, 1);
  ranks_.publish(*backend_, *parameters_);
  const double all = seconds_since(begin);
  backend_->set_watch(nullptr);
  const double seconds = part_seconds * static_cast<double>(own_parts()) + (all - part_seconds);
  report_.tokens_per_second = static_cast<double>(objective_->tokens()) / seconds;
  report_.seconds = seconds * static_cast<double>(options_.steps);
  observer_.on_start(report_);
  if (options_.profile) observer_.on_profile(profile_.table(1, all, peaks_, decoder_->work().compute));
}

void Run::tell(const StepRecord& record) {
  log_->step(record);
  observer_.on_step(record);
}

void Run::sample(int64_t step) {
  const std::string text = sampler_->sample(step);
  log_->sample(step, options_.sample.prompt, text);
  observer_.on_sample(step, options_.sample.prompt, text);
}

// A process alone waits for the checkpoint before and for a copy; the rest is written while it trains.
// Several, which have to talk about it, write at once; so is an adapter written, which is small.
void Run::save(int64_t step, bool is_last) {
  const auto tell_warning = [this](const std::string& text) { warn(text); };
  writer_.wait(tell_warning);
  snapshot_->take();
  const bool is_new = step > done_;
  const CheckpointState state = {step, options_.data.seed, objective_->state()};
  const auto write = [this, state, is_new] {
    if (is_new) save_checkpoint(options_.out, state, *snapshot_, ranks_, options_.keep_checkpoints);
    if (lora_ == nullptr)
      write_model_directory(options_.out / "model", options_.init, *files_, *parameters_, *snapshot_, ranks_);
  };
  if (ranks_.is_alone() && lora_ == nullptr) return writer_.start(write, tell_warning);
  try {
    write();
    if (lora_ != nullptr) lora_->write(options_.out / "model", *parameters_, ranks_);
  } catch (const Error& error) {
    if (is_last || error.kind() == ErrorKind::kUnavailable) throw;
    warn(error.what());
  }
}

void Run::go() {
  const bool is_bf16 = decoder_->work().compute == Compute::kBF16 && peaks_.bf16_flops > 0;
  report_.peak_flops = is_bf16 ? peaks_.bf16_flops : peaks_.f32_flops;
  report_.first_step = done_ + 1;
  if (options_.dry_run) return estimate();
  observer_.on_start(report_);
  if (ranks_.leads()) log_.emplace(options_.out, done_, [this](const std::string& text) { warn(text); });
  // Killed between its last checkpoint and the model.
  if (done_ >= options_.steps) save(done_, true);
  if (options_.profile) backend_->set_watch(&profile_);
  double seconds = 0;
  int64_t count = 0;
  bool stops = false, due = false;  // due: a checkpoint, as soon as the objective is at rest
  for (int64_t number = done_ + 1; number <= options_.steps; ++number) {
    StepRecord record = step(number);
    seconds += record.seconds;
    ++count;
    if (validation_ && (number % options_.validate_every == 0 || number == options_.steps))
      record.more["validation_loss"] = validation_->loss(*passes_);
    if (ranks_.leads()) tell(record);
    if (sampler_ && number % options_.sample.every == 0) sample(number);
    stops = ranks_.any(stops || observer_.should_stop());
    due = due || stops || number == options_.steps ||
          (options_.checkpoint_every > 0 && number % options_.checkpoint_every == 0);
    if (!due || !objective_->at_rest()) continue;
    save(number, stops || number == options_.steps);
    due = false;
    if (stops) break;
  }
  backend_->set_watch(nullptr);
  if (options_.profile && count > 0)
    observer_.on_profile(profile_.table(count, seconds, peaks_, decoder_->work().compute));
  writer_.finish();
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
