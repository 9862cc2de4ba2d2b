#include "cli/commands.h"

int main(int argc, char** argv) { return qiao::cli::run(argc, argv); }
