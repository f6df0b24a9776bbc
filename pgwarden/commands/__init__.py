"""In come the arguments of one command; out comes what it prints, and its exit status."""
