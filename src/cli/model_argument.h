// What `-m MODEL` means: a catalogue name, hf:org/repo[:file], ms:org/repo[:file], a file or a directory.
#pragma once

#include <filesystem>
#include <string>

#include "hub/pull.h"

namespace qiao::cli {

// The model used where none is named.
inline constexpr const char* kDefaultModel = "smollm2";
// The help text of every -m flag.
inline constexpr const char* kModelHelp =
    "A catalogue name (see `qiao list`), a GGUF file, a model directory, hf:ORG/REPO[:FILE] or "
    "ms:ORG/REPO[:FILE]";

// The file or directory that ModelFiles::open takes. An empty argument is kDefaultModel. A model that is
// named but not here is pulled first where may_pull, with a line on stderr that gives its size and licence
// and a progress bar; else Error(kNotFound) says how to pull it. An unknown name is Error(kNotFound) with
// near matches and what there is. A catalogue name goes before a file of the same name in the current folder:
// "./smollm2" is the file.
std::filesystem::path resolve_model(const std::string& argument, bool may_pull);

// The same for a name of the catalogue or of a hub alone; what is here already is not asked for again. Throws
// Error(kNotFound) for any other text.
std::filesystem::path pull_model(const std::string& name, const PullOptions& options);

}  // namespace qiao::cli
