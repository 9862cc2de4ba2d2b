// Proves a chip: each op over random shapes, dtypes, strides and edge values against the law
// (reference/reference_class.h), within bounds derived from the ops' contracts.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/conformance/compare.h"
#include "base/json.h"

namespace qiao::conformance {

struct ProductShape {
  int64_t rows, columns;  // N, K
};

struct Options {
  std::string op;              // empty: all
  bool quick = false;          // fewer cases, small shapes
  bool bench = true;           // time a representative shape of each line
  bool until_failure = false;  // a line that has failed runs no more cases
  uint64_t seed = 1;
  // Not empty: nothing is proved. linear is timed with weights of BF16 and, where K has whole blocks of it,
  // of FP8, for each of these and each number of tokens; the last row is compared with itself alone.
  std::vector<ProductShape> products;
  std::vector<int64_t> tokens = {128, 512, 2048, 8192};
};

// A representative shape, timed.
struct Bench {
  std::string shape;
  double seconds = 0;     // the least of a call
  double roofline = 0;    // the larger share of read bandwidth and arithmetic peak; 0 where peaks are unknown
  std::string_view of{};  // what roofline is a share of: "read", "int8"…
};

// One line of the table: an op in one variant (a weight's dtype and compute kind, a pages' dtype…).
struct Line {
  std::string op;
  std::string variant;
  int64_t cases = 0;
  Errors errors;
  std::vector<std::string> failures;  // what went wrong, in words; at most kMaxFailures are kept
  int64_t failure_count = 0;
  bool missing = false;  // the chip threw kUnsupported

  std::vector<Bench> benches;

  bool passed() const { return !missing && cases > 0 && failure_count == 0 && errors.failures == 0; }
};
inline constexpr size_t kMaxFailures = 3;

struct Report {
  std::string chip;
  std::string op;           // the only one that ran; empty: all
  bool only_times = false;  // of Options::products
  uint64_t seed = 0;
  bool batch_invariant = true;  // the chip, as it was asked for
  DevicePeaks peaks;
  std::vector<Line> lines;
  std::vector<MissingOp> missing;   // as the chip lists them
  std::vector<std::string> faults;  // an op neither passing nor listed, or listed and passing
  bool green = false;               // for profile serve: all ops pass and none is missing
  bool green_for_train = false;     // green, and what training adds is not missing either
};

// Every op of the boundary, in backend.h's order.
std::vector<std::string_view> op_names();

// Every op has a line or more. Throws Error(kNotFound) for an unknown options.op, Error(kInvalidInput) where
// options.products are to be timed without timing or with another op than linear.
Report run(Backend& chip, const Options& options);

std::string to_table(const Report& report);
Json to_json(const Report& report);

}  // namespace qiao::conformance
