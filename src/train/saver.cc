#include "train/saver.h"

#include <algorithm>

#include "base/error.h"

namespace qiao::train {
namespace {

constexpr size_t kSha256Digits = 64;
constexpr int64_t kSaverLeader = 0;  // a virtual rank of rank 0
const std::string kNoChecksum(kSha256Digits, '-');

}  // namespace

Snapshot::Kind Saver::needed_for(const TrainOptions& options) {
  const bool is_last_alone = options.checkpoint_every == 0 || options.checkpoint_every >= options.steps;
  return is_last_alone && options.tensor_parallel == 1 ? Snapshot::Kind::kInPlace : Snapshot::Kind::kCopy;
}

Saver::Saver(Setup setup)
    : setup_(std::move(setup)),
      snapshot_(setup_.parameters, setup_.optimizer, setup_.ranks, setup_.snapshot) {}

std::string Saver::not_written(const std::string& why) const {
  return fmt::format("the checkpoint of step {} is not written: {}", state_.step, why);
}

void Saver::start(std::function<void()> job) {
  writer_.start(std::move(job), setup_.snapshot == Snapshot::Kind::kInPlace ? Background::When::kAtFinish
                                                                            : Background::When::kNow);
}

// Empty, or what the job threw.
std::string Saver::wait_for_job() {
  try {
    writer_.finish();
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

void Saver::begin(const CheckpointState& state) {
  settle();
  state_ = state;
  snapshot_.take();
  checksums_.assign(static_cast<size_t>(setup_.ranks.shares()), kNoChecksum);
  double is_there = 1;
  if (setup_.ranks.leads()) {
    try {
      begin_checkpoint(setup_.options.out, state.step);
    } catch (const Error& error) {
      failure_ = not_written(error.what());
      is_there = 0;
    }
  }
  setup_.ranks.agree({&is_there, 1}, {&kSaverLeader, 1});
  if (is_there == 0) {
    if (failure_.empty()) failure_ = not_written("rank 0 could not");
    return;
  }
  start_shares();
}

void Saver::start_shares() {
  const auto write = [this] {
    if (!setup_.ranks.leads_group()) return;
    try {
      write_shares(setup_.options.out, state_.step, snapshot_, setup_.ranks, checksums_);
    } catch (const Error& error) {
      if (setup_.ranks.is_alone()) abandon_checkpoint(setup_.options.out, state_.step);
      throw Error(error.kind(), not_written(error.what()));
    }
  };
  shares_pending_ = !setup_.ranks.is_alone();
  start([this, write] {
    write();
    if (setup_.ranks.is_alone()) publish(true);
  });
}

void Saver::begin_model(int64_t step) {
  settle();
  state_.step = step;
  snapshot_.take();
  if (setup_.ranks.leads()) start([this] { publish(false); });
}

// On rank 0, whose checksums are those of all.
void Saver::publish(bool is_new) {
  const TrainOptions& options = setup_.options;
  if (is_new) {
    try {
      finish_checkpoint(options.out, state_, checksums_, options.keep_checkpoints);
    } catch (const Error& error) {
      abandon_checkpoint(options.out, state_.step);
      throw Error(error.kind(), not_written(error.what()));
    }
  }
  std::optional<CheckpointFiles> files;  // what other ranks have
  setup_.write_model([&](size_t tensor) {
    const Parameters::Named& named = setup_.parameters.tensors()[tensor];
    if (named.is_here) return snapshot_.master(tensor);
    if (!files) files.emplace(options.out, state_.step);
    return files->master(named);
  });
}

// All have written their shares, or failed to.
void Saver::exchange() {
  const Ranks& ranks = setup_.ranks;
  failure_ = wait_for_job();
  shares_pending_ = false;
  ranks.collect(checksums_);
  double is_whole = std::ranges::find(checksums_, kNoChecksum) == checksums_.end() ? 1 : 0;
  ranks.agree({&is_whole, 1}, {&kSaverLeader, 1});
  if (is_whole == 0) {
    if (failure_.empty()) failure_ = not_written("another process could not write its share");
    if (ranks.leads()) abandon_checkpoint(setup_.options.out, state_.step);
  } else if (ranks.leads()) {
    start([this] { publish(true); });
  }
}

void Saver::poll() {
  if (!shares_pending_) return;
  if (!setup_.ranks.any(!writer_.is_done())) exchange();
}

// Until nothing is under way; why not all of it was written stands in failure_.
void Saver::wait() {
  if (shares_pending_) exchange();
  if (const std::string failure = wait_for_job(); !failure.empty()) failure_ = failure;
}

// The last is written, or `warn` hears why not.
void Saver::settle() {
  wait();
  if (!failure_.empty()) setup_.warn(failure_);
  failure_.clear();
}

void Saver::finish() {
  wait();
  double has_failed = failure_.empty() ? 0 : 1;
  setup_.ranks.agree({&has_failed, 1}, {&kSaverLeader, 1});
  if (has_failed == 0) return;
  throw_error(ErrorKind::kIo, "{}", failure_.empty() ? not_written("rank 0 could not") : failure_);
}

}  // namespace qiao::train
