// Character classes as the tokenizers library has them: some of its tables are of older Unicode versions, and
// ids have to be the same.
#pragma once

namespace qiao::tokenization {

bool is_library_nonspacing_mark(char32_t c);   // what BertNormalizer's strip_accents takes
bool is_library_mark(char32_t c);              // what StripAccents takes
bool is_library_punctuation(char32_t c);       // what Punctuation and BertPreTokenizer cut at
bool is_library_control(char32_t c);           // what BertNormalizer's clean_text drops
bool lacks_library_compatibility(char32_t c);  // NFKC and NFKD leave it as it is

}  // namespace qiao::tokenization
