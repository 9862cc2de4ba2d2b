// The qiao program.
#pragma once

namespace qiao::cli {

// Parses and runs; returns the exit code. What a command throws as qiao::Error is printed as one line on
// stderr.
int run(int argc, char** argv);

}  // namespace qiao::cli
