"""In come credentials, claims and statements; out go proven principals and decisions, each with its reason."""
