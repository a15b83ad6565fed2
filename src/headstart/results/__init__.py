"""Results: metrics, statistical comparisons, figures, tables and the report."""
