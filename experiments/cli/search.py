"""Find images of an index by a text, or by an image.

  crosslight search "a dog in the snow"
  crosslight search --image photo.jpg --top 20 --sheet found.png

Scores are cosines, of every image of the index unless it keeps approximate search: then of those that this proposes.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from datamodules.errors import InputError, printable
from experiments.cli._parser import Parser, require_apart, require_picture
from experiments.cli._serving import add_model_options, load_encoders, place_of_model, tell, warnings_as_lines
from experiments.cli.index import INDEX


def add_options(parser: Parser) -> None:
    option = parser.add_argument
    option("texts", nargs="*", metavar="TEXT", help="what to look for; each text is a search of its own")
    option("--image", type=Path, action="append", default=[], metavar="FILE", help="look for images like this one")
    option("--index", type=Path, default=INDEX, metavar="FOLDER", help="what `crosslight index` wrote")
    option("--run", metavar="RUN", help="where the index's model lies now (default: where it lay)")
    option("--top", type=int, default=10, metavar="K", help="images to find")
    option("--exact", action="store_true", help="look at every image, also where the index keeps approximate search")
    option("--json", action="store_true", help="print JSON")
    option("--sheet", type=Path, metavar="FILE", help="a picture of what was found (.png, .pdf, .svg)")
    add_model_options(parser, batch_size=32, workers=False)


def run(options: argparse.Namespace) -> int:
    if not options.texts and not options.image:
        raise InputError('search needs something to look for: a text, such as "a dog in the snow", or --image FILE.')
    if any(not text.strip() for text in options.texts):
        raise InputError("a text to look for is empty.")
    if options.top < 1:
        raise InputError(f"--top is {options.top}; give at least 1.")
    from datamodules.files.images import ENDINGS

    for text in options.texts:
        if Path(text).suffix.lower() in ENDINGS:
            raise InputError(
                f"the text {text!r} is the name of an image. To look for images like it: --image {shlex.quote(text)}."
            )
    for image in options.image:
        if not image.is_file():
            raise InputError(f"--image {image} does not exist or is no file.")
    require_picture(options.sheet, "--sheet")
    require_apart(options.sheet, "--sheet", options.image)
    from experiments.serving.index import ImageIndex
    from experiments.serving.queries import as_json, as_text, ask

    index = ImageIndex(options.index)
    folder = place_of_model(index.label, options)
    model = load_encoders(folder, options)
    index.require_model(model, folder)
    if index.label.no_result is not None and model.no_result is None:
        tell(f"crosslight: {options.index} is no result ({index.label.no_result})")
    with warnings_as_lines():
        answers = ask(index, model, options.texts, options.image, options.top, exact=options.exact)
    if options.json:
        print(as_json(index, answers))
    else:
        print(printable("\n".join(as_text(index, answers))))
    if options.sheet is not None:
        from experiments.analysis.retrieved import draw_found

        draw_found(options.sheet, [(answer.query, [(found.file, found.score) for found in answer.found]) for answer in answers])
        tell(f"wrote {options.sheet}")
    return 0
