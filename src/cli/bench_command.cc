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
  std::vector<int64_t> prompts = {512};
  int64_t decode_tokens = 128;
  std::vector<int64_t> depths = {0};
  std::vector<int64_t> sequences = {1};
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

// Sequences on a decoder, without an engine: what is timed is the model alone.
class Runner {
 public:
  Runner(const LanguageModel& model, int64_t sequences, int64_t context, int64_t batch, DType kv_dtype)
      : decoder_(model.decoder()),
        sequences_(sequences),
        pages_((context + kPageTokens - 1) / kPageTokens),
        batch_(std::max(batch, sequences)),
        cache_(decoder_.backend(), decoder_.config(), sequences * pages_, kPageTokens, kv_dtype),
        workspace_(decoder_.make_workspace({.tokens = batch_,
                                            .sequences = sequences,
                                            .pages_per_sequence = pages_,
                                            .outputs = sequences,
                                            .logits = sequences},
                                           cache_)) {
    page_table_.resize(static_cast<size_t>(sequences * pages_));
    std::iota(page_table_.begin(), page_table_.end(), 0);
  }

  void reset() { length_ = 0; }
  void keep(int64_t length) { length_ = length; }  // of what was computed before

  // `count` tokens of each sequence, one sequence after the other.
  void prefill(int64_t count) {
    for (int64_t sequence = 0; sequence < sequences_; ++sequence) {
      for (int64_t done = 0; done < count; done += batch_) {
        begin_step();
        add(sequence, length_ + done, std::min(batch_, count - done));
        run(std::span(page_table_)
                .subspan(static_cast<size_t>(sequence * pages_), static_cast<size_t>(pages_)));
      }
    }
    length_ += count;
  }

  // A token of each sequence, in one step.
  void decode() {
    begin_step();
    for (int64_t sequence = 0; sequence < sequences_; ++sequence) add(sequence, length_, 1);
    run(page_table_);
    ++length_;
  }

 private:
  static constexpr int64_t kPageTokens = 32;

  void begin_step() {
    for (auto* list : {&tokens_, &positions_, &slots_, &lengths_, &last_rows_}) list->clear();
    starts_.assign(1, 0);
  }
  void add(int64_t sequence, int64_t begin, int64_t count) {
    for (int64_t position = begin; position < begin + count; ++position) {
      tokens_.push_back(
          static_cast<int32_t>(random_() % static_cast<uint64_t>(decoder_.config().vocabulary_size)));
      positions_.push_back(static_cast<int32_t>(position));
      // Its pages lie one after the other.
      slots_.push_back(static_cast<int32_t>(sequence * pages_ * kPageTokens + position));
    }
    lengths_.push_back(static_cast<int32_t>(begin + count));
    starts_.push_back(static_cast<int32_t>(tokens_.size()));
    last_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
  }
  void run(std::span<const int32_t> page_table) {
    const Decoder::Outputs out = decoder_.forward({.tokens = tokens_,
                                                   .positions = positions_,
                                                   .slots = slots_,
                                                   .page_table = page_table,
                                                   .lengths = lengths_,
                                                   .query_starts = starts_,
                                                   .output_rows = last_rows_},
                                                  cache_, *workspace_);
    float first = 0;  // waits for the step
    decoder_.backend().download(&first, out.logits.data, sizeof first);
  }

  const Decoder& decoder_;
  int64_t sequences_, pages_, batch_, length_ = 0;
  KvCache cache_;
  std::unique_ptr<Decoder::Workspace> workspace_;
  std::vector<int32_t> page_table_, tokens_, positions_, slots_, lengths_, starts_, last_rows_;
  std::mt19937_64 random_{1};
};

// Of keys and values that a step of decoding reads, with `length` tokens of each sequence: a window's layers
// read no more than that.
double cache_bytes(const DecoderConfig& config, DType dtype, int64_t sequences, double length) {
  const double row = 2.0 * static_cast<double>(config.num_key_value_heads) *
                     static_cast<double>(kv_row_bytes(dtype, config.head_dim));
  double rows = 0;
  for (const bool slides : config.layer_slides)
    rows += slides ? std::min(length, static_cast<double>(config.sliding_window)) : length;
  return static_cast<double>(sequences) * row * rows;
}

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
    case Compute::kF8:
      return peaks.f8_flops > 0 ? peaks.f8_flops : peaks.f32_flops;
    case Compute::kF32:
      break;
  }
  return peaks.f32_flops;
}

const char* peak_name(Compute compute, const DevicePeaks& peaks) {
  if (compute == Compute::kF8 && peaks.f8_flops > 0) return "fp8";
  return compute == Compute::kQ8 ? "int8" : compute == Compute::kBF16 ? "bf16" : "float32";
}

Json to_json(const Rates& rates) {
  return {{"min", rates.min}, {"median", rates.median}, {"max", rates.max}};
}

struct Case {
  int64_t prompt_tokens, sequences, depth;
};

struct Measured {
  Rates prefill, decode;
};

Measured measure(const LanguageModel& model, const BenchFlags& flags, const Case& which) {
  const int64_t context = which.depth + std::max(which.prompt_tokens, flags.decode_tokens);
  Runner runner(model, which.sequences, context, std::min(flags.model.batch, context), kv_dtype(flags.model));
  model.backend().settle();
  std::vector<double> prefill, decode;
  for (int round = -1; round < flags.repetitions; ++round) {  // the first is a warm-up
    if (which.prompt_tokens > 0) {
      runner.reset();
      runner.prefill(which.depth);
      const double took = seconds_of([&] { runner.prefill(which.prompt_tokens); });
      if (round >= 0) prefill.push_back(static_cast<double>(which.sequences * which.prompt_tokens) / took);
    }
    if (flags.decode_tokens > 0) {
      runner.reset();
      // Rounds of decoding alone take what the first has computed.
      which.prompt_tokens > 0 || round < 0 ? runner.prefill(which.depth) : runner.keep(which.depth);
      const int64_t count = round < 0 ? std::min<int64_t>(flags.decode_tokens, 4) : flags.decode_tokens;
      const double took = seconds_of([&] {
        for (int64_t i = 0; i < count; ++i) runner.decode();
      });
      if (round >= 0) decode.push_back(static_cast<double>(which.sequences * count) / took);
    }
  }
  return {summarize(prefill), summarize(decode)};
}

void bench(const BenchFlags& flags) {
  if (flags.model.lookup > 0 || !flags.model.draft.empty()) {
    throw_error(
        ErrorKind::kInvalidInput,
        "{}: drafts depend on the text, and qiao bench feeds random tokens; time them with qiao generate or "
        "bench/serve_load.py",
        flags.model.lookup > 0 ? "--lookup" : "--draft");
  }
  if (flags.decode_tokens == 0 &&
      std::find(flags.prompts.begin(), flags.prompts.end(), 0) != flags.prompts.end())
    throw CLI::ValidationError("-p and -n are both 0: nothing to measure");
  const std::shared_ptr<LanguageModel> model = load_model(flags.model);
  std::vector<Case> cases;
  for (const int64_t prompt : flags.prompts)
    for (const int64_t depth : flags.depths)
      for (const int64_t sequences : flags.sequences) cases.push_back({prompt, sequences, depth});
  const DevicePeaks peaks = model->backend().measure_peaks();
  const DeviceInfo device = model->backend().describe();
  const DecoderWork work = model->decoder().work();
  const double peak = peak_of(work.compute, peaks), bandwidth = peaks.read_bytes_per_second;
  if (!flags.json) {
    const int ranks = model->decoder().ranks();
    const std::string spread = ranks > 1 ? fmt::format(", the first of {} processes", ranks) : "";
    std::printf("%s on %s%s\n\n", model->name().c_str(), device.name.c_str(), spread.c_str());
    std::printf("%-24s %10s %10s %10s   %s\n", "tokens/s", "min", "median", "max", "share of the machine");
  }
  for (const Case& each : cases) {
    const auto& [prompt_tokens, sequences, depth] = each;
    std::fflush(stdout);  // is kept where this case fails
    const auto [p, d] = measure(*model, flags, each);
    // Prefill: the layers' products for each token; the logits of one row are lost in it.
    const double prefill_share = peak > 0 ? p.median * work.layer_flops_per_token / peak : 0;
    const double mean_length = static_cast<double>(depth) + static_cast<double>(flags.decode_tokens) / 2;
    const double step_bytes =
        work.bytes_per_step +
        cache_bytes(model->decoder().config(), kv_dtype(flags.model), sequences, mean_length);
    const double steps = d.median / static_cast<double>(sequences);
    const double decode_share = bandwidth > 0 ? steps * step_bytes / bandwidth : 0;
    if (flags.json) {
      Json json = {{"model", model->name()},
                   {"quantize", flags.model.quantize.empty() ? Json() : Json(flags.model.quantize)},
                   {"kv_type", kv_type(flags.model)},
                   {"device", device.name},
                   {"threads", device.threads},
                   {"fast", flags.model.fast},
                   {"processes", model->decoder().ranks()},
                   {"prompt_tokens", prompt_tokens},
                   {"decode_tokens", flags.decode_tokens},
                   {"depth", depth},
                   {"sequences", sequences},
                   {"repetitions", flags.repetitions}};
      if (prompt_tokens > 0) {
        json["prefill_tokens_per_second"] = to_json(p);
        json["prefill_share_of_peak"] = prefill_share;
        json["peak"] = {{"kind", peak_name(work.compute, peaks)}, {"operations_per_second", peak}};
      }
      if (flags.decode_tokens > 0) {
        json["decode_tokens_per_second"] = to_json(d);
        json["decode_share_of_bandwidth"] = decode_share;
        json["read_bytes_per_second"] = bandwidth;
      }
      std::printf("%s\n", dump_json(json, cases.size() == 1 ? 2 : -1).c_str());
      continue;
    }
    std::string where = sequences > 1 ? fmt::format(" x {}", sequences) : "";
    if (depth > 0) where += fmt::format(" at {}", depth);
    if (prompt_tokens > 0) {
      std::printf("%-24s %10.1f %10.1f %10.1f   %.1f%% of the %s peak (%.0f G/s)\n",
                  fmt::format("prefill {}{}", prompt_tokens, where).c_str(), p.min, p.median, p.max,
                  prefill_share * 100, peak_name(work.compute, peaks), peak / 1e9);
    }
    if (flags.decode_tokens > 0) {
      std::printf("%-24s %10.1f %10.1f %10.1f   %.1f%% of the read bandwidth (%.1f GB/s)\n",
                  fmt::format("decode {}{}", flags.decode_tokens, where).c_str(), d.min, d.median, d.max,
                  decode_share * 100, bandwidth / 1e9);
    }
  }
}

}  // namespace

void add_bench_command(CLI::App& app) {
  const auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Measure tokens/s of prefill and decode");
  add_model_flags(*command, flags->model);
  const auto tokens = CLI::Range(int64_t{0}, int64_t{1} << 20);
  command->add_option("-p,--n-prompt", flags->prompts, "Tokens of the prompt; 0: no prefill")
      ->check(tokens)
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("N,…");
  command->add_option("-n,--n-gen", flags->decode_tokens, "Tokens decoded one by one; 0: no decode")
      ->check(tokens)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("-d,--n-depth", flags->depths, "Tokens already in the cache before either")
      ->check(tokens)
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("N,…");
  command
      ->add_option("-s,--sequences", flags->sequences,
                   "Sequences side by side, each with its own tokens; rates are of all together")
      ->check(CLI::Range(1, 4096))
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("N,…");
  command->add_option("-r,--repetitions", flags->repetitions, "How often each is measured, after a warm-up")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", flags->json, "Print a JSON object; of several -p, -d and -s, one a line");
  command->footer(
      "Prefill's share is of the arithmetic peak; decode's of the read bandwidth, for the weights that a "
      "token "
      "reads and the keys and values of all sequences; both measured in the same run.\n"
      "Examples:\n"
      "  qiao bench -m smollm2 -p 512 -n 128 -r 5\n"
      "  qiao bench -m smollm2 -p 0 -s 1,4,16 -d 1000   decoding 1, 4 and 16 sequences of 1000 tokens each\n"
      "  qiao bench -m qwen2.5-coder-1.5b -t 1 --json");
  command->callback([flags] { bench(*flags); });
}

}  // namespace qiao::cli
