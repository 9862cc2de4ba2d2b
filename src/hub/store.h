// Where models lie in Qiao's home, which are here, and their removal.
//
//   HOME/models/NAME.gguf           a model of the catalogue; a directory model lies in HOME/models/NAME
//   HOME/models/hf/ORG/REPO/…       files of a hub's repository, as they lie there (ms/ likewise)
//   HOME/downloads/…                what is not whole yet
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "hub/catalogue.h"
#include "hub/reference.h"

namespace qiao {

std::filesystem::path model_path(const CatalogueEntry& entry, const std::filesystem::path& home);
std::filesystem::path downloads_of(const CatalogueEntry& entry, const std::filesystem::path& home);
std::filesystem::path repository_folder(const HubReference& reference, const std::filesystem::path& home);
std::filesystem::path downloads_of(const HubReference& reference, const std::filesystem::path& home);

struct InstalledModel {
  std::string name;            // what -m takes: "smollm2", "hf:org/repo", "hf:org/repo:x.gguf"
  std::filesystem::path path;  // the file (of a split set the first), or the directory
  uint64_t bytes = 0;
  std::vector<std::filesystem::path> files;  // all that belongs to it
};

// Whole models only, by name. A folder that cannot be read counts as empty.
std::vector<InstalledModel> installed_models(const std::filesystem::path& home);

// The installed model that `reference` means by the same rules as a pull, without asking the hub.
std::optional<InstalledModel> find_installed(const HubReference& reference,
                                             const std::filesystem::path& home);

// Removes the model's files, and folders that it leaves empty; never anything outside HOME/models.
void remove_model(const InstalledModel& model, const std::filesystem::path& home);

// Removes `folder`, then those above it up to `top` (which stays), as long as they are empty.
void remove_empty_folders(std::filesystem::path folder, const std::filesystem::path& top);

}  // namespace qiao
