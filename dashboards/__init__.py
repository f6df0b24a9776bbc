"""In come the API's answers over HTTP; out come screens."""
