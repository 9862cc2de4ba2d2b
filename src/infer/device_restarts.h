// A device that was lost is had again a few times; whoever loses it more often is better started anew.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>

namespace qiao {

// How an engine is. kRestarting: its device was lost, and the model is being loaded again. kEnded: that was
// given up; it refuses all requests.
enum class EngineCondition { kServing, kRestarting, kEnded };

// Hears a line about a lost device and what came of it; `ended` with the last one of an engine that gives up.
using DeviceLostListener = std::function<void(const std::string& line, bool ended)>;

class DeviceRestarts {
 public:
  static constexpr size_t kMost = 3;
  static constexpr std::chrono::minutes kWindow{10};  // so many in this time, no more

  explicit DeviceRestarts(DeviceLostListener listener) : listener_(std::move(listener)) {}

  // The device was lost, and `requests` requests ended with that. Calls `reload`, which has all again that
  // lay on it, and tells the listener. False, and nothing is had again, where it was lost too often or
  // `reload` throws.
  bool restart(const std::string& why, int64_t requests, const std::function<void()>& reload);
  int64_t total() const { return total_; }

 private:
  void tell(const std::string& line, bool ended) const;

  const DeviceLostListener listener_;
  std::deque<std::chrono::steady_clock::time_point> recent_;
  int64_t total_ = 0;
};

// Throws Error(kUnavailable) where an engine in this condition takes no requests.
void require_serving(EngineCondition condition);

}  // namespace qiao
