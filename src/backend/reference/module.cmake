# Each operation of the law rounds by itself, on every compiler.
target_compile_options(qiao_backend_reference PRIVATE -ffp-contract=off)
