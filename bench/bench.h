/* The verbs of baton-bench. Each parses its own flags (argv[0] is the verb) and returns the exit status. */
#ifndef BATON_BENCH_BENCH_H
#define BATON_BENCH_BENCH_H

int bench_engine(int argc, char **argv);

#endif
