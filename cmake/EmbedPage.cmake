# Writes INPUT as a C++ string: std::string_view qiao::serve::page_html().
file(READ ${INPUT} page)
file(WRITE ${OUTPUT} "#include \"serve/server.h\"\n\nnamespace qiao::serve {\n\nstd::string_view page_html() {\n  return R\"page(${page})page\";\n}\n\n}  // namespace qiao::serve\n")
