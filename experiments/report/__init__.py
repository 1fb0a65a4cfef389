"""`crosslight report`: from run folders to a page that lays what was measured beside what was published, and judges the claims.

    bootstrap.py   intervals and paired tests over queries, images and seeds
    collect.py     run folders -> measured cells of an exhibit's rows and columns
    verdicts.py    cells -> a verdict of each claim
    figures.py     cells, logs and maps -> SVG
    maps.py        a model -> attention maps, stored in its run folder (the one step that needs a model)
    exports.py     a table as Markdown, CSV, LaTeX
    site.py        everything -> HTML that needs no other file
    command.py     the command line

Nothing but run folders is read, and nothing but the output folder is written (and RUN/attention_maps, with --maps).
"""
