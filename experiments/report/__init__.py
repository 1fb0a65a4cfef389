"""`crosslight report`: from run folders to a page that lays what was measured beside what was published, and judges the claims.

    bootstrap.py   intervals and paired tests over queries, images and seeds
    collect.py     run folders -> measured cells of an exhibit's variants and columns
    verdicts.py    cells -> a verdict of each claim
    figures.py     cells, logs and maps -> SVG
    captions.py    what variants write about the same images
    maps.py        a model -> attention maps, stored in its run folder (the one step that needs a model)
    exports.py     an exhibit's table as Markdown, CSV, LaTeX
    site.py        everything -> HTML that needs no other file
    table.py       run folders side by side
    correlation.py two logged metrics against each other

Nothing but run folders is read, and nothing but the output folder is written (and RUN/attention_maps, with --maps).
"""
