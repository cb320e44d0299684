"""From artifacts to tables, plots and one page to read."""

from sparsemble.report.page import write_report

__all__ = ["write_report"]
