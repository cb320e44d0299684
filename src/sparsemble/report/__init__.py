"""From artifacts to tables, plots and one page to read."""
