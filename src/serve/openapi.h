// The description of the server's API that /openapi.json gives: OpenAPI 3.1, from src/serve/openapi/*.json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qiao::serve {

// (method, path) of every route that a server with a language model (or an encoder) has.
std::vector<std::pair<std::string_view, std::string_view>> served_routes(bool encoder);

// What differs from server to server.
struct ApiFacts {
  bool encoder = false;  // else a language model
  bool keys = false;     // one is needed
  std::vector<std::string> models;
  int64_t vocabulary = 0, dimensions = 0;
};

// Describes each of the server's routes; throws Error where one is not in the files.
std::string openapi_text(const ApiFacts& facts);

// The files, as they are embedded: the document with its paths, schemas, and those of agents' APIs.
std::string_view openapi_paths();
std::string_view openapi_schemas();
std::string_view openapi_schemas_agents();

}  // namespace qiao::serve
