#include "infer/device_restarts.h"

#include "base/error.h"

namespace qiao {

void DeviceRestarts::tell(const std::string& line, bool ended) const {
  if (listener_) listener_(line, ended);
}

bool DeviceRestarts::restart(const std::string& why, int64_t requests, const std::function<void()>& reload) {
  const auto lost_at = std::chrono::steady_clock::now();
  while (!recent_.empty() && lost_at - recent_.front() > kWindow) recent_.pop_front();
  const std::string what = fmt::format("The device was lost ({}); {} request{} ended with an error", why,
                                       requests, requests == 1 ? "" : "s");
  if (recent_.size() == kMost) {
    tell(
        fmt::format("{}. It was lost {} times in {} minutes before: giving up", what, kMost, kWindow.count()),
        true);
    return false;
  }
  recent_.push_back(lost_at);
  tell(what + ". Loading the model again", false);
  try {
    reload();
  } catch (const std::exception& e) {
    tell(fmt::format("The model cannot be loaded again: {}; giving up", e.what()), true);
    return false;
  }
  ++total_;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - lost_at;
  tell(fmt::format("The model serves again after {:.1f} s", took.count()), false);
  return true;
}

void require_serving(EngineCondition condition) {
  if (condition == EngineCondition::kRestarting) {
    throw_error(ErrorKind::kUnavailable,
                "the device was lost, and the model is being loaded again; try again in a moment");
  }
  if (condition == EngineCondition::kEnded)
    throw_error(ErrorKind::kUnavailable, "the device was lost and cannot be had again; the server is ending");
}

}  // namespace qiao
