// The processes that mpirun started for one command: who they are, and how a command runs in the first of
// them while the others follow.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "infer/language_model.h"
#include "parallel/communicator.h"

namespace qiao::cli {

// What goes wrong in all processes alike rank 0 tells; another what is its own alone.
void in_all_processes(const std::function<void(std::optional<int> rank)>& body);

// Whether mpirun, or another launcher, has started this process beside others.
bool in_several_processes();

// There: meets the others, once; what follows is the same for all of them. `patience_seconds` as in
// MpiOptions. Null: there are no others. Throws Error(kUnavailable) where Qiao was built without MPI.
Communicator* join_ranks(double patience_seconds);

// For a server, before anything else: its signals are rank 0's business, which others hear of by what it
// does. True where this process is one of those.
bool serves_behind_another();

// resolve_model (model_argument.h) on each rank, one after the other: what the first has pulled the next one
// finds.
std::filesystem::path resolve_on_ranks(const std::string& argument, bool may_pull);

// How many threads each rank has, where so many were asked for (0: as many as this process may use): ranks on
// the same cores share them out.
int threads_on_ranks(int wished);

// Of ranks behind the first: takes part in what rank 0 does with the model, then ends the command well, by an
// exception of the command line.
[[noreturn]] void follow_and_end(std::shared_ptr<LanguageModel> model);

// The last of a run that ended with `code`. Every model is gone.
void leave_ranks(int code);

}  // namespace qiao::cli
