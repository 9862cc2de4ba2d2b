// "did you mean": the names that are near to a mistyped one.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace qiao {

// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b` (optimal string
// alignment).
size_t edit_distance(std::string_view a, std::string_view b);

// Candidates within a third of the word's length (at least 1, at most 3) of it, or that it begins, nearest
// first, at most three. Case does not count. Words over 100 bytes have none.
std::vector<std::string> near_matches(std::string_view word, const std::vector<std::string>& candidates);

// "; did you mean 'chat'?", "; did you mean 'a' or 'b'?", or nothing where no candidate is near.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace qiao
