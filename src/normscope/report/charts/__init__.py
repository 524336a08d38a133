"""Vega-Lite specifications of the report's charts, each with its table."""
