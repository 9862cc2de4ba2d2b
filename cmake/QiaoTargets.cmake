add_library(qiao_flags INTERFACE)
target_include_directories(qiao_flags INTERFACE ${CMAKE_SOURCE_DIR}/src)
set(QIAO_WARNINGS -Wall -Wextra -Wno-missing-field-initializers)
if(QIAO_WERROR)
  list(APPEND QIAO_WARNINGS -Werror)
endif()
target_compile_options(qiao_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${QIAO_WARNINGS}>)
if(QIAO_SANITIZE)
  target_compile_options(qiao_flags INTERFACE -fsanitize=${QIAO_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(qiao_flags INTERFACE -fsanitize=${QIAO_SANITIZE})
  if(QIAO_SANITIZE STREQUAL "thread")  # which knows no fences; Asio's locks do without
    target_compile_definitions(qiao_flags INTERFACE BOOST_ASIO_DISABLE_FENCED_BLOCK)
  endif()
endif()

# What need not be fast itself compiles a third faster so: commands, HTTP, tests (what they test is optimised as ever).
function(qiao_cold target)
  if(NOT QIAO_SANITIZE AND NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
    get_target_property(type ${target} TYPE)
    if(type STREQUAL "INTERFACE_LIBRARY")
      target_compile_options(${target} INTERFACE -O1)
    else()
      target_compile_options(${target} PRIVATE -O1)
    endif()
  endif()
endfunction()
add_library(qiao_test_flags INTERFACE)
target_link_libraries(qiao_test_flags INTERFACE qiao_flags)
qiao_cold(qiao_test_flags)

find_program(QIAO_CCACHE ccache)
if(QIAO_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Without this ccache passes by every source that uses a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${QIAO_CCACHE})
endif()

# Precompiled headers halve the build: json.hpp and fmt in most sources, CLI11 in each command, GoogleTest in each
# test. Only with gcc: clang's builds (tidy, fuzz) read sources as they are and so catch an include that is missing.
if(QIAO_PCH AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(QIAO_USE_PCH ON)
  if(QIAO_CCACHE)
    target_compile_options(qiao_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
  endif()
endif()
set(QIAO_COMMON_HEADERS <algorithm> <array> <cstdint> <filesystem> <functional> <map> <memory> <optional> <span> <string>
    <string_view> <unordered_map> <utility> <variant> <vector> <fmt/format.h> <nlohmann/json.hpp>)
# Several sources of a module are compiled as one: the headers' templates are instantiated once for all of them, which
# more than halves the build again. Names in anonymous namespaces are therefore unique within a module. Not for the HTTP
# server, which alone takes as long as a dozen others.
function(qiao_unity target)
  if(QIAO_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${QIAO_UNITY_BATCH})
    set_source_files_properties(${CMAKE_SOURCE_DIR}/src/serve/http_server.cc PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

# Given once, shared by every module and every test: what a target shares must be compiled with the same flags.
function(qiao_precompile)
  if(NOT QIAO_USE_PCH)
    return()
  endif()
  add_library(qiao_pch OBJECT ${CMAKE_SOURCE_DIR}/cmake/precompiled.cc)
  target_link_libraries(qiao_pch PRIVATE qiao_flags nlohmann_json::nlohmann_json fmt::fmt spdlog::spdlog Threads::Threads)
  target_precompile_headers(qiao_pch PRIVATE ${QIAO_COMMON_HEADERS})
  if(QIAO_TESTS)
    add_library(qiao_test_pch OBJECT ${CMAKE_SOURCE_DIR}/cmake/precompiled.cc)
    target_link_libraries(qiao_test_pch PRIVATE qiao_test_flags nlohmann_json::nlohmann_json fmt::fmt spdlog::spdlog
                          Threads::Threads GTest::gtest GTest::gmock)
    target_precompile_headers(qiao_test_pch PRIVATE ${QIAO_COMMON_HEADERS} <gtest/gtest.h> <gmock/gmock.h>)
  endif()
endfunction()

# qiao_module(NAME [COLD] [DIRECTORY dir] LINK lib… [PRECOMPILE header…]): one static library a folder of src/, every
# *.cc in it (not below it). COLD: nothing in it takes time. PRECOMPILE names heavy headers that most of its sources
# include.
function(qiao_module name)
  cmake_parse_arguments(ARG "COLD" "DIRECTORY" "LINK;PRECOMPILE" ${ARGN})
  if(NOT ARG_DIRECTORY)
    set(ARG_DIRECTORY ${name})
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${ARG_DIRECTORY}/*.cc)
  list(FILTER sources EXCLUDE REGEX "/main\\.cc$")
  if(ARG_DIRECTORY STREQUAL "backend/cuda")
    file(GLOB kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/backend/cuda/*.cu)
    list(APPEND sources ${kernels})
  endif()
  if(ARG_DIRECTORY STREQUAL "backend")
    file(GLOB ops CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/backend/ops/*.cc)
    list(APPEND sources ${ops})
  endif()
  if(sources)
    add_library(qiao_${name} STATIC ${sources})
    target_link_libraries(qiao_${name} PUBLIC qiao_flags ${ARG_LINK})
    qiao_unity(qiao_${name})
    if(ARG_COLD)
      qiao_cold(qiao_${name})
    endif()
    if(ARG_DIRECTORY MATCHES "^backend/")
      # A chip's sources are compiled for instruction sets of their own: no header is precompiled for those.
    elseif(QIAO_USE_PCH AND ARG_PRECOMPILE)
      target_precompile_headers(qiao_${name} PRIVATE ${QIAO_COMMON_HEADERS} ${ARG_PRECOMPILE})
    elseif(QIAO_USE_PCH)
      target_precompile_headers(qiao_${name} REUSE_FROM qiao_pch)
    endif()
  else()
    add_library(qiao_${name} INTERFACE)
    target_link_libraries(qiao_${name} INTERFACE qiao_flags ${ARG_LINK})
  endif()
  if(EXISTS ${CMAKE_SOURCE_DIR}/src/${ARG_DIRECTORY}/module.cmake)
    include(${CMAKE_SOURCE_DIR}/src/${ARG_DIRECTORY}/module.cmake)
  endif()
endfunction()

# Ends what hangs, and nothing that is slow: the longest test takes a minute of a core, and a machine may be a tenth as
# fast, with sanitizers and other work on it.
set(QIAO_TEST_SECONDS 1500)

# qiao_tests(FOLDER): one test program of every tests/FOLDER/*_test.cc, each test a test of ctest.
# It links what src/FOLDER links, and the chips, whose registration a test of any layer may need.
function(qiao_tests folder)
  if(QIAO_TEST_FOLDERS AND NOT folder IN_LIST QIAO_TEST_FOLDERS)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${folder}/*.cc)
  if(NOT sources)
    return()
  endif()
  add_executable(${folder}_tests ${sources})
  qiao_unity(${folder}_tests)
  # Replaces operator new: the compiler must not see that beside its users.
  set_source_files_properties(${CMAKE_SOURCE_DIR}/tests/models/allocation_counter.cc
                              PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  target_link_libraries(${folder}_tests PRIVATE qiao_test_flags qiao_${folder} GTest::gtest GTest::gmock GTest::gtest_main)
  if(QIAO_USE_PCH)
    target_precompile_headers(${folder}_tests REUSE_FROM qiao_test_pch)
  endif()
  if(folder MATCHES "^(backend|nn|models|infer|convert|train|eval|serve|cli)$")
    target_link_libraries(${folder}_tests PRIVATE qiao_chips qiao_backend_conformance)
  endif()
  target_include_directories(${folder}_tests PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  if(folder STREQUAL "backend")
    add_subdirectory(tests/backend/cuda_stand_in)
    target_link_libraries(backend_tests PRIVATE qiao_cuda_stand_in)
    # Its instructions.h stands before the chip's.
    target_include_directories(backend_tests BEFORE PRIVATE ${CMAKE_SOURCE_DIR}/tests/backend/cuda_stand_in)
  endif()
  target_compile_definitions(${folder}_tests PRIVATE QIAO_TEST_DATA="${CMAKE_SOURCE_DIR}/tests")
  gtest_discover_tests(${folder}_tests DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 120
                       PROPERTIES LABELS ${folder} TIMEOUT ${QIAO_TEST_SECONDS})
endfunction()

# qiao_script_tests(): each tests/FOLDER/*_test.py is a test of ctest; it needs python3 alone and finds the program in
# QIAO_BINARY. Those named *_client_test.py need packages of the Python index: .ci/run runs them.
function(qiao_script_tests)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  file(GLOB scripts CONFIGURE_DEPENDS RELATIVE ${CMAKE_SOURCE_DIR}/tests ${CMAKE_SOURCE_DIR}/tests/*/*_test.py)
  foreach(script ${scripts})
    get_filename_component(folder ${script} DIRECTORY)
    get_filename_component(stem ${script} NAME_WE)
    if(stem MATCHES "_client_test$" OR (QIAO_TEST_FOLDERS AND NOT folder IN_LIST QIAO_TEST_FOLDERS))
      continue()
    endif()
    # Sanitizers take memory of their own, and see what the MPI library never gives back.
    if(QIAO_SANITIZE AND stem MATCHES "^(memory|mpi)_test$")
      continue()
    endif()
    add_test(NAME ${folder}.${stem} COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_SOURCE_DIR}/tests/${script})
    set_tests_properties(${folder}.${stem} PROPERTIES LABELS ${folder} TIMEOUT ${QIAO_TEST_SECONDS}
                         ENVIRONMENT QIAO_BINARY=$<TARGET_FILE:qiao>)
  endforeach()
endfunction()

# qiao_cuda_program(): the program with the CUDA chip. Its registry names that chip and stands before the one in
# qiao_chips, so that nothing but this, the chip's own sources and the link differs from a program without it, and tests
# never meet a device.
function(qiao_cuda_program)
  qiao_module(backend_cuda DIRECTORY backend/cuda LINK qiao_backend CUDA::cudart_static)
  add_library(qiao_chips_cuda OBJECT ${CMAKE_SOURCE_DIR}/src/backend/registry/registry.cc)
  target_link_libraries(qiao_chips_cuda PRIVATE qiao_chips)
  target_compile_definitions(qiao_chips_cuda PRIVATE QIAO_WITH_CUDA)
  target_link_libraries(qiao PRIVATE qiao_chips_cuda qiao_backend_cuda)
endfunction()

# qiao_fuzzers(): one libFuzzer program of every fuzz/*_fuzz.cc, linked with everything.
function(qiao_fuzzers)
  # Coverage of the code under test, not of the entry alone: without it libFuzzer searches blindly.
  target_compile_options(qiao_flags INTERFACE -fsanitize=fuzzer-no-link)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/fuzz/*_fuzz.cc)
  foreach(source ${sources})
    get_filename_component(stem ${source} NAME_WE)
    add_executable(${stem} ${source})
    target_link_libraries(${stem} PRIVATE qiao_cli)
    target_compile_definitions(${stem} PRIVATE QIAO_TEST_DATA="${CMAKE_SOURCE_DIR}/tests")
    target_compile_options(${stem} PRIVATE -fsanitize=fuzzer)
    target_link_options(${stem} PRIVATE -fsanitize=fuzzer)
  endforeach()
endfunction()

# qiao_version_library(): the static library of base/version.h. Its text is the project's version and, in a git checkout,
# the commit; configured anew when the checkout moves, so that it never names a commit that was not built.
function(qiao_version_library)
  set(QIAO_VERSION_TEXT ${PROJECT_VERSION})
  find_package(Git QUIET)
  if(GIT_FOUND)
    execute_process(COMMAND ${GIT_EXECUTABLE} -C ${CMAKE_SOURCE_DIR} describe --always --exclude=* --abbrev=10
                    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    execute_process(COMMAND ${GIT_EXECUTABLE} -C ${CMAKE_SOURCE_DIR} rev-parse --path-format=absolute --git-path logs/HEAD
                    OUTPUT_VARIABLE head_log OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(commit)
      string(APPEND QIAO_VERSION_TEXT " (${commit})")
    endif()
    if(head_log AND EXISTS ${head_log})
      set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${head_log})
    endif()
  endif()
  configure_file(${CMAKE_SOURCE_DIR}/src/base/version.cc.in ${CMAKE_BINARY_DIR}/generated/version.cc @ONLY)
  # A library of its own: only the program is linked anew after a commit, not every test.
  add_library(qiao_version STATIC ${CMAKE_BINARY_DIR}/generated/version.cc)
  target_link_libraries(qiao_version PUBLIC qiao_flags)
endfunction()

# qiao_benches(): one Google Benchmark program of every bench/*_bench.cc; built when asked for by name.
function(qiao_benches)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/*_bench.cc)
  foreach(source ${sources})
    get_filename_component(stem ${source} NAME_WE)
    add_executable(${stem} EXCLUDE_FROM_ALL ${source})
    target_link_libraries(${stem} PRIVATE qiao_chips benchmark::benchmark)
  endforeach()
endfunction()
