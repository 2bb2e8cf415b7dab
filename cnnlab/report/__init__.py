"""A run's folder, or several, as one HTML file that needs nothing else. It reads files only, and no torch."""

from cnnlab.report.facts import Facts
from cnnlab.report.page import write_report

__all__ = ["Facts", "write_report"]
