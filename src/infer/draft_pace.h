// How many tokens a draft model should guess for a sequence: as many as pay, by how often its guesses were
// right lately, and none for a while where none pays.
#pragma once

#include <cstdint>

namespace qiao {

class DraftPace {
 public:
  // How many tokens to guess behind the first `tokens`, at most `most`; 0 while it pauses. cost: of a step of
  // the draft model, in steps of the target.
  int64_t wish(int64_t tokens, int64_t most, double cost);

  // How many of the last guesses were right.
  void judge(int64_t drafted, int64_t accepted);

 private:
  double right_ = 2.1, judged_ = 3.0;  // guesses lately; a guess behind a wrong one is not judged
  int trials_ = 4;                     // drafts that are made whether they seem to pay or not
  int64_t paused_until_ = 0;           // in tokens
};

}  // namespace qiao
