"""In come a command line and a configuration; out comes a running pgwarden. The only folder that knows all parts."""

__version__ = "0.1.0"
