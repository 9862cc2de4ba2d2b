#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "models/decoder.h"

namespace qiao::cli {
namespace {

struct BenchFlags {
  ModelFlags model;
  int64_t prompt_tokens = 512;
  int64_t decode_tokens = 128;
  int64_t depth = 0;
  int repetitions = 5;
  bool json = false;
};

struct Rates {
  double min = 0, median = 0, max = 0;
};

Rates summarize(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return {values.front(), (values[(n - 1) / 2] + values[n / 2]) / 2, values.back()};
}

// One sequence on a decoder, without an engine: what is timed is the model alone.
class Runner {
 public:
  Runner(const LanguageModel& model, int64_t context, int64_t batch, DType kv_dtype)
      : decoder_(model.decoder()),
        pages_((context + kPageTokens - 1) / kPageTokens),
        batch_(batch),
        cache_(decoder_.backend(), decoder_.config(), pages_, kPageTokens, kv_dtype),
        workspace_(decoder_.make_workspace(
            {.tokens = batch, .sequences = 1, .pages_per_sequence = pages_, .outputs = 1, .logits = 1},
            cache_)) {
    page_table_.resize(static_cast<size_t>(pages_));
    std::iota(page_table_.begin(), page_table_.end(), 0);
  }

  void reset() { length_ = 0; }

  void feed(int64_t count) {
    while (count > 0) {
      const int64_t step = std::min(count, batch_);
      tokens_.clear();
      positions_.clear();
      for (int64_t i = 0; i < step; ++i) {
        tokens_.push_back(
            static_cast<int32_t>(random_() % static_cast<uint64_t>(decoder_.config().vocabulary_size)));
        positions_.push_back(static_cast<int32_t>(length_ + i));
      }
      length_ += step;
      const int32_t length = static_cast<int32_t>(length_);
      const int32_t starts[] = {0, static_cast<int32_t>(step)};
      const int32_t last = static_cast<int32_t>(step) - 1;
      const Decoder::Outputs out =
          decoder_.forward({.tokens = tokens_,
                            .positions = positions_,
                            .slots = positions_,  // page i is the i-th: slot = position
                            .page_table = page_table_,
                            .lengths = {&length, 1},
                            .query_starts = starts,
                            .output_rows = {&last, 1}},
                           cache_, *workspace_);
      float first = 0;  // waits for the step
      decoder_.backend().download(&first, out.logits.data, sizeof first);
      count -= step;
    }
  }

 private:
  static constexpr int64_t kPageTokens = 32;
  const Decoder& decoder_;
  int64_t pages_, batch_, length_ = 0;
  KvCache cache_;
  std::unique_ptr<Decoder::Workspace> workspace_;
  std::vector<int32_t> page_table_, tokens_, positions_;
  std::mt19937_64 random_{1};
};

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double peak_of(Compute compute, const DevicePeaks& peaks) {
  switch (compute) {
    case Compute::kQ8:
      return peaks.int8_ops;
    case Compute::kBF16:
      return peaks.bf16_flops;
    case Compute::kF32:
      break;
  }
  return peaks.f32_flops;
}

const char* peak_name(Compute compute) {
  return compute == Compute::kQ8 ? "int8" : compute == Compute::kBF16 ? "bf16" : "float32";
}

Json to_json(const Rates& rates) {
  return {{"min", rates.min}, {"median", rates.median}, {"max", rates.max}};
}

void bench(const BenchFlags& flags) {
  if (flags.model.lookup > 0 || !flags.model.draft.empty()) {
    throw_error(
        ErrorKind::kInvalidInput,
        "{}: drafts depend on the text, and qiao bench feeds random tokens; time them with qiao generate or "
        "bench/serve_load.py",
        flags.model.lookup > 0 ? "--lookup" : "--draft");
  }
  if (flags.prompt_tokens == 0 && flags.decode_tokens == 0)
    throw CLI::ValidationError("-p and -n are both 0: nothing to measure");
  const std::shared_ptr<LanguageModel> model = load_model(flags.model);
  const Decoder& decoder = model->decoder();
  const int64_t context = flags.depth + std::max(flags.prompt_tokens, flags.decode_tokens);
  Runner runner(*model, context, std::min(flags.model.batch, context), kv_dtype(flags.model));
  model->backend().settle();
  std::vector<double> prefill, decode;
  for (int round = -1; round < flags.repetitions; ++round) {  // the first is a warm-up
    if (flags.prompt_tokens > 0) {
      runner.reset();
      runner.feed(flags.depth);
      const double took = seconds_of([&] { runner.feed(flags.prompt_tokens); });
      if (round >= 0) prefill.push_back(static_cast<double>(flags.prompt_tokens) / took);
    }
    if (flags.decode_tokens > 0) {
      runner.reset();
      runner.feed(flags.depth);
      const int64_t count = round < 0 ? std::min<int64_t>(flags.decode_tokens, 4) : flags.decode_tokens;
      const double took = seconds_of([&] {
        for (int64_t i = 0; i < count; ++i) runner.feed(1);
      });
      if (round >= 0) decode.push_back(static_cast<double>(count) / took);
    }
  }
  const DevicePeaks peaks = model->backend().measure_peaks();
  const DecoderWork work = decoder.work();
  const Rates p = summarize(prefill), d = summarize(decode);
  const double peak = peak_of(work.compute, peaks);
  // Prefill: the layers' products for each token; the logits of one row are lost in it.
  const double prefill_share = peak > 0 ? p.median * work.layer_flops_per_token / peak : 0;
  const double decode_share =
      peaks.read_bytes_per_second > 0 ? d.median * work.bytes_per_step / peaks.read_bytes_per_second : 0;
  if (flags.json) {
    const DeviceInfo device = model->backend().describe();
    Json json = {{"model", model->name()},
                 {"device", device.name},
                 {"threads", device.threads},
                 {"prompt_tokens", flags.prompt_tokens},
                 {"decode_tokens", flags.decode_tokens},
                 {"depth", flags.depth},
                 {"repetitions", flags.repetitions}};
    if (flags.prompt_tokens > 0) {
      json["prefill_tokens_per_second"] = to_json(p);
      json["prefill_share_of_peak"] = prefill_share;
      json["peak"] = {{"kind", peak_name(work.compute)}, {"operations_per_second", peak}};
    }
    if (flags.decode_tokens > 0) {
      json["decode_tokens_per_second"] = to_json(d);
      json["decode_share_of_bandwidth"] = decode_share;
      json["read_bytes_per_second"] = peaks.read_bytes_per_second;
    }
    std::printf("%s\n", dump_json(json, 2).c_str());
    return;
  }
  const DeviceInfo device = model->backend().describe();
  std::printf("%s on %s\n\n", model->name().c_str(), device.name.c_str());
  std::printf("%-14s %10s %10s %10s   %s\n", "tokens/s", "min", "median", "max", "share of the machine");
  if (flags.prompt_tokens > 0) {
    std::printf("%-14s %10.1f %10.1f %10.1f   %.1f%% of the %s peak (%.0f G/s)\n",
                fmt::format("prefill {}", flags.prompt_tokens).c_str(), p.min, p.median, p.max,
                prefill_share * 100, peak_name(work.compute), peak / 1e9);
  }
  if (flags.decode_tokens > 0) {
    std::printf("%-14s %10.1f %10.1f %10.1f   %.1f%% of the read bandwidth (%.1f GB/s)\n",
                fmt::format("decode {}", flags.decode_tokens).c_str(), d.min, d.median, d.max,
                decode_share * 100, peaks.read_bytes_per_second / 1e9);
  }
}

}  // namespace

void add_bench_command(CLI::App& app) {
  const auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Measure tokens/s of prefill and decode");
  add_model_flags(*command, flags->model);
  const auto tokens = CLI::Range(int64_t{0}, int64_t{1} << 20);
  command->add_option("-p,--n-prompt", flags->prompt_tokens, "Tokens of the prompt; 0: no prefill")
      ->check(tokens)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("-n,--n-gen", flags->decode_tokens, "Tokens decoded one by one; 0: no decode")
      ->check(tokens)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("-d,--n-depth", flags->depth, "Tokens already in the cache before either")
      ->check(tokens)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("-r,--repetitions", flags->repetitions, "How often each is measured, after a warm-up")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->footer(
      "Prefill's share is of the arithmetic peak, decode's of the read bandwidth, both measured in the same "
      "run.\n"
      "Examples:\n"
      "  qiao bench -m smollm2 -p 512 -n 128 -r 5\n"
      "  qiao bench -m qwen2.5-coder-1.5b -t 1 --json");
  command->callback([flags] { bench(*flags); });
}

}  // namespace qiao::cli
