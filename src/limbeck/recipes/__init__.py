"""Complete settings of runs worth repeating, each with its source."""
