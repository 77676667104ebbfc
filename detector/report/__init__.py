"""Pages for a browser, each one file that needs nothing else: the doctor's and an evaluation's."""
