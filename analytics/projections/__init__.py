"""In come a record of the log and its frame; out come rows. One file a table, and how its rows are merged into it, as SQL."""
