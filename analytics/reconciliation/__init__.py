"""In go what gateways recorded and what collectors saw, out come verdicts on sessions and findings. `reconcile.py` is the step."""
