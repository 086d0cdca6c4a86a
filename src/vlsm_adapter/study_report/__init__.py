"""The report of a whole study, made from run folders alone: tables, tests, figures, one page.

``reading`` finds run folders and evaluations, ``small`` keeps results without them, ``tables`` and ``numbers`` arrange
and compute, ``document`` says what stands where, ``markdown_form``, ``latex``, ``page`` and ``data_forms`` write it.
docs/report.md shows how it is used.
"""
