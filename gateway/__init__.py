"""In come an agent's bytes; out go the same bytes to Postgres, each statement decided and recorded on the way."""
