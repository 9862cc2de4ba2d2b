#include "serve/embedding_fields.h"

#include <openssl/evp.h>

namespace qiao::serve {
namespace {

// Little-endian F32 in base64, as OpenAI's client decodes it; or a list of numbers.
Json encode_vector(const std::vector<float>& vector, bool base64) {
  if (!base64) return vector;
  const size_t bytes = vector.size() * sizeof(float);
  std::string text((bytes + 2) / 3 * 4 + 1, '\0');  // EVP_EncodeBlock ends with a NUL
  text.resize(static_cast<size_t>(EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                                                  reinterpret_cast<const unsigned char*>(vector.data()),
                                                  static_cast<int>(bytes))));
  return text;
}

}  // namespace

EmbeddingFields read_embedding_fields(Fields& fields, int64_t model_dimensions) {
  EmbeddingFields wanted;
  wanted.input = fields.find("input");
  if (wanted.input == nullptr) throw_bad_field("input", "is required");
  const std::string format = fields.text("encoding_format").value_or("float");
  if (format != "float" && format != "base64")
    throw_bad_field("encoding_format", "'{}' is not allowed; float and base64 are", format.substr(0, 40));
  wanted.base64 = format == "base64";
  wanted.dimensions = fields.integer("dimensions", 1, INT32_MAX).value_or(model_dimensions);
  if (wanted.dimensions > model_dimensions)
    throw_bad_field("dimensions", "{} were asked for; this model has {}", wanted.dimensions,
                    model_dimensions);
  wanted.cut = wanted.dimensions < model_dimensions;
  fields.ignore({"user"});
  return wanted;
}

Json embeddings_json(const std::vector<std::vector<float>>& vectors, const std::string& model_name,
                     int64_t prompt_tokens, bool base64) {
  Json data = Json::array();
  for (size_t i = 0; i < vectors.size(); ++i)
    data.push_back({{"object", "embedding"}, {"index", i}, {"embedding", encode_vector(vectors[i], base64)}});
  return {{"object", "list"},
          {"data", std::move(data)},
          {"model", model_name},
          {"usage", {{"prompt_tokens", prompt_tokens}, {"total_tokens", prompt_tokens}}}};
}

}  // namespace qiao::serve
