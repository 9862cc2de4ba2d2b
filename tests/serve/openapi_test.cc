#include "serve/openapi.h"

#include <gtest/gtest.h>

#include <set>

#include "base/json.h"

namespace qiao::serve {
namespace {

std::set<std::string> operations(const Json& paths) {
  std::set<std::string> list;
  for (const auto& [path, verbs] : paths.items()) {
    for (const auto& [verb, operation] : verbs.items()) list.insert(verb + " " + path);
  }
  return list;
}

std::set<std::string> routes(bool encoder) {
  std::set<std::string> list;
  for (const auto& [method, path] : served_routes(encoder)) {
    std::string verb(method);
    for (char& c : verb) c = static_cast<char>(std::tolower(c));
    list.insert(verb + " " + std::string(path));
  }
  return list;
}

Json document(bool encoder, bool keys) {
  return Json::parse(
      openapi_text({.encoder = encoder, .keys = keys, .models = {"m"}, .vocabulary = 100, .dimensions = 8}));
}

TEST(OpenApiTest, EveryRouteIsDescribedAndNoOther) {
  EXPECT_EQ(operations(document(false, false)["paths"]), routes(false));
  EXPECT_EQ(operations(document(true, false)["paths"]), routes(true));
  std::set<std::string> all = routes(false);
  all.merge(routes(true));
  EXPECT_EQ(operations(Json::parse(openapi_paths())["paths"]), all);
}

TEST(OpenApiTest, EveryReferenceLeadsSomewhere) {
  const Json whole = document(false, true);
  std::vector<const Json*> open{&whole};
  size_t seen = 0;
  while (!open.empty()) {
    const Json& value = *open.back();
    open.pop_back();
    if (value.is_object() && value.contains("$ref") && value["$ref"].is_string()) {
      ++seen;
      const std::string target = value["$ref"].get<std::string>().substr(1);
      EXPECT_TRUE(whole.contains(Json::json_pointer(target))) << target;
    }
    if (value.is_structured()) {
      for (const Json& inner : value) open.push_back(&inner);
    }
    if (value.is_object()) {
      for (const auto& [name, inner] : value.items()) EXPECT_FALSE(name.starts_with("x-i")) << name;
    }
  }
  EXPECT_GT(seen, 100U);
}

TEST(OpenApiTest, TheModelsFactsAreInIt) {
  const Json schemas = document(false, false)["components"]["schemas"];
  EXPECT_EQ(schemas["ModelName"]["enum"], Json({"m", nullptr}));
  EXPECT_EQ(schemas["TokenId"]["maximum"], 99);
  EXPECT_EQ(schemas["EmbeddingRequest"]["properties"]["dimensions"]["maximum"], 8);
  EXPECT_TRUE(schemas["MessageRequest"]["properties"].contains("temperature"));
}

}  // namespace
}  // namespace qiao::serve
