"""Tests of the file of a page: complete, safe, reproducible, with errors of one line for wrong input."""

import base64
import hashlib
import json
import re
import tomllib
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import xarray as xr
from click.testing import CliRunner, Result
from PIL import Image

from repsim import write_report
from repsim.cli import main
from repsim.errors import InvalidInputError, OutputError, SampleError, StoreError
from repsim.report.page import SCRIPTS
from repsim.results.files import open_result_or_study, save_result
from repsim.runtime.visible_text import all_visible
from repsim.testing.examples import write_network
from tests.report.conftest import HOSTILE, NAMES, hostile

ROOT = Path(__file__).parents[2]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def block(page: str, kind: str) -> str:
    scripts = re.findall(rf"<script{kind}>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 1
    return str(scripts[0])


def cli(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_all_that_may_run_is_named_by_its_hash(study: xr.Dataset, tmp_path: Path) -> None:
    write_report(study, tmp_path / "page.html")
    page = text_of(tmp_path / "page.html")
    policy = page.split('Content-Security-Policy" content="')[1].split('"')[0]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    library = zlib.decompress(base64.b64decode(block(page, ' type="text/plain" id="library"'))).decode()
    assert "plotly.js" in library[:100]
    own = block(page, "")
    digests = {base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (own, library)}
    assert set(rules["script-src"].split()) == {f"'sha256-{digest}'" for digest in digests}
    links = re.findall(r"\s(?:src|href|srcset|action|poster|data)=(\S+)", page.split("<script", 1)[0])
    assert links == ['"#layers">Skip']
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", own)


def test_every_script_of_the_folder_is_in_the_page() -> None:
    used = {name for scripts in SCRIPTS.values() for name in scripts}
    assert sorted(used) == sorted(path.stem for path in (ROOT / "repsim" / "report").glob("*.js"))
    kept = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["repsim.report"]
    assert kept == ["*.html", "*.css", "*.js"]


def test_equal_input_gives_equal_bytes(study: xr.Dataset, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(study, tmp_path / f"{name}.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@pytest.mark.parametrize("kind", ["study", "comparison"])
def test_a_saved_study_gives_the_page_of_the_one_in_memory(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """`repsim run` makes the page of either, depending on whether it was stopped; files order names in another way."""
    data: xr.Dataset = request.getfixturevalue(kind)
    save_result(data, tmp_path / "saved.nc")
    write_report(data, tmp_path / "one.html")
    write_report(open_result_or_study(tmp_path / "saved.nc"), tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_names_cannot_leave_their_place(study: xr.Dataset, tmp_path: Path) -> None:
    write_report(hostile(study), tmp_path / "page.html", title=HOSTILE)
    page = text_of(tmp_path / "page.html")
    assert page.count("<script") == page.count("</script>") == 3
    assert "<img" not in page.replace(block(page, ""), "")
    assert "\u2028" not in block(page, ' type="application/json" id="data"')
    data = json.loads(block(page, ' type="application/json" id="data"'))
    assert data["title"] == all_visible(HOSTILE)
    assert data["parts"][0]["summary"] == [all_visible(HOSTILE)]


def test_a_page_is_never_overwritten_unasked_nor_half_written(study: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(OutputError, match="use overwrite=True"):
        write_report(study, path)
    assert text_of(path) == "mine"
    with pytest.raises(InvalidInputError):
        write_report([study, study], path, overwrite=True)
    with pytest.raises(SampleError, match="no such folder or file"):
        write_report(study, path, thumbnails=tmp_path / "nothing", overwrite=True)
    assert text_of(path) == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.slow
def test_the_command_makes_a_page_and_says_what_is_wrong(
    study: xr.Dataset, comparison: xr.Dataset, tmp_path: Path
) -> None:
    save_result(study, tmp_path / "study.nc")
    save_result(comparison, tmp_path / "result.nc")
    page = tmp_path / "page.html"
    done = cli("report", tmp_path / "study.nc", "-o", page, "--title", "All of them")
    assert done.exit_code == 0, done.output
    assert done.output == f"{page} ({page.stat().st_size / 1e6:.3g} MB)\n"
    assert "<title>All of them</title>" in text_of(page)
    assert hashlib.sha256((tmp_path / "study.nc").read_bytes()).hexdigest() in text_of(page)
    assert cli("report", tmp_path / "result.nc", "-o", page, "--overwrite").exit_code == 0
    assert cli("heatmap", tmp_path / "result.nc", "-o", page).exit_code == 0
    assert "<title>left and right</title>" in text_of(page)
    for words, message in (
        (("report", tmp_path / "study.nc", "-o", page), "use --overwrite"),
        (("report", tmp_path / "study.nc", "-o", tmp_path / "page.pdf"), "name it .html"),
        (("report", tmp_path / "nothing.nc", "-o", tmp_path / "x.html"), "no such file"),
        (("heatmap", tmp_path / "result.nc", "-m", "cka", "-o", page), "omit -m and --pair"),
    ):
        failed = cli(*words)
        assert failed.exit_code == 2
        assert message in failed.output
        assert "Traceback" not in failed.output


@pytest.mark.parametrize(("name", "code"), [("page.html", 0), ("page.pdf", 2)])
def test_of_the_processes_of_torchrun_only_the_first_makes_the_page(
    name: str, code: int, study: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others write and print nothing, also where the first one reports an error; torchrun ends all of them then."""
    save_result(study, tmp_path / "study.nc")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for rank, expected in ((1, 0), (0, code)):
        monkeypatch.setenv("RANK", str(rank))
        done = cli("report", tmp_path / "study.nc", "-o", tmp_path / name)
        assert done.exit_code == expected
        assert bool(done.output) == (rank == 0), done.output
        assert (tmp_path / name).exists() == (rank == 0 and code == 0)


@pytest.mark.parametrize(
    "words",
    [
        ("heatmap", "study.nc", "-o", "map.png"),
        ("export", "study.nc", "-o", "table.csv"),
        ("figures", "study.nc", "-o", "figures"),
        ("inspect", "study.nc"),
        ("verify", "study.nc"),
        ("heatmap", "nothing.nc", "-o", "map.png"),
    ],
)
def test_other_commands_too_are_run_by_the_first_process_only(
    words: Sequence[str], study: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_result(study, tmp_path / "study.nc")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "1")
    done = cli(*words)
    assert (done.exit_code, done.output) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["study.nc"]


def test_a_store_is_no_study(tmp_path: Path) -> None:
    import numpy as np  # noqa: PLC0415

    write_network(tmp_path, "one", [np.eye(8)]).close()
    with pytest.raises(StoreError, match="it is an activation store"):
        write_report(tmp_path / "one.h5", tmp_path / "page.html")
    (tmp_path / "broken.nc").write_bytes(b"no netCDF")
    with pytest.raises(StoreError, match="broken.nc"):
        write_report(tmp_path / "broken.nc", tmp_path / "page.html")


def test_the_citation_is_that_of_the_repository(study: xr.Dataset, tmp_path: Path) -> None:
    write_report(study, tmp_path / "page.html")
    citation = json.loads(block(text_of(tmp_path / "page.html"), ' type="application/json" id="data"'))["citation"]
    cff = (ROOT / "CITATION.cff").read_text()
    for key in ("title", "version", "license"):
        value = re.search(rf'^{key}: "?(.*?)"?$', cff, flags=re.MULTILINE)
        assert value is not None
        assert value[1] in citation["bibtex"]
    assert "name: The repsim authors" in cff
    assert "The repsim authors" in citation["text"]


def test_pictures_are_there_only_when_asked_for(study: xr.Dataset, photos: Path, tmp_path: Path) -> None:
    changed = study.assign_coords(sample=["../../../etc/passwd", *NAMES[1:]])
    changed["agreement"][:, :2] = [[9.0, 8.0]] * changed.sizes["kernel"]  # these two are shown
    broken = tmp_path / "photos"
    for name in NAMES:
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes((photos / name).read_bytes())
    (broken / NAMES[1]).write_bytes(b"no picture")
    write_report(changed, tmp_path / "without.html")
    write_report(changed, tmp_path / "with.html", thumbnails=broken)
    without, with_them = (
        json.loads(block(text_of(tmp_path / f"{name}.html"), ' type="application/json" id="data"'))
        for name in ("without", "with")
    )
    assert without["stimuli"] == {}
    assert "thumbnails" in without["stimuli_note"]
    pictures = {name: view for name, (view,) in with_them["stimuli"].items()}
    assert pictures["../../../etc/passwd"] == {"missing": "no such picture"}
    assert pictures[NAMES[1]] == {"missing": "cannot be read"}
    small = [picture["url"] for picture in pictures.values() if "url" in picture]
    assert len(small) == len(pictures) - 2 > 20
    kind, _, data = small[0].partition(";base64,")
    assert kind == "data:image/webp"
    (tmp_path / "small.webp").write_bytes(base64.b64decode(data))
    with Image.open(tmp_path / "small.webp") as picture:
        assert picture.size == (96, 64)


def test_no_link_leads_out_of_the_folder_of_pictures_and_large_ones_are_no_warning(
    study: xr.Dataset, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = study.copy(deep=True)
    changed["agreement"][:, :2] = [[9.0, 8.0]] * changed.sizes["kernel"]  # these two are shown
    folder = tmp_path / "folder"
    for name in NAMES[:2]:
        (folder / name).parent.mkdir(parents=True)
    (folder / NAMES[0]).symlink_to(photos / NAMES[0])
    Image.new("RGB", (120, 80)).save(folder / NAMES[1])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # Pillow warns of more pixels, and refuses twice as many
    write_report(changed, tmp_path / "page.html", thumbnails=folder)
    data = json.loads(block(text_of(tmp_path / "page.html"), ' type="application/json" id="data"'))
    assert data["stimuli"][NAMES[0]] == [{"missing": "a link to another folder"}]
    assert data["stimuli"][NAMES[1]][0]["url"].startswith("data:image/webp")
