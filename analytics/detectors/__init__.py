"""In comes what one agent does and what it usually does; out comes a suspicion, or none. One behaviour a file, all of it pure."""
