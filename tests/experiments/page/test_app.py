"""The page as a visitor sees it: what is found, what is refused, and what nobody sees."""

from __future__ import annotations

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tiny_captioning_run import captioning_run
from tiny_run import reading_run

from datamodules.errors import InputError
from datamodules.records import Box
from experiments.cli.main import run_command
from experiments.page import lookups
from experiments.page.app import make_app
from experiments.page.folder import ImageFolder
from experiments.page.offers import find_offers
from experiments.page.server import bound
from experiments.page.shelf import Loading, Shelf
from experiments.page.writing import heat_picture
from experiments.serving.index import ImageIndex
from experiments.serving.indexing import update_index
from experiments.serving.queries import ask

PICTURES = re.compile(r'src="(/image\?[^"]+)"')


def ready(visitor: TestClient) -> TestClient:
    """When the folder is encoded."""
    for _ in range(600):
        if visitor.get("/progress").json()["state"] in ("ready", "failed"):
            break
        time.sleep(0.05)
    return visitor


def found(page: str) -> list[tuple[str, str]]:
    """Names and scores, best first."""
    return list(
        zip(re.findall(r'class="name" title="([^"]+)"', page), re.findall(r'class="score"[^>]*>([^<]+)<', page), strict=True)
    )


def test_a_page_waits_for_the_images_then_offers_some(visitor: TestClient) -> None:
    assert visitor.get("/").url.path == "/search"
    page = ready(visitor).get("/search").text
    assert "Search 7 images" in page
    assert "1 images cannot be read" in page
    assert "<li>broken.jpg is not an image that PIL can read.</li>" in page
    assert len(PICTURES.findall(page)) == 7


def test_text_and_image_find_what_search_finds(visitor: TestClient, shelf: Shelf, photos: Path) -> None:
    ready(visitor)
    index, model = shelf.ready(shelf.of("search")[0])
    like = "a/0 & <b>.jpg"
    for answer, page in (
        (ask(index, model, ["a red hat"]), visitor.get("/search", params={"text": "a red hat"})),
        (ask(index, model, images=[photos / like]), visitor.get("/search", params={"like": like})),
        (
            ask(index, model, images=[photos / like]),
            visitor.post("/search", files={"image": ("my <i>.jpg", (photos / like).read_bytes())}),
        ),
    ):
        assert page.status_code == 200
        expected = [(one.file.relative_to(photos).as_posix(), f"{one.score:.3f}") for one in answer[0].found]
        assert [
            (name.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"), score) for name, score in found(page.text)
        ] == expected
    assert "Images like my &lt;i&gt;.jpg" in page.text
    for picture in PICTURES.findall(page.text):
        assert visitor.get(picture.replace("&amp;", "&")).headers["content-type"] == "image/jpeg"


@pytest.mark.filterwarnings("ignore::datamodules.loading.tokens.TextWarning")
def test_words_that_the_model_does_not_know_are_said_on_the_page(visitor: TestClient) -> None:
    page = ready(visitor).get("/search", params={"text": "a zebra"}).text
    assert "the model does not know all of its words, and reads &#39;a [UNK]&#39;" in page


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"files": {"image": ("holiday.jpg", b"no image")}}, 400, "holiday.jpg is not an image that PIL can read"),
        ({"files": {"image": ("empty.jpg", b"")}}, 400, "choose an image file first"),
        ({"data": {"image": "text"}}, 400, "choose an image file first"),
        ({"files": {"image": ("a.jpg", b"x")}, "data": {"run": "../../etc"}}, 400, "no run &#39;../../etc&#39; is offered here"),
        ({"content": b"x" * (26 << 20)}, 400, "the image is larger than 25 MB"),
    ],
)
def test_a_bad_upload_is_a_message(visitor: TestClient, request_: dict[str, Any], status: int, message: str) -> None:
    answer = ready(visitor).post("/search", **request_)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text
    assert "Traceback" not in answer.text
    assert "/tmp" not in answer.text


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "%2e%2e/secret.jpg", "", "broken.jpg", "a", "..\\secret.jpg"]
)
def test_nothing_but_images_of_the_folder_is_shown(visitor: TestClient, name: str) -> None:
    for answer in (visitor.get("/image", params={"name": name}), ready(visitor).get("/search", params={"like": name or "."})):
        assert answer.status_code in (400, 404)
        assert answer.headers["content-type"].startswith("text/html")


def test_an_absolute_name_is_none_of_the_folder(visitor: TestClient, photos: Path) -> None:
    assert visitor.get("/image", params={"name": str(photos.parent / "secret.jpg")}).status_code == 404


def test_a_file_that_is_linked_to_shows_its_pixels_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a secret")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link.jpg").symlink_to(tmp_path / "text")
    with pytest.raises(InputError, match="not an image"):
        ImageFolder(tmp_path / "photos").picture("link.jpg", 32)


def test_visitors_share_nothing_and_nothing_comes_from_outside(shelf: Shelf, visitor: TestClient, photos: Path) -> None:
    image = (photos / "b" / "1 & <b>.jpg").read_bytes()
    sent = ready(visitor).post("/search", files={"image": ("private.jpg", image)})
    assert "private.jpg" in sent.text
    for path in ("/search", "/search?text=a+hat", "/style.css", "/script.js", "/light.js"):
        answer = visitor.get(path)
        assert "private" not in answer.text
        assert "set-cookie" not in answer.headers
        assert not re.findall(r"(?:src|href|url\()[=\"']*\s*(?:https?:)?//", answer.text), path
    policy = sent.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_names_that_are_no_utf_8_are_shown_with_escapes(shelf: Shelf, visitor: TestClient, photos: Path, tmp_path: Path) -> None:
    ready(visitor)
    (offer,) = shelf.of("search")
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for name in (b"d\xe9j\xe0 vu.jpg", b"plain.jpg"):
        shutil.copy(photos / "a" / "0 & <b>.jpg", os.path.join(os.fsencode(folder), name))
    (folder / os.fsdecode(b"bro\xe9.jpg")).write_text("no image")
    odd = Shelf([offer], folder, None, Loading(), tmp_path / "kept")
    odd._models = shelf._models
    visitor = ready(TestClient(make_app(odd), base_url="http://localhost"))
    page = visitor.get("/search")
    assert page.status_code == 200
    assert "<li>bro\\udce9.jpg is not an image that PIL can read.</li>" in page.text
    assert "on <code>caf\\udce9</code>" in page.text
    name = "d\\udce9j\\udce0 vu.jpg"
    assert visitor.get("/image", params={"name": name}).headers["content-type"] == "image/jpeg"
    answer = visitor.get("/search", params={"like": name})
    assert {shown for shown, _ in found(answer.text)} == {name, "plain.jpg"}


def test_another_name_for_this_machine_is_refused(visitor: TestClient) -> None:
    """So no other site's page can be made to look like this one (DNS rebinding)."""
    assert visitor.get("/search", headers={"host": "evil.example"}).status_code == 400


def test_an_error_that_nobody_foresaw_is_one_line(shelf: Shelf, visitor: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(lookups, "by_text", fail)
    ready(visitor)
    answer = TestClient(make_app(shelf), base_url="http://localhost", raise_server_exceptions=False).get("/search?text=a")
    assert answer.status_code == 500
    assert "something went wrong here (ZeroDivisionError)" in answer.text
    assert "secret" not in answer.text


def test_runs_of_a_folder_are_offered_by_their_use(runs: Path, tmp_path: Path) -> None:
    offers = {offer.name: offer for offer in find_offers([str(runs / "search"), str(runs / "writes")], tmp_path)}
    assert {name: offer.use for name, offer in offers.items()} == {"search": "search", "writes": "captions"}
    assert offers["search"].about == "DualEncoder, MultiWayAdapter"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no folder runs here, so there is no run to offer"),
        (["--run", "gone"], "gone is neither a run folder, nor an export, nor a folder that holds some"),
        (["--images", "gone"], "--images gone is not a folder"),
        (["--images", ".", "--index", "x"], "--index has its images with it"),
        (["--port", "70000"], "--port is 70000"),
        (["--index", "x"], "x is no index"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        run_command("page", ["--port", "0", *arguments])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_port_that_is_taken_is_said() -> None:
    with bound("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is taken"):
            bound("127.0.0.1", port)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"the page needs uvicorn: uv pip install 'crosslight\[serve\]'"):
        run_command("page", [])


def words(page: str) -> list[str]:
    return re.findall(r'<input type="radio"[^>]*>([^<]+)</label>', page)


def captioned(visitor: TestClient) -> TestClient:
    """When the captioner is loaded."""
    for _ in range(600):
        if visitor.get("/progress", params={"use": "captions"}).json()["state"] in ("ready", "failed"):
            break
        time.sleep(0.05)
    return visitor


def test_a_caption_is_that_of_the_model_and_each_word_has_a_map(visitor: TestClient, shelf: Shelf, photos: Path) -> None:
    name = "c/2 & <b>.jpg"
    model = shelf.model(shelf.of("captions")[0])
    (caption,) = model.caption([photos / name])
    chosen = captioned(visitor).get("/captions", params={"image": name}).text
    sent = visitor.post("/captions", files={"image": ("mine.jpg", (photos / name).read_bytes())}).text
    for page in (chosen, sent):
        assert f"</span>{caption}</h2>" in page
        assert words(page) == ["image alone", *re.findall(r"[\w-]+|[^\w\s]", caption)]
        assert page.count("data:image/webp") == page.count('<li data-word="') == len(words(page)) - 1
    assert "2 &amp; &lt;b&gt;.jpg" in chosen
    assert "mine.jpg" in sent


def test_a_caption_without_words_is_one(visitor: TestClient) -> None:
    page = captioned(visitor).get("/captions", params={"image": "a/0 & <b>.jpg"}).text
    assert "</span>(nothing)</h2>" in page
    assert "The caption has no words." in page


def test_the_page_says_which_maps_it_shows(visitor: TestClient) -> None:
    asked = {"image": "c/2 & <b>.jpg"}
    assert (
        "<dd>layer 2, mean of 2 heads, where each token is predicted</dd>"
        in captioned(visitor).get("/captions", params=asked).text
    )
    other = visitor.get("/captions", params={**asked, "layer": "1", "head": "0"})
    assert "<dd>layer 1, head 0, where each token is predicted</dd>" in other.text
    for wrong in ({"layer": "0"}, {"layer": "x"}, {"head": "7"}):
        answer = visitor.get("/captions", params={**asked, **wrong})
        assert (answer.status_code, next(iter(wrong)) in answer.text.partition("alert")[2]) == (400, True), answer.text


def test_a_captioner_without_maps_says_so(runs: Path, photos: Path, tmp_path: Path) -> None:
    captioning_run(tmp_path / "clipcap", runs / "words", "clipcap")
    shelf = Shelf(find_offers([str(tmp_path / "clipcap")], tmp_path), photos, None, Loading(), tmp_path)
    visitor = captioned(TestClient(make_app(shelf), base_url="http://localhost"))
    page = visitor.get("/captions", params={"image": "a/0 & <b>.jpg"}).text
    assert "This captioner sees an image as a whole" in page
    assert "<h2" in page
    assert "None of the models here has an encoder" in visitor.get("/search").text
    assert visitor.get("/").url.path == "/captions"


def test_visitors_at_once_get_what_each_would_get_alone(visitor: TestClient, photos: Path) -> None:
    """A captioner keeps its maps in its modules while it writes."""
    names = [f"{'abc'[number % 3]}/{number} & <b>.jpg" for number in range(6)]
    asked = [("/captions", {"image": name}) for name in names] + [("/search", {"like": name}) for name in names]
    ready(captioned(visitor))
    alone = [visitor.get(path, params=given).text for path, given in asked]
    with ThreadPoolExecutor(6) as visitors:
        together = list(visitors.map(lambda each: visitor.get(each[0], params=each[1]).text, asked))
    assert together == alone
    assert len(set(alone)) == len(alone)


def test_an_index_that_was_made_before_is_searched_as_it_is(shelf: Shelf, runs: Path, photos: Path, tmp_path: Path) -> None:
    (offer,) = shelf.of("search")
    update_index(tmp_path / "index", photos / "a", shelf.model(offer), runs / "search")
    index = ImageIndex(tmp_path / "index")
    reading_run(tmp_path / "other", seed=8)
    offers = [offer, *find_offers([str(tmp_path / "other")], tmp_path)]
    both = Shelf(offers, Path(index.label.images), index, Loading(), tmp_path / "kept")
    visitor = ready(TestClient(make_app(both), base_url="http://localhost"))
    assert len(found(visitor.get("/search", params={"text": "a hat"}).text)) == 2
    assert not (tmp_path / "kept").exists()
    while visitor.get("/progress", params={"run": "other"}).json()["state"] == "loading":
        time.sleep(0.05)
    assert "was made with another model" in visitor.get("/search", params={"run": "other"}).text


def test_a_heat_map_lies_where_the_network_looks() -> None:
    """The middle square of a wide image: its lower left cell is the brightest, and beside the square nothing is covered."""
    map_YX = np.array([[0.1, 0.2], [0.6, 0.1]], np.float32)
    heat = np.asarray(heat_picture(map_YX, Box(100, 0, 300, 200), (400, 200), side=80))
    assert heat.shape == (40, 80, 4)
    assert not heat[:, :20].any()
    assert not heat[:, 60:].any()
    light = heat[..., :3].sum(-1)
    assert np.unravel_index(light.argmax(), light.shape)[0] >= 30
    assert np.unravel_index(light.argmax(), light.shape)[1] < 30
    assert heat[39, 20, 3] == pytest.approx(255 * 0.67, abs=2)
