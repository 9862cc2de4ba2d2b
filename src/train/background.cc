#include "train/background.h"

#include <exception>

namespace qiao::train {

Background::~Background() {
  if (pending_.valid()) pending_.wait();
}

void Background::wait(const std::function<void(const std::string&)>& warn) {
  try {
    finish();
  } catch (const std::exception& error) {
    warn(error.what());
  }
}

void Background::start(std::function<void()> job, const std::function<void(const std::string&)>& warn) {
  wait(warn);
  pending_ = std::async(std::launch::async, std::move(job));
}

void Background::finish() {
  if (pending_.valid()) pending_.get();
}

}  // namespace qiao::train
