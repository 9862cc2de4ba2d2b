#include "serve/openapi.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "base/json.h"

namespace qiao::serve {
namespace {

std::string lower_case(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

struct StatusText {
  std::string_view status, text;
};
constexpr StatusText kErrors[] = {{"400", "A field is wrong; the message names it"},
                                  {"401", "No key, or one that is not valid here"},
                                  {"403", "The page of another origin"},
                                  {"404", "The model is not served, or there is no such response"},
                                  {"413", "The body is over the limit"},
                                  {"415", "The body is not JSON, or compressed"},
                                  {"429", "The queue is full; Retry-After says when to come back"},
                                  {"500", "The server failed"},
                                  {"503", "The server is shutting down"},
                                  {"529", "The server is shutting down"}};

// "x-errors": ["400", …] as answers.
void expand_errors(Json& operation, const char* key, const char* schema, bool keys) {
  const auto list = operation.find(key);
  if (list == operation.end()) return;
  for (const Json& status : *list) {
    // Who sends no key to a server without keys is not refused.
    if (status == "401" && !keys) continue;
    const auto* known = std::find_if(std::begin(kErrors), std::end(kErrors),
                                     [&](const StatusText& entry) { return status == entry.status; });
    operation["responses"][status.get<std::string>()] = {
        {"description", known->text},
        {"content",
         {{"application/json", {{"schema", {{"$ref", fmt::format("#/components/schemas/{}", schema)}}}}}}}};
  }
  operation.erase(key);
}

// "x-include": [NAME, …]: the properties of those schemas too.
void expand_includes(Json& schemas) {
  for (auto& [name, schema] : schemas.items()) {
    const auto list = schema.find("x-include");
    if (list == schema.end()) continue;
    const Json names = *list;
    for (const Json& included : names) {
      for (const auto& [property, value] : schemas.at(included.get<std::string>()).at("properties").items())
        schema["properties"][property] = value;
    }
    schema.erase("x-include");
  }
}

}  // namespace

std::string openapi_text(const ApiFacts& facts) {
  Json document = parse_json(openapi_paths(), "openapi/paths.json");
  Json schemas = parse_json(openapi_schemas(), "openapi/schemas.json");
  const Json more = parse_json(openapi_schemas_agents(), "openapi/schemas_agents.json");
  for (const auto& [name, schema] : more.items()) schemas[name] = schema;
  if (facts.encoder) schemas["EmbeddingRequest"]["x-include"] = {"EncoderFields"};
  expand_includes(schemas);
  schemas["ModelName"]["enum"] = facts.models;
  schemas["ModelName"]["enum"].push_back(nullptr);
  schemas["TokenId"]["maximum"] = facts.vocabulary - 1;
  schemas["EmbeddingRequest"]["properties"]["dimensions"]["maximum"] = facts.dimensions;

  Json paths = Json::object();
  for (const auto& [method, path] : served_routes(facts.encoder)) {
    const std::string name(path), verb = lower_case(method);
    const Json& all = document.at("paths");
    if (!all.contains(name) || !all[name].contains(verb))
      throw_error(ErrorKind::kInvalidInput, "openapi/paths.json: {} {} is missing", method, path);
    Json operation = all[name][verb];
    expand_errors(operation, "x-errors", "Error", facts.keys);
    expand_errors(operation, "x-message-errors", "MessageError", facts.keys);
    paths[name][verb] = std::move(operation);
  }
  document["paths"] = std::move(paths);
  document["components"] = {
      {"schemas", std::move(schemas)},
      {"parameters",
       {{"response_id",
         {{"name", "response_id"}, {"in", "path"}, {"required", true}, {"schema", {{"type", "string"}}}}}}}};
  if (facts.keys) {
    document["components"]["securitySchemes"] = {
        {"bearer", {{"type", "http"}, {"scheme", "bearer"}}},
        {"x-api-key", {{"type", "apiKey"}, {"in", "header"}, {"name", "x-api-key"}}}};
  } else {
    document.erase("security");
  }
  return dump_json(document);
}

}  // namespace qiao::serve
