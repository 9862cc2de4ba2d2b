// Runs a task's requests on an engine, many at once.
#pragma once

#include <functional>
#include <string>

#include "eval/task.h"

namespace qiao::eval {

struct RunWatch {
  std::function<void(uint64_t done)> progress;  // requests that have ended; about twenty times a second
  std::function<bool()> should_stop;
};

// Blocks until all have ended. `adapter`: an adapter of the engine's model, or empty. Throws
// Error(kCancelled) where the watch wants to stop, else what a request failed with; no request is left
// running then.
TaskResult run_task(Engine& engine, const Task& task, const std::string& adapter, const RunWatch& watch,
                    bool with_samples);

}  // namespace qiao::eval
