"""Generated programs: what is cut off them, whether they work, pass@k.

    completions.py  MBPP: where a generated function ends
    answers.py      CRUXEval: the answer in a generated text
    cage.py         runs a program that nobody has read
    inside/         the part of the cage around the program itself
    mbpp.py  cruxeval.py   the program that checks a prediction
    scoring.py      many programs, at once and across interruptions
    pass_at_k.py    the figure, and its interval
    prediction_files.py    what is read, and what is said of a bad file
"""
