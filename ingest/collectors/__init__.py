"""In comes what the database says or shows of itself: its log, its kernel's probes, its activity view; out go observations."""
