#include "cli/run.h"

int main(int argc, char** argv) { return qiao::cli::run(argc, argv); }
