"""A table, or a whole report, as Markdown, LaTeX, HTML, CSV, JSON and for the terminal: nothing is computed here."""
