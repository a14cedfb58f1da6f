from lightning_gp.reports.page import report as report

__all__: list[str]
