#include "hub/store.h"

#include <algorithm>
#include <map>
#include <system_error>

#include "base/error.h"

namespace qiao {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> entries_of(const fs::path& folder, bool folders) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code gone;
    if (folders ? it->is_directory(gone) : it->is_regular_file(gone)) found.push_back(it->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

// Every file below `folder`, as a listing of the hub would have it.
std::vector<RemoteFile> files_below(const fs::path& folder) {
  std::vector<RemoteFile> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code gone;
    if (!it->is_regular_file(gone)) continue;
    const uintmax_t size = it->file_size(gone);
    if (!gone)
      files.push_back({.path = it->path().lexically_relative(folder).generic_string(), .bytes = size});
  }
  std::sort(files.begin(), files.end(),
            [](const RemoteFile& a, const RemoteFile& b) { return a.path < b.path; });
  return files;
}

InstalledModel model_of(const HubReference& reference, const fs::path& folder,
                        const std::vector<RemoteFile>& selected) {
  InstalledModel model;
  model.name = reference.scheme() + ":" + reference.repository_path();
  if (is_directory_model(selected)) {
    model.path = folder;
  } else {
    model.path = folder / selected.front().path;
    model.name += ":" + selected.front().path;
  }
  for (const RemoteFile& file : selected) {
    model.files.push_back(folder / file.path);
    model.bytes += file.bytes;
  }
  return model;
}

// select_files, where it finds nothing or half a model: nothing.
std::optional<InstalledModel> find_in(const HubReference& reference, const fs::path& folder,
                                      const std::vector<RemoteFile>& files) {
  try {
    return model_of(reference, folder, select_files(reference, files));
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::kNotFound || e.kind() == ErrorKind::kInvalidInput) return std::nullopt;
    throw;
  }
}

}  // namespace

fs::path model_path(const CatalogueEntry& entry, const fs::path& home) {
  return home / "models" / (entry.is_directory() ? entry.name : entry.name + ".gguf");
}
fs::path downloads_of(const CatalogueEntry& entry, const fs::path& home) {
  return home / "downloads" / entry.name;
}
fs::path repository_folder(const HubReference& reference, const fs::path& home) {
  return home / "models" / reference.scheme() / reference.organisation / reference.repository;
}
fs::path downloads_of(const HubReference& reference, const fs::path& home) {
  return home / "downloads" / reference.scheme() / reference.organisation / reference.repository;
}

std::vector<InstalledModel> installed_models(const fs::path& home) {
  std::vector<InstalledModel> models;
  for (const CatalogueEntry& entry : catalogue()) {
    const fs::path path = model_path(entry, home);
    if (entry.is_directory()) {
      InstalledModel model{.name = entry.name, .path = path, .bytes = 0, .files = {}};
      for (const RemoteFile& file : files_below(path)) {
        model.files.push_back(path / file.path);
        model.bytes += file.bytes;
      }
      if (!model.files.empty()) models.push_back(std::move(model));
      continue;
    }
    std::error_code error;
    const uintmax_t size = fs::file_size(path, error);
    if (!error) models.push_back({.name = entry.name, .path = path, .bytes = size, .files = {path}});
  }
  for (const HubKind kind : {HubKind::kHuggingFace, HubKind::kModelScope}) {
    HubReference reference{.kind = kind, .organisation = {}, .repository = {}, .file = {}};
    for (const fs::path& organisation : entries_of(home / "models" / reference.scheme(), true)) {
      for (const fs::path& repository : entries_of(organisation, true)) {
        reference.organisation = organisation.filename().string();
        reference.repository = repository.filename().string();
        const std::vector<RemoteFile> files = files_below(repository);
        reference.file.clear();
        std::map<std::string, InstalledModel> found;  // the parts of a split set are one model
        if (auto model = find_in(reference, repository, files)) found.insert({model->name, *model});
        for (const RemoteFile& file : files) {
          if (!file.path.ends_with(".gguf")) continue;
          reference.file = file.path;
          if (auto model = find_in(reference, repository, files)) found.insert({model->name, *model});
        }
        for (auto& [name, model] : found) models.push_back(std::move(model));
      }
    }
  }
  return models;
}

std::optional<InstalledModel> find_installed(const HubReference& reference, const fs::path& home) {
  const fs::path folder = repository_folder(reference, home);
  return find_in(reference, folder, files_below(folder));
}

void remove_model(const InstalledModel& model, const fs::path& home) {
  const fs::path models = home / "models";
  for (const fs::path& file : model.files) {
    const fs::path inside = file.lexically_normal().lexically_relative(models.lexically_normal());
    QIAO_ASSERT(!inside.empty() && *inside.begin() != ".." && *inside.begin() != ".");
    std::error_code error;
    fs::remove(file, error);
    if (error) throw_error(ErrorKind::kIo, "{}: cannot remove: {}", file.string(), error.message());
    remove_empty_folders(file.parent_path(), models);
  }
}

void remove_empty_folders(fs::path folder, const fs::path& top) {
  std::error_code error;  // not empty, or gone: then there is nothing to do
  for (; folder != top && folder.has_relative_path(); folder = folder.parent_path()) {
    if (!fs::is_empty(folder, error) || error || !fs::remove(folder, error)) return;
  }
}

}  // namespace qiao
