"""A one-page, self-contained HTML report: a chart, tables, and what made them."""

from metaopt.evaluation.report.page import html_report

__all__ = ["html_report"]
