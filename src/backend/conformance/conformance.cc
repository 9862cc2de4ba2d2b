#include "backend/conformance/conformance.h"

#include <algorithm>

#include "backend/conformance/harness.h"
#include "base/error.h"

namespace qiao::conformance {
namespace {

struct Table {
  std::string_view op;
  void (*conform)(Harness&);
};

constexpr Table kTables[] = {
    {"gather", conform_gather},
    {"gather_rows", conform_gather_rows},
    {"linear", conform_linear},
    {"grouped_linear", conform_grouped_linear},
    {"moe_route", conform_moe_route},
    {"moe_permute", conform_moe_permute},
    {"moe_combine", conform_moe_combine},
    {"add_rms_norm", conform_add_rms_norm},
    {"layer_norm", conform_layer_norm},
    {"rope", conform_rope},
    {"gated_activation", conform_gated_activation},
    {"kv_write", conform_kv_write},
    {"rope_kv_write", conform_rope_kv_write},
    {"attention_paged", conform_attention_paged},
    {"attention_varlen", conform_attention_varlen},
    {"sample", conform_sample},
    {"feed_drawn", conform_feed_drawn},
    {"embedding_bag", conform_embedding_bag},
    {"vector_search", conform_vector_search},
    {"write_weight", conform_write_weight},
    {"gather_backward", conform_gather_backward},
    {"embedding_bag_backward", conform_embedding_bag_backward},
    {"linear_backward", conform_linear_backward},
    {"grouped_linear_backward", conform_grouped_linear_backward},
    {"moe_route_backward", conform_moe_route_backward},
    {"moe_permute_backward", conform_moe_permute_backward},
    {"moe_combine_backward", conform_moe_combine_backward},
    {"add_rms_norm_backward", conform_add_rms_norm_backward},
    {"gated_activation_backward", conform_gated_activation_backward},
    {"attention_varlen_backward", conform_attention_varlen_backward},
    {"token_logprob", conform_token_logprob},
    {"token_logprob_backward", conform_token_logprob_backward},
    {"sum_of_squares", conform_sum_of_squares},
    {"token_loss", conform_token_loss},
    {"dropout", conform_dropout},
    {"accumulate", conform_accumulate},
    {"adamw", conform_adamw},
    {"muon", conform_muon},
};

// What is wrong with an op's lines, given what the chip says it lacks.
void judge(std::string_view op, Report* report) {
  bool passed = true, missing = false;
  for (const Line& line : report->lines) {
    if (line.op != op) continue;
    passed = passed && line.passed();
    missing = missing || line.missing;
  }
  const bool listed = std::any_of(report->missing.begin(), report->missing.end(),
                                  [&](const MissingOp& m) { return m.op == op; });
  if (missing && !listed) report->faults.push_back(fmt::format("{}: missing, and not listed as missing", op));
  if (passed && listed) report->faults.push_back(fmt::format("{}: listed as missing, but passes", op));
  if (!passed && !missing) report->faults.push_back(fmt::format("{}: fails", op));
}

}  // namespace

std::vector<std::string_view> op_names() {
  std::vector<std::string_view> names;
  for (const Table& table : kTables) names.push_back(table.op);
  return names;
}

Report run(Backend& chip, const Options& options) {
  Report report;
  report.chip = chip.chip();
  report.batch_invariant = chip.batch_invariant();
  report.only_times = !options.products.empty();
  report.op = report.only_times ? "linear" : options.op;
  report.seed = options.seed;
  if (report.only_times && (!options.bench || (!options.op.empty() && options.op != report.op))) {
    throw_error(ErrorKind::kInvalidInput, "--products: times products alone; leave out {}",
                options.bench ? "--op, or say --op linear" : "--quick and --no-bench");
  }
  const std::span<const MissingOp> missing = chip.missing();
  report.missing.assign(missing.begin(), missing.end());
  bool known = false;
  for (const Table& table : kTables) {
    if (!report.op.empty() && report.op != table.op) continue;
    known = true;
    Harness harness(chip, options, &report);
    table.conform(harness);
    judge(table.op, &report);
  }
  if (!known) {
    throw_error(ErrorKind::kNotFound, "--op {}: no such op; the ops are {}", options.op,
                fmt::join(op_names(), ", "));
  }
  const auto lacks = [&](std::string_view profile) {
    return std::any_of(report.missing.begin(), report.missing.end(),
                       [&](const MissingOp& m) { return m.profile == profile; });
  };
  report.green = report.faults.empty() && !lacks("serve");
  report.green_for_train = report.green && !lacks("train");
  return report;
}

}  // namespace qiao::conformance
