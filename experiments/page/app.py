"""The page's addresses: what is asked for, looked up, and shown.

Every answer is made from its request alone: there are no sessions and no cookies, so nothing of one visitor is seen by another,
and an address can be kept and shared. What is asked for by a form of an image comes back inside the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from datamodules.errors import InputError
from datamodules.files.images import read_image
from experiments.page import lookups
from experiments.page.folder import data_uri, jpeg
from experiments.page.offers import Offer, Use
from experiments.page.shelf import Shelf
from experiments.page.uploads import MOST_BYTES, Upload, uploaded
from experiments.page.writing import Caption, write_caption
from experiments.report.site import environment as report_environment

log = logging.getLogger("crosslight")

SIDES = (320, 1280)  # pixels of a picture's longer side: in a list, and alone
SHOWN, MOST = 24, 240  # pictures of a list, and how many can be asked for
_LOCAL = ["localhost", "127.0.0.1", "[::1]", "::1"]  # by which another site's page cannot call this one
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(shelf: Shelf, local: bool = True) -> Starlette:
    """The page as an ASGI application.

    Args:
        shelf: Its models.
        local: Whether it is reached from this machine alone; then it answers to no other name.
    """
    page = Page(shelf)
    routes = [
        Route("/", page.home),
        Route("/search", page.search),
        Route("/search", page.search_by_upload, methods=["POST"]),
        Route("/captions", page.captions),
        Route("/captions", page.caption_upload, methods=["POST"]),
        Route("/pairs", page.pairs),
        Route("/pairs/image", page.pair_image),
        Route("/progress", page.progress),
        Route("/image", page.image),
        Route("/style.css", page.style),
        Route("/light.js", page.light),
        Route("/script.js", page.script),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=_LOCAL)] if local else []
    handlers: dict[Any, Callable[..., Any]] = {InputError: page.refuse, HTTPException: page.refuse, Exception: page.fail}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class Page:
    """The answers to requests.

    Args:
        shelf: What they are made with.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.report = report_environment().globals  # its style and scripts, read once
        self.templates = Environment(
            loader=PackageLoader("experiments.page", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.globals |= {"link": link, "most_bytes": MOST_BYTES, "shelf": shelf}

    # ------------------------------------------------------------------------------------------------------ search

    def home(self, request: Request) -> Response:
        """To what the first model is good for."""
        uses: tuple[Use, ...] = ("search", "captions", "pairs")
        return RedirectResponse("/" + next((use for use in uses if self.shelf.of(use)), uses[0]))

    def search(self, request: Request) -> Response:
        """A folder, searched by `text` or by an image of it, `like`; without them, some of its images."""
        asked = request.query_params
        offer = self.shelf.offer(asked.get("run"), "search")
        text, like, top = asked.get("text", ""), asked.get("like", ""), number(asked.get("top"), SHOWN, MOST)
        shown = {"text": text, "like": like, "top": top, "start": number(asked.get("start"), 0)}
        folder = None if offer is None else self.shelf.folder(offer)
        if offer is None or folder is None:
            return self.show("search.html", "search", offer, **shown)
        progress = self.shelf.progress(offer, "search")
        result = None
        if progress.state == "ready" and (text or like):
            index, model = self.shelf.ready(offer)
            if like:
                result = lookups.by_image(index, model, folder, folder.path(like), top)
            else:
                result = lookups.by_text(index, model, folder, text, top)
        return self.show("search.html", "search", offer, progress=progress, result=result, **shown)

    async def search_by_upload(self, request: Request) -> Response:
        """A folder, searched by an image that is sent."""
        async with uploaded(request) as upload:
            return await run_in_threadpool(self._searched, upload)

    def _searched(self, upload: Upload) -> Response:
        offer = self.shelf.offer(upload.fields.get("run"), "search")
        folder = None if offer is None else self.shelf.folder(offer)
        if offer is None or folder is None:
            raise InputError("there is nothing to search here.")
        index, model = self.shelf.ready(offer)
        result = lookups.by_image(index, model, folder, upload.file, SHOWN)
        sent = {"name": upload.name, "picture": data_uri(jpeg(read_image(upload.file), SIDES[0]))}
        shown = {"text": "", "like": "", "top": SHOWN, "start": 0}
        progress = self.shelf.progress(offer, "search")
        return self.show("search.html", "search", offer, progress=progress, result=result, sent=sent, **shown)

    # ---------------------------------------------------------------------------------------------------- captions

    def captions(self, request: Request) -> Response:
        """A caption of an image of the folder, `image`; without one, some to choose from."""
        asked = request.query_params
        offer = self.shelf.offer(asked.get("run"), "captions")
        name = asked.get("image", "")
        shown = {"name": name, "start": number(asked.get("start"), 0), **_which(asked)}
        if offer is None:
            return self.show("captions.html", "captions", offer, **shown)
        progress = self.shelf.progress(offer, "captions")
        folder = self.shelf.folder(offer)
        result = None
        if name and progress.state == "ready":
            if folder is None:
                raise InputError("there are no images to choose from here.")
            result = self._write(offer, folder.path(name), name, shown["layer"], shown["head"])
        return self.show("captions.html", "captions", offer, progress=progress, result=result, **shown)

    async def caption_upload(self, request: Request) -> Response:
        """A caption of an image that is sent."""
        async with uploaded(request) as upload:
            return await run_in_threadpool(self._captioned, upload)

    def _captioned(self, upload: Upload) -> Response:
        offer = self.shelf.offer(upload.fields.get("run"), "captions")
        if offer is None:
            raise InputError("no model here writes captions.")
        shown = {"name": upload.name, "start": 0, **_which(upload.fields)}
        result = self._write(offer, upload.file, upload.name, shown["layer"], shown["head"])
        progress = self.shelf.progress(offer, "captions")
        return self.show("captions.html", "captions", offer, progress=progress, result=result, sent=True, **shown)

    def _write(self, offer: Offer, file: Path, name: str, layer: Any, head: Any) -> Caption:
        return write_caption(self.shelf.model(offer), offer.name, file, name, layer, head)

    # ------------------------------------------------------------------------------------------------------- pairs

    def pairs(self, request: Request) -> Response:
        """An image of a run's test split, `row`, with its caption or another text; without a row, some to choose from."""
        asked = request.query_params
        offer = self.shelf.offer(asked.get("run"), "pairs")
        row, layer = number(asked.get("row"), -1), number(asked.get("layer"), -1)
        shown: dict[str, Any] = {"row": row, "text": asked.get("text", ""), "start": number(asked.get("start"), 0)}
        if offer is None:
            return self.show("pairs.html", "pairs", offer, **shown)
        progress = self.shelf.progress(offer, "pairs")
        if progress.state != "ready":
            return self.show("pairs.html", "pairs", offer, progress=progress, **shown)
        pairs, result = self.shelf.pairs(offer), None
        if row >= 0:
            result = pairs.look(row, shown["text"][: lookups.LONGEST], None if layer < 0 else layer)
        return self.show("pairs.html", "pairs", offer, progress=progress, pairs=pairs, result=result, layer=layer, **shown)

    def pair_image(self, request: Request) -> Response:
        """An image of a run's test split, made smaller."""
        offer = self.shelf.offer(request.query_params.get("run"), "pairs")
        if offer is None:
            raise HTTPException(404, "no such image")
        try:
            content = jpeg(self.shelf.pairs(offer).image(number(request.query_params.get("row"), -1)), SIDES[0])
        except InputError as error:
            raise HTTPException(404, "no such image") from error
        return Response(content, media_type="image/jpeg", headers={**_HEADERS, "Cache-Control": "private, max-age=300"})

    # ---------------------------------------------------------------------------------------------- parts of a page

    def progress(self, request: Request) -> Response:
        """How far a model is, and for searches its index."""
        wanted = request.query_params.get("use")
        use: Use = "captions" if wanted == "captions" else "pairs" if wanted == "pairs" else "search"
        offer = self.shelf.offer(request.query_params.get("run"), use)
        if offer is None:
            raise InputError("there is no such model here.")
        progress = self.shelf.progress(offer, use)
        return JSONResponse({"state": progress.state, "done": progress.done, "total": progress.total})

    def image(self, request: Request) -> Response:
        """An image of a model's folder, made smaller: `side` is one of two."""
        asked = request.query_params
        offer = self.shelf.offer(asked.get("run"), "search")
        folder = None if offer is None else self.shelf.folder(offer)
        if folder is None:
            raise HTTPException(404, "no such image")
        side = SIDES[asked.get("side") == str(SIDES[1])]
        try:
            content = folder.picture(asked.get("name", ""), side)
        except InputError as error:
            raise HTTPException(404, str(error).replace(str(folder.root), "")) from error
        return Response(content, media_type="image/jpeg", headers={**_HEADERS, "Cache-Control": "private, max-age=300"})

    def style(self, request: Request) -> Response:
        """The report's, and what the page adds to it."""
        return Response(f"{self.report['style']}\n{self._source('page.css')}", media_type="text/css")

    def light(self, request: Request) -> Response:
        """The report's: what must be known before the page is drawn."""
        return Response(str(self.report["light"]), media_type="text/javascript")

    def script(self, request: Request) -> Response:
        """The report's, and what the page adds to it."""
        both = f"{self.report['script']}\n{self._source('page.js')}"
        return Response(both, media_type="text/javascript")

    def _source(self, name: str) -> str:
        assert self.templates.loader is not None
        return self.templates.loader.get_source(self.templates, name)[0]

    # ------------------------------------------------------------------------------------------------------ answers

    def show(self, template: str, use: Use, offer: Offer | None, **values: Any) -> Response:
        """A page."""
        folder = None if offer is None else self.shelf.folder(offer)
        values = {"progress": None, "result": None, "sent": None, "pairs": None, **values}
        shown = self.templates.get_template(template).render(use=use, offer=offer, folder=folder, **values)
        return HTMLResponse(_encoded(shown), headers={**_HEADERS, "Cache-Control": "no-store"})

    async def refuse(self, request: Request, error: Exception) -> Response:
        """What was asked for cannot be done, and the page says why."""
        status, message = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
        return self._message(message, status)

    async def fail(self, request: Request, error: Exception) -> Response:
        """An error that was not foreseen: one line here, all of it on the terminal."""
        return self._message(
            f"something went wrong here ({type(error).__name__}); the terminal of `crosslight page` has more.", 500
        )

    def _message(self, message: str, status: int) -> Response:
        shown = self.templates.get_template("message.html").render(message=message, use="", offer=None, folder=None)
        return HTMLResponse(_encoded(shown), status, headers=_HEADERS)


def _encoded(page: str) -> bytes:
    """With escapes for what is no Unicode: the path of a folder may hold any bytes."""
    return page.encode(errors="backslashreplace")


def _which(given: Mapping[str, str]) -> dict[str, Any]:
    """Layer and head of the maps, as `write_caption` takes them."""
    layer, head = given.get("layer", "last"), given.get("head", "mean")
    return {
        "layer": layer if layer == "mean" else number(layer, -1) if layer != "last" else layer,
        "head": "mean" if head == "mean" else number(head, -1),
    }


def number(text: str | None, default: int, most: int = 10**9) -> int:
    """A number from an address, where it is one."""
    return min(int(text), most) if text and text.isdecimal() and len(text) < 10 else default


def link(path: str, **values: object) -> Markup:
    """An address on this page."""
    given = {name: value for name, value in values.items() if value not in ("", None)}
    return Markup(f"{path}?{urlencode(given, errors='backslashreplace')}".replace("&", "&amp;")) if given else Markup(path)
