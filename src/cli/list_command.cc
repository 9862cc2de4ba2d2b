#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/file.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "hub/store.h"

namespace qiao::cli {
namespace {

struct ListFlags {
  bool json = false;
  bool names = false;
};

// What is here, then what the catalogue has beside it.
struct Row {
  std::string name, licence, description, path;
  uint64_t bytes = 0;
  bool installed = false;
};

std::vector<Row> rows_of(const std::filesystem::path& home) {
  std::vector<Row> rows;
  for (const InstalledModel& model : installed_models(home)) {
    const CatalogueEntry* entry = find_in_catalogue(model.name);
    rows.push_back({.name = model.name,
                    .licence = entry != nullptr ? entry->licence : "",
                    .description = entry != nullptr ? entry->description : "",
                    .path = model.path.string(),
                    .bytes = model.bytes,
                    .installed = true});
  }
  for (const CatalogueEntry& entry : catalogue()) {
    if (std::any_of(rows.begin(), rows.end(), [&](const Row& row) { return row.name == entry.name; }))
      continue;
    rows.push_back({.name = entry.name,
                    .licence = entry.licence,
                    .description = entry.description,
                    .path = "",
                    .bytes = entry.installed_bytes(),
                    .installed = false});
  }
  return rows;
}

void print_json(const std::vector<Row>& rows) {
  Json list = Json::array();
  for (const Row& row : rows) {
    list.push_back({{"name", row.name},
                    {"installed", row.installed},
                    {"bytes", row.bytes},
                    {"licence", row.licence.empty() ? Json() : Json(row.licence)},
                    {"description", row.description.empty() ? Json() : Json(row.description)},
                    {"path", row.path.empty() ? Json() : Json(row.path)}});
  }
  fmt::print("{}\n", dump_json(list, 2));
}

void print_table(const std::vector<Row>& rows) {
  size_t widest = 4;
  for (const Row& row : rows) widest = std::max(widest, row.name.size());
  for (const bool installed : {true, false}) {
    bool first = true;
    for (const Row& row : rows) {
      if (row.installed != installed) continue;
      if (first) fmt::print("{}\n", installed ? "Here:" : "To be had with `qiao pull NAME`:");
      first = false;
      fmt::print("  {:<{}}  {:>8}  {:<18}  {}\n", row.name, widest, format_bytes(row.bytes), row.licence,
                 installed ? row.path : row.description);
    }
    if (!first && installed) fmt::print("\n");
  }
  fmt::print(
      "\nOthers: a GGUF file, a model directory, hf:ORG/REPO[:FILE], ms:ORG/REPO[:FILE] (`qiao pull "
      "--help`).\n");
}

void run_list(const ListFlags& flags) {
  const std::vector<Row> rows = rows_of(qiao_home());
  if (flags.json) {
    print_json(rows);
  } else if (flags.names) {
    for (const Row& row : rows) fmt::print("{}\n", row.name);
  } else {
    print_table(rows);
  }
}

}  // namespace

void add_list_command(CLI::App& app) {
  auto flags = std::make_shared<ListFlags>();
  CLI::App* command = app.add_subcommand("list", "Show the models that are here, and those of the catalogue");
  command->add_flag("--json", flags->json, "Print a list of objects");
  command->add_flag("--names", flags->names, "Print names alone, one a line");
  command->footer("Examples:\n  qiao list\n  qiao list --json");
  command->callback([flags] { run_list(*flags); });
}

}  // namespace qiao::cli
