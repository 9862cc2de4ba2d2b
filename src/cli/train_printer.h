// What a person sees of a run: a line that is rewritten on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "train/trainer.h"

namespace qiao::cli {

class TrainPrinter final : public train::TrainObserver {
 public:
  // `log_every`: steps between the plain lines. `dry_run`: what was found out is the output, on stdout.
  TrainPrinter(int64_t steps, int64_t log_every, bool quiet, bool dry_run);
  ~TrainPrinter() override;  // ends the terminal's line

  void on_start(const train::TrainReport& report) override;
  void on_step(const train::StepRecord& record) override;
  void on_sample(int64_t step, const std::string& prompt, const std::string& text) override;
  void on_profile(const std::string& table) override;
  void on_warning(const std::string& text) override;
  bool should_stop() override;

  // Ctrl-C asks the run to end after its step, from now on.
  static void take_interrupts();

 private:
  using Clock = std::chrono::steady_clock;
  std::string line(const train::StepRecord& record) const;
  void leave_line();

  int64_t steps_, log_every_;
  bool quiet_, dry_run_, terminal_;
  bool on_line_ = false;  // the cursor stands behind the live line
  train::TrainReport report_;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace qiao::cli
