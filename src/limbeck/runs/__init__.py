"""A run made real: settings in, a run folder out.

The engine knows neither data sources nor models; this package joins them.
"""
