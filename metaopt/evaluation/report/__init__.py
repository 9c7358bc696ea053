"""The report of an evaluation as one HTML page: a chart, tables, and what made them."""

from metaopt.evaluation.report.page import html_report

__all__ = ["html_report"]
