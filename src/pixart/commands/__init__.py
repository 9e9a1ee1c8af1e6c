"""What the command line runs: parse, call, print."""
