"""What came out: metrics, what differs and by how much, figures, tables and the page."""
