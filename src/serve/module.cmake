# Files that are compiled in: the page is one HTML file, the API's description JSON.
function(qiao_embed source function header)
  set(object ${CMAKE_BINARY_DIR}/generated/${function}.cc)
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${CMAKE_COMMAND} -DINPUT=${CMAKE_SOURCE_DIR}/src/serve/${source} -DOUTPUT=${object} -DFUNCTION=${function}
            -DHEADER=${header} -P ${CMAKE_SOURCE_DIR}/cmake/EmbedPage.cmake
    DEPENDS ${CMAKE_SOURCE_DIR}/src/serve/${source} ${CMAKE_SOURCE_DIR}/cmake/EmbedPage.cmake
    VERBATIM)
  target_sources(qiao_serve PRIVATE ${object})
  # For clang-tidy, which runs before anything is made.
  set_source_files_properties(${object} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()
qiao_embed(page/index.html page_html serve/server.h)
qiao_embed(openapi/paths.json openapi_paths serve/openapi.h)
qiao_embed(openapi/schemas.json openapi_schemas serve/openapi.h)
qiao_embed(openapi/schemas_agents.json openapi_schemas_agents serve/openapi.h)
# clang 14 cannot emit coroutines with this check ("Cannot represent a difference across sections").
if(QIAO_SANITIZE MATCHES "undefined" AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/serve/http_server.cc PROPERTIES COMPILE_OPTIONS -fno-sanitize=function)
endif()
