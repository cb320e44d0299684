"""From artifacts to tables, plots and one page to read."""

from sparsemble.report.comparison import comparison_table, write_comparison
from sparsemble.report.evaluation import write_evaluation
from sparsemble.report.evaluation_schema import validate_evaluation
from sparsemble.report.evaluation_tables import evaluation_table
from sparsemble.report.page import write_report

__all__ = [
    "comparison_table",
    "evaluation_table",
    "validate_evaluation",
    "write_comparison",
    "write_evaluation",
    "write_report",
]
