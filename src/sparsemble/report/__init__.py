"""From typed results to terminal tables, Markdown and HTML through one table model; pages and figures.

Reads results, computes nothing.
"""

from sparsemble.report.comparison_page import comparison_table, write_comparison
from sparsemble.report.cost_plan import cost_plan_table
from sparsemble.report.data_table import data_table
from sparsemble.report.deployment import bench_table, draw_bench, export_table
from sparsemble.report.evaluation_page import evaluation_table, write_evaluation
from sparsemble.report.run_page import run_table, write_run_report
from sparsemble.report.study_page import write_study

__all__ = [
    "bench_table",
    "comparison_table",
    "cost_plan_table",
    "data_table",
    "draw_bench",
    "evaluation_table",
    "export_table",
    "run_table",
    "write_comparison",
    "write_evaluation",
    "write_run_report",
    "write_study",
]
