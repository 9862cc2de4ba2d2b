# Alone: MPI's headers and definition are this source's.
if(MPI_CXX_FOUND)
  target_link_libraries(qiao_parallel PRIVATE MPI::MPI_CXX)
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/parallel/mpi_communicator.cc PROPERTIES
                              SKIP_UNITY_BUILD_INCLUSION ON SKIP_PRECOMPILE_HEADERS ON COMPILE_DEFINITIONS QIAO_MPI)
endif()
