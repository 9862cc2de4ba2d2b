#include "cli/model_argument.h"

#include <fmt/format.h>

#include <cstdio>
#include <optional>

#include "base/error.h"
#include "base/progress.h"
#include "base/quote.h"
#include "base/suggest.h"
#include "hub/store.h"

namespace qiao::cli {
namespace {

// What there is to choose from: "smollm2, gemma3-270m, …".
[[noreturn]] void refuse_unknown(const std::string& name, const std::filesystem::path& home) {
  std::vector<std::string> names;
  std::string listing;
  for (const CatalogueEntry& entry : catalogue()) names.push_back(entry.name);
  for (const InstalledModel& model : installed_models(home)) {
    if (find_in_catalogue(model.name) == nullptr) names.push_back(model.name);
  }
  for (const std::string& known : names) listing += (listing.empty() ? "" : ", ") + known;
  const std::string meant = did_you_mean(name, names);
  throw_error(
      ErrorKind::kNotFound,
      "no model '{}'{} There is no such file or directory; known names: {}; or hf:ORG/REPO, ms:ORG/REPO",
      printable(name, 200), meant.empty() ? "." : meant, listing);
}

void announce(const PullOptions& options, const std::string& line) {
  if (options.style != Progress::Style::kSilent) std::fputs(fmt::format("qiao: {}\n", line).c_str(), stderr);
}

}  // namespace

std::filesystem::path pull_model(const std::string& name, const PullOptions& options) {
  if (const std::optional<HubReference> reference = parse_hub_reference(name)) {
    announce(options,
             fmt::format("fetching {} (its licence stands on its page at the hub)", reference->text()));
    return pull(*reference, options);
  }
  const CatalogueEntry* entry = find_in_catalogue(name);
  if (entry == nullptr) refuse_unknown(name, options.home);
  if (!std::filesystem::exists(model_path(*entry, options.home))) {
    announce(options, fmt::format("fetching {}: {}; {}, licence: {}", entry->name, entry->description,
                                  format_bytes(entry->bytes), entry->licence));
  }
  return pull(*entry, options);
}

std::filesystem::path resolve_model(const std::string& argument, bool may_pull) {
  const std::string name = argument.empty() ? kDefaultModel : argument;
  const PullOptions options;
  std::filesystem::path path;
  if (const std::optional<HubReference> reference = parse_hub_reference(name)) {
    if (const auto installed = find_installed(*reference, options.home)) return installed->path;
  } else if (const CatalogueEntry* entry = find_in_catalogue(name)) {
    path = model_path(*entry, options.home);
    if (std::filesystem::exists(path)) return path;
  } else {
    std::error_code error;  // of a path that cannot be followed: who opens it says why
    if (std::filesystem::exists(name, error) || error) return name;
    refuse_unknown(name, options.home);
  }
  if (!may_pull) throw_error(ErrorKind::kNotFound, "{} is not here; fetch it with: qiao pull {}", name, name);
  return pull_model(name, options);
}

}  // namespace qiao::cli
