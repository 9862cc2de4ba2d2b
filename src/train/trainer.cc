#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <utility>

#include "backend/backend.h"
#include "base/error.h"
#include "base/file.h"
#include "base/process_memory.h"
#include "hub/digest.h"
#include "train/checkpoint.h"
#include "train/clock.h"
#include "train/memory_plan.h"
#include "train/profile.h"
#include "train/ranks.h"
#include "train/run_folder.h"
#include "train/run_log.h"
#include "train/run_objective.h"
#include "train/saver.h"
#include "train/trained_model.h"

namespace qiao::train {
namespace {

// Everything of a run that lives from step to step.
class Run {
 public:
  Run(const TrainOptions& options, TrainObserver& observer, Communicator& communicator);
  void go();

 private:
  void open_folder();
  void take_memory();
  void warm_up(Recompute recompute);
  void resume();
  int64_t own_parts() const { return objective_->parts() / ranks_.shares() * ranks_.own_shares(); }
  nn::AdapterDropout dropout_of(int64_t part) const;
  double balance_weight(int64_t part) const;
  double accumulate(int64_t part);
  double add_gradients();
  double gradient_norm();
  StepRecord step(int64_t number);
  [[noreturn]] void refuse_not_finite(const StepRecord& record);
  void estimate();
  void tell(const StepRecord& record);
  void sample(int64_t step);
  void save(int64_t step);
  PassNeeds needs() const { return {options_.lora.dropout > 0, objective_->knows_slopes()}; }
  void warn(const std::string& text) { observer_.on_warning(text); }

  const TrainOptions& options_;
  TrainObserver& observer_;
  Ranks ranks_;
  TrainReport report_;
  std::optional<RunFolder> folder_;
  std::optional<TrainedModel> model_;
  std::unique_ptr<DecoderTraining> passes_;
  std::optional<RunObjective> made_objective_;
  Objective* objective_ = nullptr;
  std::unique_ptr<Sampler> sampler_;  // of rank 0 and its group
  int64_t done_ = 0, step_ = 0;       // the last that is done as the process begins; that is computed
  std::vector<float> dlogprob_;
  std::vector<double> squares_;  // of the last step's gradients, by tensor
  double flops_ = 0;             // of the step so far
  double aux_loss_ = 0;          // in its loss, of mixtures of experts
  Profile profile_;
  std::optional<RunLog> log_;  // of rank 0
  std::optional<Saver> saver_;
};

Run::Run(const TrainOptions& options, TrainObserver& observer, Communicator& communicator)
    : options_(options),
      observer_(observer),
      ranks_(communicator, options.virtual_ranks, options.tensor_parallel) {
  give_back_large_pieces();
  if (const std::string text = optimizer_warning(options.optimizer); !text.empty()) warn(text);
  if (!options.dry_run && ranks_.leads()) open_folder();
  model_.emplace(options, communicator, ranks_);
  const int64_t context = model_->decoder->config().max_position_embeddings;
  if (context > 0 && options.data.sequence > context && options.mode != "grpo") {
    warn(
        fmt::format("--seq is {} and the model's context {}: documents may get longer than it is served with",
                    options.data.sequence, context));
  }
  made_objective_.emplace(*model_, ranks_, passes_, [this](const std::string& text) { warn(text); });
  objective_ = &**made_objective_;
  if (options.sample.every > 0 && ranks_.data().rank() == 0) {
    sampler_ =
        std::make_unique<Sampler>(*model_->files, model_->decoder, ranks_, options.sample, options.data.seed);
  }
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
  batch.needs = needs();
  const Recompute wanted = options_.recompute == "on"    ? Recompute::kOn
                           : options_.recompute == "off" ? Recompute::kOff
                                                         : Recompute::kAuto;
  MemoryPlan& memory = report_.memory;
  report_.parameters = model_->parameters->count();
  if (options_.dtype == "fp8") {
    report_.f8_matrices = model_->f8_matrices;
    report_.unfit_matrices = model_->unfit_matrices;
  }
  if (options_.tensor_parallel > 1) {  // of all ranks
    report_.parameters = 0;
    for (const Parameters::Named& tensor : model_->parameters->tensors())
      report_.parameters += tensor.runs * tensor.part.whole_count();
  }
  const Snapshot::Kind snapshot = Saver::needed_for(options_);
  const auto plan = [&](Recompute how) {
    memory = plan_memory(*model_->decoder, *model_->parameters, *model_->optimizer, *model_->files, batch,
                         how, snapshot, ranks_);
    check_memory(memory, *model_->decoder, batch, how);
  };
  plan(wanted);
  // What is made again is summed over a group again.
  if (options_.tensor_parallel > 1 && ranks_.any(memory.recomputes) && !memory.recomputes)
    plan(Recompute::kOn);
  const Recompute recompute = memory.recomputes ? Recompute::kOn : Recompute::kOff;
  model_->prepare();
  warm_up(recompute);
  const uint64_t resident = resident_bytes();
  memory.process = resident - std::min(resident, memory.weights + memory.parameters);
  if (const Decoder* reference = made_objective_->reference()) {  // it and its passes are there already
    const uint64_t passes = made_objective_->reference_pass_bytes();
    memory.process -= std::min(memory.process, reference->weight_bytes() + passes);
    memory.weights += reference->weight_bytes();
    memory.activations += passes;
  }
  memory.activations += objective_->bytes();
  passes_ =
      std::make_unique<DecoderTraining>(*model_->decoder, batch.tokens, batch.documents, recompute, needs());
  saver_.emplace(Saver::Setup{
      .options = options_,
      .parameters = *model_->parameters,
      .optimizer = *model_->optimizer,
      .ranks = ranks_,
      .write_model = [this](const MasterOf& master) { model_->write(options_.out / "model", master); },
      .warn = [this](const std::string& text) { warn(text); },
      .snapshot = snapshot});
}

// Runs all that a step and a checkpoint run, over a few tokens and without changing anything: their code is
// in memory when it is told how much the process takes.
void Run::warm_up(Recompute recompute) {
  const int64_t count = std::min<int64_t>(objective_->most_tokens(), 64);
  const auto size = static_cast<size_t>(count);
  const std::vector<int32_t> tokens(size, 0), starts = {0, static_cast<int32_t>(count)};
  std::vector<int32_t> positions(size);
  std::iota(positions.begin(), positions.end(), 0);
  DecoderTraining passes(*model_->decoder, count, 1, recompute, needs());
  model_->parameters->begin_gradient(0);
  const PackedBatch batch{
      .tokens = tokens, .positions = positions, .labels = tokens, .starts = starts, .dropout = dropout_of(0)};
  const std::vector<float> slopes(size, 0.0f);
  objective_->knows_slopes() ? passes.forward(batch, slopes, *model_->parameters) : passes.forward(batch);
  passes.backward(slopes, *model_->parameters);
  model_->parameters->begin_gradient(0);
  model_->parameters->gradient_squares();
  model_->optimizer->update(0, 0, 1.0, 1);  // no gradient, no rate, no states: nothing changes
  ranks_.publish(*model_->parameters);
  Digest(Digest::Kind::kSha256).update("");
}

void Run::resume() {
  const CheckpointState state =
      load_checkpoint(options_.out, model_->fixed(), options_.keep_checkpoints, *model_->parameters,
                      *model_->optimizer, ranks_, [&](const std::string& text) { warn(text); });
  done_ = state.step;
  if (done_ == 0) return;
  ranks_.publish(*model_->parameters);
  if (state.seed != options_.data.seed) {
    throw_error(ErrorKind::kInvalidInput, "--seed is {}; the run began with {}", options_.data.seed,
                state.seed);
  }
  objective_->set_state(state.objective);
}

// Of each step masks of its own; rows are those of the whole step, however it is cut into parts.
nn::AdapterDropout Run::dropout_of(int64_t part) const {
  nn::AdapterDropout dropout;
  dropout.probability = static_cast<float>(options_.lora.dropout);
  if (dropout.probability == 0) return dropout;
  dropout.seed = options_.data.seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(step_);
  int64_t before = 0;
  for (int64_t i = 0; i < part; ++i) before += objective_->tokens_of(i);
  dropout.first_row = static_cast<uint32_t>(before);
  return dropout;
}

// Of a part's imbalance of experts in the loss: by its share of the step's tokens.
double Run::balance_weight(int64_t part) const {
  const double weight = model_->decoder->config().router_aux_loss_coef;
  if (weight == 0) return 0;
  return weight * static_cast<double>(objective_->tokens_of(part)) /
         static_cast<double>(objective_->tokens());
}

// Adds the gradients of one part of a step; its share of the loss.
double Run::accumulate(int64_t part) {
  if (objective_->tokens_of(part) == 0) return 0;
  PackedBatch batch = objective_->part(part);
  batch.dropout = dropout_of(part);
  dlogprob_.assign(batch.tokens.size(), 0.0f);
  objective_->slopes(part, dlogprob_);
  const std::span<const float> logprob = objective_->knows_slopes()
                                             ? passes_->forward(batch, dlogprob_, *model_->parameters)
                                             : passes_->forward(batch);
  const double weight = balance_weight(part);
  aux_loss_ += weight * passes_->imbalance();
  const double loss = objective_->loss(part, logprob, dlogprob_) + weight * passes_->imbalance();
  passes_->backward(dlogprob_, *model_->parameters, weight);
  flops_ += model_->flops(batch);
  return loss;
}

// The gradients of all of a step's parts, each tensor's where its master is; the loss.
double Run::add_gradients() {
  if (objective_->parts() % ranks_.shares() != 0) {
    throw_error(ErrorKind::kUnsupported, "{} parts of a step cannot be dealt out to {} virtual ranks",
                objective_->parts(), ranks_.shares());
  }
  const int64_t parts = objective_->parts() / ranks_.shares();
  std::vector<double> losses(static_cast<size_t>(ranks_.shares())), aux_losses = losses;
  for (int64_t i = 0; i < ranks_.own_shares(); ++i) {
    const int64_t share = ranks_.first_share() + i;
    model_->parameters->begin_gradient(i);
    for (int64_t part = share * parts; part < (share + 1) * parts; ++part)
      losses[static_cast<size_t>(share)] += accumulate(part);
    model_->parameters->end_gradient(i);
    aux_losses[static_cast<size_t>(share)] = std::exchange(aux_loss_, 0.0);
  }
  ranks_.reduce(*model_->backend, *model_->parameters);
  ranks_.agree_by_share(objective_->sums());
  aux_loss_ = ranks_.fold(aux_losses);
  return ranks_.fold(losses);
}

double Run::gradient_norm() {
  squares_ = ranks_.gradient_squares(*model_->parameters);
  return norm_of(squares_);
}

StepRecord Run::step(int64_t number) {
  const Clock::time_point begin = Clock::now();
  flops_ = 0;
  step_ = number;
  StepRecord record;
  record.step = number;
  record.learning_rate = learning_rate(options_, number);
  aux_loss_ = 0;
  objective_->begin_step(number);
  record.loss = add_gradients();
  record.gradient_norm = gradient_norm();
  if (!std::isfinite(record.loss) || !std::isfinite(record.gradient_norm)) refuse_not_finite(record);
  // As torch.nn.utils.clip_grad_norm_ has it.
  const double scale = options_.clip > 0 ? std::min(1.0, options_.clip / (record.gradient_norm + 1e-6)) : 1.0;
  model_->optimizer->update(record.learning_rate, adam_learning_rate(options_, number), scale, number);
  ranks_.publish(*model_->parameters);
  record.more = objective_->report();
  if (model_->decoder->config().router_aux_loss_coef > 0) record.more["aux_loss"] = aux_loss_;
  record.flops = flops_;
  record.seconds = seconds_since(begin);
  record.tokens_per_second = static_cast<double>(objective_->tokens()) / record.seconds;
  return record;
}

void Run::refuse_not_finite(const StepRecord& record) {
  saver_->settle();  // all ranks are here: the one that is being written becomes whole
  const std::string tensor = first_not_finite(*model_->parameters, squares_);
  throw_error(
      ErrorKind::kInvalidInput,
      "step {}: the loss is {} and the gradient's norm {}{}: the run ends here, its last checkpoint "
      "stays; a lower --lr or a --clip may help",
      record.step, record.loss, record.gradient_norm,
      tensor.empty() ? "" : fmt::format(" (the first tensor whose gradient is not finite: {})", tensor));
}

// Times what a step gathers, one micro-batch, once its memory is there, and one update.
void Run::estimate() {
  const auto own_part = [&] { return ranks_.first_share() * (objective_->parts() / ranks_.shares()); };
  double part_seconds = 0, all = 0;
  const auto part_and_update = [&] {
    const Clock::time_point begin = Clock::now();
    accumulate(own_part());
    model_->backend->synchronize();
    part_seconds = seconds_since(begin);
    gradient_norm();
    model_->optimizer->update(0, 0, 1.0, 1);
    ranks_.publish(*model_->parameters);
    model_->backend->synchronize();
    all = seconds_since(begin);
  };
  model_->parameters->begin_gradient(0);
  objective_->begin_step(1);
  if (objective_->parts() > 0) part_and_update();
  const Clock::time_point before = Clock::now();
  objective_->begin_step(1);
  double gathering = seconds_since(before);
  if (options_.mode == "grpo") gathering /= static_cast<double>(options_.policy.updates);
  if (objective_->parts() == 0) return observer_.on_start(report_);  // a rollout with nothing to learn from
  part_and_update();
  const double seconds = gathering + part_seconds * static_cast<double>(own_parts()) + (all - part_seconds);
  report_.tokens_per_second = static_cast<double>(objective_->tokens()) / seconds;
  report_.seconds = seconds * static_cast<double>(options_.steps);
  observer_.on_start(report_);
  if (!options_.profile) return;
  // Once more: on a chip that runs behind each op that is watched is waited for.
  model_->backend->set_watch(&profile_);
  part_and_update();
  model_->backend->set_watch(nullptr);
  observer_.on_profile(profile_.table(1, all, model_->peaks, model_->decoder->work().compute));
}

void Run::tell(const StepRecord& record) {
  log_->step(record);
  observer_.on_step(record);
}

void Run::sample(int64_t step) {
  const std::string text = sampler_->sample(step);
  if (!ranks_.leads()) return;
  log_->sample(step, options_.sample.prompt, text);
  observer_.on_sample(step, options_.sample.prompt, text);
}

void Run::save(int64_t step) {
  if (step == done_) return saver_->begin_model(step);
  saver_->begin({step, options_.data.seed, objective_->state(), model_->fixed()});
}

void Run::go() {
  report_.peak_flops = product_peak(model_->peaks, model_->decoder->work().compute);
  report_.first_step = done_ + 1;
  if (options_.dry_run) return estimate();
  observer_.on_start(report_);
  if (ranks_.leads()) log_.emplace(options_.out, done_, [this](const std::string& text) { warn(text); });
  // Killed between its last checkpoint and the model.
  if (done_ >= options_.steps) save(done_);
  if (options_.profile) model_->backend->set_watch(&profile_);
  Validation* const validation = made_objective_->validation();
  double seconds = 0;
  int64_t count = 0;
  bool stops = false, due = false;  // due: a checkpoint, as soon as the objective is at rest
  for (int64_t number = done_ + 1; number <= options_.steps; ++number) {
    StepRecord record = step(number);
    seconds += record.seconds;
    ++count;
    if (validation != nullptr && (number % options_.validate_every == 0 || number == options_.steps))
      record.more["validation_loss"] = validation->loss(*passes_);
    if (ranks_.leads()) tell(record);
    saver_->poll();
    if (sampler_ && number % options_.sample.every == 0) sample(number);
    stops = ranks_.any(stops || observer_.should_stop());
    due = due || stops || number == options_.steps ||
          (options_.checkpoint_every > 0 && number % options_.checkpoint_every == 0);
    if (!due || !objective_->at_rest()) continue;
    save(number);
    due = false;
    if (stops) break;
  }
  model_->backend->set_watch(nullptr);
  if (options_.profile && count > 0)
    observer_.on_profile(profile_.table(count, seconds, model_->peaks, model_->decoder->work().compute));
  saver_->finish();
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
  agree_on_settings(communicator, fmt::format("{}\nout = {}", options.settings, options.out.string()));
  TrainOptions checked = options;
  if (checked.virtual_ranks == 0)
    checked.virtual_ranks = communicator.size() > checked.tensor_parallel ? kVirtualRanks : 1;
  check_options(checked);
  QuietObserver quiet(observer);
  Run(checked, communicator.rank() == 0 ? observer : quiet, communicator).go();
}

}  // namespace qiao::train
