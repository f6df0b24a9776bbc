"""In go programs that are running; out come figures, each with the command that made it. No test asserts one of them."""
