"""In come an address and a credential of one's own; out comes an agent's daily work: queries, and now and then one too many."""
