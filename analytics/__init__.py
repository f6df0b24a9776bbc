"""In comes the log; out come orders to end sessions, tables in DuckDB, and answers to questions about them."""
