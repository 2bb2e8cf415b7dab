"""The report of one or several runs as one self-contained HTML file. It only reads the runs' files."""

from cnnlab.report.facts import Facts
from cnnlab.report.page import picture_page, write_report

__all__ = ["Facts", "picture_page", "write_report"]
