"""In goes what PostgreSQL's backends do, as the kernel sees it; out come the same WitnessEvents as from every collector."""
