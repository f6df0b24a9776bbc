"""In come SQL texts and facts; out go Statements and a log of frames from which every fact can be read back."""
