"""A study as tables, pictures and one HTML file.

`tables` needs numpy only; `plots`, `picture_style` and `html_report` need the extra ``analyze``, so this package
imports none of its modules.
"""
