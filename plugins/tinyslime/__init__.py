"""A stand-in trainer that speaks slime's command line, log lines and checkpoint layout on a CPU."""
