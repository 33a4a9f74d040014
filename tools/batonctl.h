/* The verbs of batonctl. A verb parses its own flags (argv[0] is the verb) and returns the exit status: 0 success, 1 a
 * failure (one sentence on stderr), 2 a wrong flag. */
#ifndef BATON_TOOLS_BATONCTL_H
#define BATON_TOOLS_BATONCTL_H

int ctl_status(int argc, char **argv);
int ctl_plan(int argc, char **argv);

#endif
