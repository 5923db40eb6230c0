"""Methods side by side: `python -m prompt_tuning.scripts.compare_methods`.

    entries.py    lists of gin files and bindings, as flags
    cells.py      one method on one task with one seed, from training to figure
    benchmarks.py scores of generated code
    results.py    what is kept of parts that are done
    tables.py     all cells as a table, as JSON and as a picture
"""
