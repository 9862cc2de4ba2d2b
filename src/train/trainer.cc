#include "train/trainer.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <numbers>

#include "backend/backend.h"
#include "base/error.h"
#include "base/json.h"
#include "formats/model_files.h"
#include "train/checkpoint.h"
#include "train/model_directory.h"

namespace qiao::train {
namespace {

void check_options(const TrainOptions& o) {
  const auto need = [](bool right, std::string_view option, auto value, std::string_view expected) {
    if (!right) throw_error(ErrorKind::kInvalidInput, "--{} is {}; {} was expected", option, value, expected);
  };
  need(o.steps > 0, "steps", o.steps, "a number above 0");
  need(o.batch > 0, "batch", o.batch, "a number above 0");
  need(o.micro_batch >= 0, "micro-batch", o.micro_batch, "0 or more");
  need(o.data.sequence > 1, "seq", o.data.sequence, "2 or more");
  need(o.data.sequence * o.batch <= INT32_MAX, "batch", o.batch, "fewer tokens a step");
  need(std::isfinite(o.optimizer.learning_rate) && o.optimizer.learning_rate >= 0, "lr",
       o.optimizer.learning_rate, "0 or more");
  need(o.optimizer.beta1 >= 0 && o.optimizer.beta1 < 1, "beta1", o.optimizer.beta1,
       "a number from 0 to below 1");
  need(o.optimizer.beta2 >= 0 && o.optimizer.beta2 < 1, "beta2", o.optimizer.beta2,
       "a number from 0 to below 1");
  need(o.optimizer.weight_decay >= 0 && std::isfinite(o.optimizer.weight_decay), "weight-decay",
       o.optimizer.weight_decay, "0 or more");
  need(o.clip >= 0, "clip", o.clip, "0 or more");
  need(o.warmup >= 0, "warmup", o.warmup, "0 or more");
  need(o.schedule == "constant" || o.schedule == "linear" || o.schedule == "cosine", "schedule", o.schedule,
       "constant, linear or cosine");
  need(!o.out.empty(), "out", o.out.string(), "a folder for the run");
}

// Everything of a run that lives from step to step.
class Run {
 public:
  Run(const TrainOptions& options, TrainObserver& observer);
  void go();

 private:
  StepRecord step(int64_t number);
  double accumulate(const TokenBatch& batch, int64_t labelled);
  void save(int64_t step);

  const TrainOptions& options_;
  TrainObserver& observer_;
  std::shared_ptr<ModelFiles> files_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Parameters> parameters_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<DataStream> data_;
  std::unique_ptr<DecoderTraining> passes_;
  int64_t micro_batch_ = 0, done_ = 0;
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
  parameters_ = std::make_unique<Parameters>(*backend_);
  DecoderOptions decoder;
  decoder.float_weights = DType::kF32;
  decoder.laid_out = [&](const LaidOutTensor& tensor) { parameters_->add(tensor); };
  decoder_ = Decoder::load(*files_, *backend_, decoder);
  parameters_->prepare(*files_);
  if (!files_->tokenizer_json().is_null()) tokenizer_ = Tokenizer::from_model(*files_);
  DataOptions data = options.data;
  data.vocabulary_size = decoder_->config().vocabulary_size;
  data_ = std::make_unique<DataStream>(data, tokenizer_.get(),
                                       [&](const std::string& text) { observer_.on_warning(text); });
  micro_batch_ = options.micro_batch > 0 ? std::min(options.micro_batch, options.batch) : options.batch;
  const int64_t tokens = micro_batch_ * options.data.sequence;
  passes_ = std::make_unique<DecoderTraining>(*decoder_, tokens, tokens / 2 + micro_batch_);
  if (options.resume) {
    const CheckpointState state = load_checkpoint(options.out, *parameters_);
    done_ = state.step;
    data_->set_position(state.data);
  }
}

// Adds the gradients of one micro-batch of a step with so many labels in all; its part of the loss.
double Run::accumulate(const TokenBatch& batch, int64_t labelled) {
  const std::span<const float> logprob = passes_->forward(batch.view());
  double sum = 0;
  for (const float value : logprob) sum -= static_cast<double>(value);
  const auto weight = static_cast<float>(-1.0 / static_cast<double>(labelled));
  dlogprob_.assign(batch.tokens.size(), 0.0f);
  for (size_t i = 0; i < batch.labels.size(); ++i)
    if (batch.labels[i] >= 0) dlogprob_[i] = weight;
  passes_->backward(dlogprob_, *parameters_);
  return sum / static_cast<double>(labelled);
}

StepRecord Run::step(int64_t number) {
  const auto begin = std::chrono::steady_clock::now();
  StepRecord record;
  record.step = number;
  record.learning_rate = learning_rate(options_, number);
  // Normalised by all the step's labels, so that parts give what the whole would.
  std::vector<TokenBatch> parts;
  int64_t labelled = 0;
  for (int64_t done = 0; done < options_.batch; done += micro_batch_) {
    parts.push_back(data_->next(std::min(micro_batch_, options_.batch - done)));
    labelled += parts.back().labelled;
  }
  parameters_->zero_gradients();
  for (const TokenBatch& part : parts) record.loss += accumulate(part, std::max<int64_t>(labelled, 1));
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
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  record.tokens_per_second = static_cast<double>(options_.batch * options_.data.sequence) / seconds.count();
  return record;
}

void Run::save(int64_t step) {
  save_checkpoint(options_.out, {step, data_->position()}, *parameters_, options_.keep_checkpoints);
  write_model_directory(options_.out / "model", options_.init, *files_, *parameters_);
}

void Run::go() {
  TrainReport report;
  report.parameters = parameters_->count();
  report.memory_bytes = decoder_->weight_bytes() + parameters_->bytes() + passes_->bytes();
  observer_.on_start(report);
  if (options_.dry_run) return;
  std::filesystem::create_directories(options_.out);
  if (!options_.resume && std::filesystem::exists(options_.out / "metrics.jsonl")) {
    throw_error(ErrorKind::kInvalidInput, "{}: a run is here already; --resume goes on with it",
                options_.out.string());
  }
  if (options_.resume) cut_metrics(options_.out, done_);
  std::ofstream metrics(options_.out / "metrics.jsonl", std::ios::app);
  for (int64_t number = done_ + 1; number <= options_.steps; ++number) {
    const StepRecord record = step(number);
    const Json line = {{"step", record.step},
                       {"loss", record.loss},
                       {"grad_norm", record.gradient_norm},
                       {"lr", record.learning_rate},
                       {"tokens_per_second", record.tokens_per_second}};
    metrics << dump_json(line) << std::endl;
    observer_.on_step(record);
    const bool stops = observer_.should_stop();
    if (stops || number == options_.steps ||
        (options_.checkpoint_every > 0 && number % options_.checkpoint_every == 0))
      save(number);
    if (stops) break;
  }
}

}  // namespace

double learning_rate(const TrainOptions& options, int64_t step) {
  const double rate = options.optimizer.learning_rate;
  if (step <= options.warmup) return rate * static_cast<double>(step) / static_cast<double>(options.warmup);
  if (options.schedule == "constant") return rate;
  const double share = static_cast<double>(step - options.warmup) /
                       static_cast<double>(std::max<int64_t>(options.steps - options.warmup, 1));
  const double least = options.least_learning_rate;
  const double falling =
      options.schedule == "linear" ? 1 - share : (1 + std::cos(std::numbers::pi * share)) / 2;
  return rate * (least + (1 - least) * falling);
}

void train(const TrainOptions& options, TrainObserver& observer) { Run(options, observer).go(); }

}  // namespace qiao::train
