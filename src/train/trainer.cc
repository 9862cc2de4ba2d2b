#include "train/trainer.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "backend/backend.h"
#include "base/error.h"
#include "base/process_memory.h"
#include "hub/digest.h"
#include "models/initial_weights.h"
#include "train/background.h"
#include "train/checkpoint.h"
#include "train/memory_plan.h"
#include "train/model_directory.h"
#include "train/next_token.h"
#include "train/profile.h"
#include "train/run_folder.h"
#include "train/run_log.h"
#include "train/snapshot.h"

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
  Run(const TrainOptions& options, TrainObserver& observer);
  void go();

 private:
  void open_folder();
  std::unique_ptr<Objective> make_objective();
  void take_memory();
  void warm_up(Recompute recompute);
  void resume();
  double accumulate(int64_t part);
  AdamWSettings settings(double rate) const;
  StepRecord step(int64_t number);
  [[noreturn]] void refuse_not_finite(const StepRecord& record);
  void estimate();
  void sample(int64_t step);
  void save(int64_t step);
  void warn(const std::string& text) { observer_.on_warning(text); }

  const TrainOptions& options_;
  TrainObserver& observer_;
  TrainReport report_;
  std::optional<RunFolder> folder_;
  std::shared_ptr<ModelFiles> files_;
  std::unique_ptr<Backend> backend_;
  DevicePeaks peaks_;
  std::unique_ptr<Parameters> parameters_;
  std::shared_ptr<Decoder> decoder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<DataStream> data_;
  std::unique_ptr<Objective> objective_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<DecoderTraining> passes_;
  int64_t done_ = 0;
  std::vector<float> dlogprob_;
  double flops_ = 0;  // of the step so far
  Profile profile_;
  std::optional<RunLog> log_;
  std::unique_ptr<Snapshot> snapshot_;
  Background writer_;  // reads the snapshot
};

Run::Run(const TrainOptions& options, TrainObserver& observer) : options_(options), observer_(observer) {
  check_options(options);
  give_back_large_pieces();
  if (!options.dry_run) open_folder();
  files_ = open_or_initialize(options.init, options.data.seed);
  if (files_->kind() != ModelFiles::Kind::kHuggingFace) {
    throw_error(ErrorKind::kUnsupported, "{}: a Hugging Face directory was expected to train from",
                options.init.string());
  }
  backend_ = make_backend(options.device, {.threads = options.threads});
  if (options.profile) {
    peaks_ = backend_->measure_peaks();
  } else if (options.measure_peak) {
    peaks_ = backend_->measure_arithmetic();
  }
  const bool bf16 = options.dtype == "bf16";
  parameters_ = std::make_unique<Parameters>(
      *backend_, bf16 ? Parameters::SmallTensors::kAsInFile : Parameters::SmallTensors::kF32);
  DecoderOptions decoder;
  decoder.float_weights = bf16 ? DType::kBF16 : DType::kF32;
  decoder.laid_out = [&](const LaidOutTensor& tensor) { parameters_->add(tensor); };
  decoder_ = Decoder::load(*files_, *backend_, decoder);
  if (!files_->tokenizer_json().is_null()) tokenizer_ = Tokenizer::from_model(*files_);
  objective_ = make_objective();
  if (options.sample.every > 0)
    sampler_ = std::make_unique<Sampler>(*files_, decoder_, options.sample, options.data.seed);
  take_memory();
  if (options.resume && !options.dry_run) resume();
}

void Run::open_folder() {
  namespace fs = std::filesystem;
  const bool is_run = fs::exists(options_.out / "lock") || fs::exists(options_.out / "metrics.jsonl");
  if (options_.resume && !is_run) {
    throw_error(ErrorKind::kNotFound, "{}: no whole checkpoint to go on from (there is no run)",
                options_.out.string());
  }
  if (!options_.resume && (fs::exists(options_.out / "metrics.jsonl") || has_checkpoint(options_.out))) {
    throw_error(ErrorKind::kInvalidInput, "{}: a run is here already; --resume goes on with it",
                options_.out.string());
  }
  folder_.emplace(options_.out);
}

std::unique_ptr<Objective> Run::make_objective() {
  DataOptions data = options_.data;
  data.vocabulary_size = decoder_->config().vocabulary_size;
  data_ = std::make_unique<DataStream>(data, tokenizer_.get(), [&](const std::string& text) { warn(text); });
  return std::make_unique<NextToken>(*data_, options_.batch, options_.micro_batch);
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
  report_.parameters = parameters_->count();
  report_.memory = plan_memory(*decoder_, *parameters_, *files_, batch, wanted);
  check_memory(report_.memory, *decoder_, batch, wanted);
  const Recompute recompute = report_.memory.recomputes ? Recompute::kOn : Recompute::kOff;
  parameters_->prepare(*files_);
  warm_up(recompute);
  const uint64_t planned = report_.memory.weights + report_.memory.parameters;
  report_.memory.process = resident_bytes() - std::min(resident_bytes(), planned);
  passes_ = std::make_unique<DecoderTraining>(*decoder_, batch.tokens, batch.documents, recompute);
  snapshot_ = std::make_unique<Snapshot>(*parameters_);
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
  passes.forward({tokens, positions, tokens, starts});
  passes.backward(std::vector<float>(size, 0.0f), *parameters_);
  parameters_->zero_gradients();
  parameters_->gradient_norm();
  parameters_->update(settings(0), 1.0, 1);  // no gradient, no rate, no moments: nothing changes
  Digest(Digest::Kind::kSha256).update("");
}

void Run::resume() {
  const CheckpointState state =
      load_checkpoint(options_.out, *parameters_, [&](const std::string& text) { warn(text); });
  done_ = state.step;
  if (done_ == 0) return;
  if (state.seed != options_.data.seed) {
    throw_error(ErrorKind::kInvalidInput, "--seed is {}; the run began with {}", options_.data.seed,
                state.seed);
  }
  objective_->set_state(state.objective);
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

AdamWSettings Run::settings(double rate) const {
  AdamWSettings made = options_.optimizer;
  made.learning_rate = rate;
  return made;
}

StepRecord Run::step(int64_t number) {
  const Clock::time_point begin = Clock::now();
  flops_ = 0;
  StepRecord record;
  record.step = number;
  record.learning_rate = learning_rate(options_, number);
  objective_->begin_step(number);
  parameters_->zero_gradients();
  for (int64_t part = 0; part < objective_->parts(); ++part) record.loss += accumulate(part);
  record.gradient_norm = parameters_->gradient_norm();
  if (!std::isfinite(record.loss) || !std::isfinite(record.gradient_norm)) refuse_not_finite(record);
  // As torch.nn.utils.clip_grad_norm_ has it.
  const double scale = options_.clip > 0 ? std::min(1.0, options_.clip / (record.gradient_norm + 1e-6)) : 1.0;
  parameters_->update(settings(record.learning_rate), scale, number);
  record.more = objective_->report();
  record.flops = flops_;
  record.seconds = seconds_since(begin);
  record.tokens_per_second = static_cast<double>(objective_->tokens()) / record.seconds;
  return record;
}

void Run::refuse_not_finite(const StepRecord& record) {
  const std::string tensor = parameters_->first_not_finite_gradient();
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
  accumulate(0);
  if (options_.profile) backend_->set_watch(&profile_);
  const Clock::time_point begin = Clock::now();
  accumulate(0);
  const double part = seconds_since(begin);
  parameters_->gradient_norm();
  parameters_->update(settings(0), 1.0, 1);
  const double all = seconds_since(begin);
  backend_->set_watch(nullptr);
  const double seconds = part * static_cast<double>(objective_->parts()) + (all - part);
  report_.tokens_per_second = static_cast<double>(objective_->tokens()) / seconds;
  report_.seconds = seconds * static_cast<double>(options_.steps);
  observer_.on_start(report_);
  if (options_.profile) observer_.on_profile(profile_.table(1, all, peaks_, decoder_->work().compute));
}

void Run::sample(int64_t step) {
  const std::string text = sampler_->sample(step);
  log_->sample(step, options_.sample.prompt, text);
  observer_.on_sample(step, options_.sample.prompt, text);
}

// The step waits for the checkpoint before and for a copy; the rest is written meanwhile.
void Run::save(int64_t step) {
  const auto tell = [this](const std::string& text) { warn(text); };
  writer_.wait(tell);
  snapshot_->take();
  const bool is_new = step > done_;
  const CheckpointState state = {step, options_.data.seed, objective_->state()};
  writer_.start(
      [this, state, is_new] {
        if (is_new) save_checkpoint(options_.out, state, *snapshot_, options_.keep_checkpoints);
        write_model_directory(options_.out / "model", options_.init, *files_, *snapshot_);
      },
      tell);
}

void Run::go() {
  const bool is_bf16 = decoder_->work().compute == Compute::kBF16 && peaks_.bf16_flops > 0;
  report_.peak_flops = is_bf16 ? peaks_.bf16_flops : peaks_.f32_flops;
  report_.first_step = done_ + 1;
  if (options_.dry_run) return estimate();
  observer_.on_start(report_);
  log_.emplace(options_.out, done_, [this](const std::string& text) { warn(text); });
  // Killed between its last checkpoint and the model.
  if (done_ >= options_.steps) save(done_);
  if (options_.profile) backend_->set_watch(&profile_);
  double seconds = 0;
  int64_t number = done_ + 1;
  for (bool stops = false; number <= options_.steps && !stops; ++number) {
    const StepRecord record = step(number);
    seconds += record.seconds;
    log_->step(record);
    observer_.on_step(record);
    if (sampler_ && number % options_.sample.every == 0) sample(number);
    stops = observer_.should_stop();
    if (stops || number == options_.steps ||
        (options_.checkpoint_every > 0 && number % options_.checkpoint_every == 0))
      save(number);
  }
  backend_->set_watch(nullptr);
  if (options_.profile && number > done_ + 1)
    observer_.on_profile(profile_.table(number - done_ - 1, seconds, peaks_, decoder_->work().compute));
  writer_.finish();
}

}  // namespace

void train(const TrainOptions& options, TrainObserver& observer) { Run(options, observer).go(); }

}  // namespace qiao::train
