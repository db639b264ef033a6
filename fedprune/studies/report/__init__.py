"""The report of a study, or of single runs: one HTML page to send to a colleague."""

from fedprune.studies.report.page import write_report

__all__ = ["write_report"]
