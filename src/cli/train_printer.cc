#include "cli/train_printer.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>

#include "base/error.h"
#include "base/units.h"

namespace qiao::cli {
namespace {

volatile std::sig_atomic_t interrupted = 0;

// stderr may be closed or full: nobody is left to tell.
void print(const std::string& text) { std::fputs(text.c_str(), stderr); }

// "3 s", "2 m 05 s", "1 h 20 m", "3 d 4 h"
std::string time_text(double seconds) {
  const int64_t whole = std::llround(std::clamp(seconds, 0.0, 1e15));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} m {:02} s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{} h {:02} m", whole / 3600, whole / 60 % 60);
  return fmt::format("{} d {} h", whole / 86400, whole / 3600 % 24);
}

size_t terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string memory_text(const train::MemoryPlan& memory) {
  return fmt::format(
      "memory at the peak: {} ({} of weights, {} of masters, gradients and the optimizer's states, {} of "
      "activations{}, {} "
      "to "
      "write checkpoints from, {} for the program and its data)\n",
      format_bytes(memory.total()), format_bytes(memory.weights), format_bytes(memory.parameters),
      format_bytes(memory.activations), memory.recomputes ? " (layers are computed again)" : "",
      format_bytes(memory.checkpoint), format_bytes(memory.process));
}

// Empty where nothing is computed in FP8.
std::string fp8_text(const train::TrainReport& report) {
  const std::vector<std::string>& unfit = report.unfit_matrices;
  if (report.f8_matrices == 0) return "";
  std::string text = fmt::format("in FP8: {} matrices of layers", report.f8_matrices);
  if (!unfit.empty()) {
    text += fmt::format("; in BF16, as their rows are no multiple of 128: {}{}", unfit.front(),
                        unfit.size() > 1 ? fmt::format(" and {} more", unfit.size() - 1) : "");
  }
  return text + "; in BF16: embedding, output matrix and routers\n";
}

// What reinforcement learning is watched by; empty for other modes.
std::string grpo_figures(const Json& more) {
  if (!more.contains("reward")) return "";
  std::string text = fmt::format("  reward {:.3f}  length {:.0f}  clipped {:.1f}%  rollout kl {:.2g}",
                                 more["reward"].get<double>(), more["completion_tokens"].get<double>(),
                                 100 * more["clipped"].get<double>(), more["rollout_kl"].get<double>());
  if (more.contains("rollout_differing")) {
    text += fmt::format(", {} of {} tokens differ", more["rollout_differing"].get<int64_t>(),
                        more["rollout_compared"].get<int64_t>());
  }
  return text;
}

}  // namespace

TrainPrinter::TrainPrinter(int64_t steps, int64_t log_every, bool quiet, bool dry_run)
    : steps_(steps),
      log_every_(std::max<int64_t>(log_every, 1)),
      quiet_(quiet),
      dry_run_(dry_run),
      terminal_(::isatty(STDERR_FILENO) == 1) {}

TrainPrinter::~TrainPrinter() { leave_line(); }

void TrainPrinter::leave_line() {
  if (on_line_) print("\n");
  on_line_ = false;
}

void TrainPrinter::on_start(const train::TrainReport& report) {
  report_ = report;
  begin_ = Clock::now();
  std::string text =
      fmt::format("{} parameters; {}{}", format_count(static_cast<uint64_t>(report.parameters)),
                  memory_text(report.memory), fp8_text(report));
  if (dry_run_) {
    text += fmt::format("{:.0f} tokens/s; {} for {} steps\n", report.tokens_per_second,
                        time_text(report.seconds), steps_);
    std::fputs(text.c_str(), stdout);
  } else if (!quiet_) {
    if (report.first_step > 1) text += fmt::format("goes on from step {}\n", report.first_step - 1);
    print(text);
  }
}

std::string TrainPrinter::line(const train::StepRecord& record) const {
  const std::chrono::duration<double> spent = Clock::now() - begin_;
  const int64_t done = record.step - report_.first_step + 1;
  const double left = spent.count() / static_cast<double>(done) * static_cast<double>(steps_ - record.step);
  std::string text = fmt::format("step {}/{}  loss {:.4f}  gradient {:.3f}  lr {:.2e}  {:.0f} tokens/s",
                                 record.step, steps_, std::abs(record.loss) < 5e-5 ? 0.0 : record.loss,
                                 record.gradient_norm, record.learning_rate, record.tokens_per_second);
  if (report_.peak_flops > 0)
    text += fmt::format("  {:.1f}% of peak", 100 * record.flops / record.seconds / report_.peak_flops);
  const std::string figures = grpo_figures(record.more);
  text += figures;
  for (const auto& [key, value] : record.more.items())
    if (figures.empty() && value.is_number()) text += fmt::format("  {} {:.4g}", key, value.get<double>());
  return text + fmt::format("  {} left", time_text(left));
}

void TrainPrinter::on_step(const train::StepRecord& record) {
  if (quiet_) return;
  if (!terminal_) {
    const bool shown = record.step % log_every_ == 0 || record.step == report_.first_step ||
                       record.step == steps_ || record.more.contains("validation_loss");
    if (shown) print(line(record) + "\n");
    return;
  }
  std::string text = line(record);
  if (const size_t columns = terminal_columns(); text.size() >= columns) text.resize(columns - 1);
  print(fmt::format("\r\x1b[K{}", text));
  on_line_ = true;
}

void TrainPrinter::on_sample(int64_t step, const std::string& prompt, const std::string& text) {
  if (quiet_) return;
  leave_line();
  print(fmt::format("sample of step {}: {}{}\n", step, prompt, text));
}

void TrainPrinter::on_profile(const std::string& table) {
  leave_line();
  std::fputs(table.c_str(), stdout);
}

void TrainPrinter::on_warning(const std::string& text) {
  leave_line();
  print(fmt::format("warning: {}\n", text));
}

bool TrainPrinter::should_stop() { return interrupted != 0; }

void TrainPrinter::take_interrupts() {
  std::signal(SIGINT, [](int) { interrupted = 1; });
  std::signal(SIGTERM, [](int) { interrupted = 1; });
  std::signal(SIGXFSZ, SIG_IGN);  // a file at the system's limit is an error of writing, as a full disk is
}

}  // namespace qiao::cli
