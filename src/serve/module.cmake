# The page is one HTML file, compiled in.
set(page_source ${CMAKE_SOURCE_DIR}/src/serve/page/index.html)
set(page_object ${CMAKE_BINARY_DIR}/generated/page_html.cc)
add_custom_command(
  OUTPUT ${page_object}
  COMMAND ${CMAKE_COMMAND} -DINPUT=${page_source} -DOUTPUT=${page_object} -P ${CMAKE_SOURCE_DIR}/cmake/EmbedPage.cmake
  DEPENDS ${page_source} ${CMAKE_SOURCE_DIR}/cmake/EmbedPage.cmake
  VERBATIM)
target_sources(qiao_serve PRIVATE ${page_object})
# clang 14 cannot emit coroutines with this check ("Cannot represent a difference across sections").
if(QIAO_SANITIZE MATCHES "undefined" AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/serve/http_server.cc PROPERTIES COMPILE_OPTIONS -fno-sanitize=function)
endif()
