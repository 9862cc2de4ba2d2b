# Writes INPUT as a C++ string: std::string_view qiao::serve::FUNCTION(), which HEADER declares.
file(READ ${INPUT} text)
file(WRITE ${OUTPUT} "#include \"${HEADER}\"\n\nnamespace qiao::serve {\n\nstd::string_view ${FUNCTION}() {\n  return R\"embedded(${text})embedded\";\n}\n\n}  // namespace qiao::serve\n")
