"""In come bytes of the PostgreSQL protocol, version 3; out go messages, and answers to a handshake. No I/O."""
