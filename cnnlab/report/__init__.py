"""A run's folder, or several, as one HTML file that needs nothing else. It reads files only."""

from cnnlab.report.facts import Facts
from cnnlab.report.page import picture_page, write_report

__all__ = ["Facts", "picture_page", "write_report"]
